"""Who may call: certificates that can be replaced while the server runs, bearer tokens, and a role for every method."""

import hashlib
import logging
import os
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import grpc

from serving.observability.telemetry import Telemetry

Role = Literal["read", "events", "catalog", "debug", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

_SERVICES: Mapping[str, Mapping[str, Role | None]] = {
    "cascade.v1.Recommender": {
        "Recommend": "read",
        "Search": "read",
        "Rank": "read",
        "Suggest": "read",
        "Explain": "debug",
    },
    "cascade.v1.Events": {"Write": "events", "Stream": "events"},
    "cascade.v1.Catalog": {
        "UpsertItems": "catalog",
        "DeleteItems": "catalog",
        "PatchItems": "catalog",
        "UpsertUsers": "catalog",
        "ForgetUser": "catalog",
    },
    "cascade.v1.Admin": {
        "ListGenerations": "admin",
        "Prepare": "admin",
        "Activate": "admin",
        "Rollback": "admin",
        "SetTraffic": "admin",
        "GetTraffic": "admin",
        "PutRules": "admin",
        "GetRules": "admin",
        "GetStatus": "admin",
    },
    "grpc.health.v1.Health": {"Check": None, "Watch": None, "List": None},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": "debug"},
}
ROLE_OF: Mapping[str, Role | None] = {
    f"/{service}/{method}": role for service, methods in _SERVICES.items() for method, role in methods.items()
}
"""The role that a token needs for a method; None: anybody may call it. What is not here is refused to all."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_BEARER = "Bearer "
_PREFIX = "cascade_"
"""By which a scanner of repositories knows a token that was checked in."""
_LOOK_S = 1.0
_PASSWORD = re.compile(r"(\w+://[^\s:/@]*:)\S*@|([?&]password=)[^\s&]*")
_LOGGER = logging.getLogger("cascade.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySettings:
    """What callers are asked for; nothing, by default.

    Raises:
        ValueError: for a certificate without its key, or the other way round, or a `client_ca` without both.
    """

    certificate: Path | None = None
    """Of the server, PEM, with the chain up to its CA. Read again when it changes."""
    key: Path | None = None
    """Of the certificate, PEM, without a password."""
    client_ca: Path | None = None
    """Who signs callers' certificates, PEM; without one callers need none."""
    tokens: Path | None = None
    """Hashed bearer tokens, as `cascade token new` writes them; without it callers need none. Read again when it
    changes."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, lacking = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ValueError(f"security.{given} is given without security.{lacking}; TLS needs both")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("security.client_ca is given without security.certificate; TLS needs both")

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """Certificate and key; None where nothing is encrypted."""
        return (self.certificate, self.key) if self.certificate is not None and self.key is not None else None

    def may_listen(self, host: str) -> bool:
        """On an address of this machine alone; or on any where nobody listens in and everybody says who they are."""
        try:
            address = ip_address("127.0.0.1" if host == "localhost" else host)
        except ValueError:
            return False
        return address.is_loopback or (self.certificate is not None and self.tokens is not None)


def server_credentials(settings: SecuritySettings) -> grpc.ServerCredentials | None:
    """For one secure port; None for a plain one.

    Every handshake takes the files as they are. Where they cannot be used, the last that could be stay in use.

    Raises:
        ValueError: naming the file that cannot be used.
    """
    if settings.certificate is None:
        return None
    certificates = _Certificates(settings)
    return grpc.dynamic_ssl_server_credentials(
        certificates.first, certificates.changed, require_client_authentication=settings.client_ca is not None
    )


class _Certificates:
    """The files of TLS as they were last read."""

    def __init__(self, settings: SecuritySettings) -> None:
        self._settings = settings
        self._paths = tuple(
            path for path in (settings.certificate, settings.key, settings.client_ca) if path is not None
        )
        self._signature = tuple(map(_signature, self._paths))
        self.first = self._read()

    def changed(self) -> Any:
        """The configuration where it is another than at the last handshake, else None."""
        found = tuple(map(_signature, self._paths))
        if found == self._signature:
            return None
        self._signature = found
        try:
            configuration = self._read()
        except ValueError as error:
            _LOGGER.error("TLS goes on with the certificate that it had: %s", error)
            return None
        _LOGGER.info("TLS: %s is taken up", self._settings.certificate)
        return configuration

    def _read(self) -> Any:
        certificate, key, *client_ca = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(certificate, key, password=lambda: b"")
            if client_ca:
                context.load_verify_locations(client_ca[0])
            contents = [path.read_bytes() for path in self._paths]
        except OSError as error:  # of which SSLError is one
            files = ", ".join(map(str, self._paths))
            raise ValueError(f"security: {files} cannot be used for TLS: {error.strerror or error}") from error
        return grpc.ssl_server_certificate_configuration(
            [(contents[1], contents[0])], root_certificates=contents[2] if client_ca else None
        )


class Tokens:
    """The roles of every token, by a file of lines `name role,role sha256`; # begins a comment.

    Changes of the file are noticed within a second. One that cannot be read changes nothing.

    Raises:
        ValueError: naming the file and the line that is none.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._signature = _signature(path)
        self._holders = _read_tokens(path)
        self._look_at = clock() + _LOOK_S

    def roles(self, token: str) -> frozenset[Role] | None:
        """None for a token that is not in the file."""
        holder = self._holder(token)
        return holder.roles if holder else None

    def name(self, token: str) -> str:
        """Of whoever was given it; empty for one that is not in the file."""
        holder = self._holder(token)
        return holder.name if holder else ""

    def _holder(self, token: str) -> "_Holder | None":
        """
        Tokens are looked up by their digest, so that how long it takes tells nothing about those in the file.
        """
        if self._clock() >= self._look_at:
            self._look()
        return self._holders.get(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())

    def _look(self) -> None:
        self._look_at = self._clock() + _LOOK_S
        found = _signature(self._path)
        if found == self._signature:
            return
        self._signature = found
        try:
            self._holders = _read_tokens(self._path)
        except ValueError as error:
            _LOGGER.error("the tokens stay as they were: %s", error)


@dataclass(frozen=True, slots=True)
class _Holder:
    """Of a token."""

    name: str
    roles: frozenset[Role]


class Doorkeeper(grpc.ServerInterceptor):
    """Lets a call in if its token has the role of its method. Nothing of a call that is refused is read.

    The two answers tell neither which tokens there are nor what they may do.
    """

    def __init__(self, tokens: Tokens, telemetry: Telemetry) -> None:
        self._tokens = tokens
        self._telemetry = telemetry
        self._unknown = self._refusal(
            grpc.StatusCode.UNAUTHENTICATED, "a bearer token that this server knows is needed"
        )
        self._forbidden = self._refusal(grpc.StatusCode.PERMISSION_DENIED, "the token does not allow this call")

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        role = ROLE_OF.get(handler_call_details.method, "nobody")
        if role is None:
            return continuation(handler_call_details)
        held = self._tokens.roles(_bearer(handler_call_details.invocation_metadata))
        if held is None:
            return self._unknown
        return continuation(handler_call_details) if role in held else self._forbidden

    def caller(self, context: grpc.ServicerContext) -> str:
        """The name in whose token a call was let in; empty where the token is no longer known."""
        return self._tokens.name(_bearer(context.invocation_metadata()))

    def _refusal(self, code: grpc.StatusCode, message: str) -> "grpc.RpcMethodHandler[Any, Any]":
        def refuse(_wires: object, context: grpc.ServicerContext) -> NoReturn:
            self._telemetry.add("failed", code.name)
            context.abort(code, message)

        # Of a stream nothing is waited for: a caller who sends no message holds no thread.
        return grpc.stream_unary_rpc_method_handler(refuse)


def new_token(path: Path, *, name: str, roles: tuple[Role, ...]) -> str:
    """Make a token of 32 random bytes and add its hash to the file, which comes into being with the first.

    Raises:
        ValueError: for a name that is none or in use, for no role, or a file of something else.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: {name!r} given, allowed: 1 to 64 letters, digits and ._-")
    if not roles or not set(roles) <= set(ROLES):
        raise ValueError(f"role: {', '.join(roles) or 'none'} given, allowed: {', '.join(ROLES)}")
    lines = path.read_text().splitlines() if path.exists() else []
    if lines:
        _read_tokens(path)
    if any(line.split()[:1] == [name] for line in lines):
        raise ValueError(f"name: {name!r} given, which has a token in {path}; allowed: another, or remove its line")
    token = _PREFIX + secrets.token_urlsafe(32)
    lines.append(f"{name} {','.join(dict.fromkeys(roles))} {hashlib.sha256(token.encode()).hexdigest()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
    fresh.replace(path)
    return token


def _bearer(metadata: Any) -> str:
    """The token of a call; empty for none. The last one counts."""
    token = ""
    for name, value in metadata or ():
        if name == "authorization" and str(value).startswith(_BEARER):
            token = str(value)[len(_BEARER) :]
    return token


def masked(text: str) -> str:
    """The text, with the passwords of the addresses in it left out."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def _read_tokens(path: Path) -> Mapping[bytes, _Holder]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"security.tokens: {path} cannot be read: {getattr(error, 'strerror', error)}") from error
    found: dict[bytes, _Holder] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        listed = frozenset(words[1].split(",")) if len(words) == 3 else frozenset()
        roles = frozenset(role for role in ROLES if role in listed)
        if not roles or roles != listed or not _DIGEST.fullmatch(words[2]):
            raise ValueError(
                f"security.tokens: line {number} of {path} is not `name role,role sha256`; roles are {', '.join(ROLES)}"
            )
        found[bytes.fromhex(words[2])] = _Holder(words[0], roles)
    return found


def _signature(path: Path) -> tuple[int, ...] | None:
    """Another, where the file was written or replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
