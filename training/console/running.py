"""The console as a process: it listens until it is stopped."""

import socket
import ssl
from collections.abc import Callable

import uvicorn

from serving.client import CascadeClient
from training.console.settings import ConsoleSettings
from training.console.site import site

_DEADLINE_S = 10.0
_GRACE_S = 3
_AT_ONCE = 64
"""Connections and requests; more are told to come back."""


def run(settings: ConsoleSettings, *, on_ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        on_ready: told the page's address once it listens.

    Raises:
        ValueError: the port cannot be had, or a file of TLS or of tokens cannot be used.
        OSError: the console's own token cannot be read.
    """
    client = CascadeClient(
        settings.target, admin_target=settings.admin, deadline_s=_DEADLINE_S, access=settings.access()
    )
    with client, listener(settings) as bound:
        server = prepared(settings, client)
        on_ready(address(settings, bound))
        server.run(sockets=[bound])


def listener(settings: ConsoleSettings) -> socket.socket:
    """
    Raises:
        ValueError: the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise ValueError(f"port: {settings.port} on {settings.host} cannot be had: {error.strerror}") from error
    bound.listen()
    return bound


def address(settings: ConsoleSettings, bound: socket.socket) -> str:
    """Of the page, for a browser."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.security.tls else 'http'}://{host}:{bound.getsockname()[1]}/"


def prepared(settings: ConsoleSettings, client: CascadeClient) -> uvicorn.Server:
    """What serves the page on a socket.

    Raises:
        ValueError: a file of TLS or of tokens cannot be used.
    """
    security = settings.security
    config = uvicorn.Config(
        site(settings, client),
        ssl_certfile=security.certificate,
        ssl_keyfile=security.key,
        ssl_keyfile_password="" if security.key is not None else None,
        ssl_ca_certs=None if security.client_ca is None else str(security.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if security.client_ca is None else ssl.CERT_REQUIRED,
        limit_concurrency=_AT_ONCE,
        timeout_graceful_shutdown=_GRACE_S,
        server_header=False,
        access_log=False,
        log_config=None,
        lifespan="off",
        ws="none",
        interface="asgi3",
    )
    try:
        config.load()
    except OSError as error:  # of which SSLError is one
        named = ", ".join(str(each) for each in (security.certificate, security.key, security.client_ca) if each)
        raise ValueError(f"security: {named} cannot be used for TLS: {error.strerror or error}") from error
    return uvicorn.Server(config)
