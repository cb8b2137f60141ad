"""How a client reaches its servers: addresses, credentials, and the service config that all languages share."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc

from serving.client.attempts import Reply

SERVICE_CONFIG = (files("serving.client") / "service_config.json").read_text()
"""Round robin over healthy servers, and retries that stop at a tenth of all calls: for gRPC in any language."""

_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 << 20),
)
_PUSHBACK = "grpc-retry-pushback-ms"
_LISTS = ("ipv4:", "ipv6:")

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a server beyond this machine asks for. Nothing, by default: then nothing is encrypted.

    Raises:
        ValueError: for a certificate without its key or a CA, or a token that is none.
    """

    ca: Path | None = None
    """Who signed the server's certificate, PEM. For a public CA: the system's file of them."""
    certificate: Path | None = None
    """Of the caller, PEM, where the server asks for one."""
    key: Path | None = None
    """Of the certificate."""
    token: str = field(default="", repr=False)
    """As `cascade token new` printed it."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: one of them is given; allowed: both or neither")
        if self.certificate is not None and self.ca is None:
            raise ValueError("certificate is given without ca, and would not be sent; TLS begins with ca")
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise ValueError("token: allowed are visible ASCII characters, as `cascade token new` prints them")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel_credentials(self, target: str) -> grpc.ChannelCredentials | None:
        """None for a plain channel.

        Raises:
            ValueError: where the token would leave this machine readable, or a file cannot be read.
        """
        if self.ca is None:
            if self.token and not _is_local(target):
                raise ValueError(f"ca: none given, so the token would travel to {target} readable by others")
            return None
        chosen = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.certificate)]
        return grpc.ssl_channel_credentials(*chosen)


POOL: Options = (("grpc.service_config", SERVICE_CONFIG), *_KEEPALIVE)
"""For a channel to all servers: it waits until one is ready, takes them in turn, tries again."""
REPLICA: Options = (
    (
        "grpc.service_config",
        '{"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}',
    ),
    ("grpc.enable_retries", 0),
    *_KEEPALIVE,
)
"""For a channel to one of several: a call fails at once where it is not healthy, and the client goes elsewhere."""


def replicas_of(target: str) -> list[str]:
    """A target for each address of a list, `ipv4:host:port,host:port`; none where there are not several."""
    scheme = next((each for each in _LISTS if target.startswith(each)), None)
    addresses = target.removeprefix(scheme).split(",") if scheme else []
    return [f"{scheme}{each}" for each in addresses] if len(addresses) > 1 else []


def failed(code: grpc.StatusCode, message: str | None, trailers: Iterable[Any] | None) -> Reply:
    """What gRPC says of a call that was not answered."""
    told = next((str(value) for name, value in trailers or () if name == _PUSHBACK), None)
    pushback_ms = None
    if told is not None:
        pushback_ms = int(told) if told.isdecimal() else -1
    return Reply(code.name, message=message or "", pushback_ms=pushback_ms)


def _is_local(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = target.rpartition("/")[2]
    for scheme in ("ipv4:", "ipv6:", "dns:"):
        addresses = addresses.removeprefix(scheme)
    return all(_is_loopback(each.rpartition(":")[0].strip("[]")) for each in addresses.split(","))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
