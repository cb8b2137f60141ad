"""What a server and its services are told."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from index.placement import Placement
from serving.log.impression_log import Durability
from serving.observability.log_lines import LogFormat
from serving.security import SecuritySettings, masked

Clock = Literal["system", "request"]
"""Whose time a request is answered as of: the server's, or the caller's own (simulations, tests)."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How requests are answered."""

    clock: Clock = "system"
    deadline_s: float = 1.0
    """For callers that set none."""
    running: int = 2
    """Slates made at once; about the number of cores."""
    waiting: int = 64
    """Calls that may wait for their turn; the next is refused."""
    tenant_per_s: float | None = None
    """Calls for slates that each tenant may make in a second; None for any number."""
    event_calls: int = 16
    """Writes of outcomes at once: they wait for the disk, and one commit serves many."""
    eligible_share: float = 0.01
    """Share of requests whose every eligible candidate is logged."""
    replies: int = 1024
    """Answers kept for retries of the same request id."""
    rehearsed: int = 32
    """Latest requests that a generation answers again before it may serve; 0 for none, only its canaries."""
    shown_hours: float = 0.0
    """For so long nobody is shown again what they were shown, where enough else is left; 0 for no such rule."""
    shown_most: int = 500
    """Items shown that are remembered of each user for that."""

    def __post_init__(self) -> None:
        if self.clock not in ("system", "request"):
            raise ValueError(f"clock must be system or request, got {self.clock!r}")
        if not 0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline_s must be positive, got {self.deadline_s}")
        if not 0 <= self.eligible_share <= 1:
            raise ValueError(f"eligible_share must be between 0 and 1, got {self.eligible_share}")
        if self.tenant_per_s is not None and not 0 < self.tenant_per_s < math.inf:
            raise ValueError(f"tenant_per_s must be positive, or null for any number, got {self.tenant_per_s}")
        if self.replies < 1:
            raise ValueError(f"replies must be at least 1, got {self.replies}")
        if self.rehearsed < 0:
            raise ValueError(f"rehearsed must not be negative, got {self.rehearsed}")
        if not 0 <= self.shown_hours <= 24 * 365:
            raise ValueError(f"shown_hours must be between 0 and {24 * 365}, got {self.shown_hours}")
        if not 1 <= self.shown_most <= 10_000:
            raise ValueError(f"shown_most must be between 1 and 10000, got {self.shown_most}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything a server process is told.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    generations: Path
    """Folder of the generation store."""
    log: Path
    """Folder of the impression log; any number of servers may share one."""
    redis: str = field(default="", repr=False)
    """User state, answers and events of other servers: `redis://host:port/db`, `unix:///path`, or some nodes of a
    cluster, `redis+cluster://host:port,host:port`; empty for none. Not shown, because it may hold a password."""
    host: str = "127.0.0.1"
    """Beyond this machine only with TLS and tokens."""
    port: int = 50051
    """0 chooses a free one."""
    admin_port: int = 50052
    """0 chooses a free one."""
    processes: int = 1
    """Server processes that share the port, see `serving.front`; process i has `admin_port` + i, `metrics_port` + i."""
    metrics_port: int | None = None
    """Where Prometheus may ask; 0 chooses a free one, None is off."""
    log_format: LogFormat = "text"
    """Of what the server says on stderr: `text`, or `json` with one object a line."""
    slow_ms: float = 500.0
    """A call that takes longer gets a line that says where the time went; at most one such line a second."""
    traces: str = ""
    """An OTLP endpoint, `http://host:4317`, that is told of calls as OpenTelemetry spans (the extra `otel`); empty for
    none."""
    traces_share: float = 0.01
    """Of the calls whose caller has not decided it."""
    ready_file: Path | None = None
    """Holds the `Address` as JSON from when the server listens, by all of its processes, until it stops."""
    durability: Durability = "group"
    """sync: an impression is on the disk before the answer leaves; group: soon after; os: when the system likes."""
    rotate_bytes: int = 64 << 20
    """A spool of the log of this size is sealed, so that it can be compacted."""
    rotate_s: float = 3600.0
    """As is one of this age."""
    watch_s: float = 1.0
    """How often the store is asked which generation is current."""
    lame_duck_s: float = 0.5
    """How long a stopping server still answers, so that callers learn of it first."""
    grace_s: float = 10.0
    """How long calls at work may take after that."""
    max_request_bytes: int = 1 << 20
    security: SecuritySettings = field(default_factory=SecuritySettings)
    index: Placement = field(default_factory=Placement)
    service: ServiceSettings = field(default_factory=ServiceSettings)

    def __post_init__(self) -> None:
        if not self.security.may_listen(self.host):
            raise ValueError(
                f"host: {self.host!r} given, allowed: a loopback address (127.0.0.1, ::1, localhost), or with "
                "security.certificate, security.key and security.tokens any address of this machine"
            )
        if not _is_url(self.redis):
            raise ValueError(
                f"redis: {masked(self.redis)!r} given, allowed: redis://host:port/db, unix:///path or "
                "redis+cluster://host:port,host:port"
            )
        if self.log_format not in get_args(LogFormat):
            raise ValueError(f"log_format: {self.log_format!r} given, allowed: {', '.join(get_args(LogFormat))}")
        if not self.slow_ms > 0:
            raise ValueError(f"slow_ms: {self.slow_ms} given, allowed: above 0")
        if self.traces and not self.traces.startswith(("http://", "https://")):
            raise ValueError(f"traces: {self.traces!r} given, allowed: http://host:port, https://host:port, or empty")
        last_port = 65_536 - self.processes
        for name, number, lowest, highest in (
            ("processes", self.processes, 1, 256),
            ("port", self.port, 0, 65_535),
            ("admin_port", self.admin_port, 0, last_port),
            ("metrics_port", self.metrics_port or 0, 0, last_port),
            ("lame_duck_s", self.lame_duck_s, 0, 3600),
            ("grace_s", self.grace_s, 0, 3600),
            ("watch_s", self.watch_s, 0.01, 3600),
            ("traces_share", self.traces_share, 0, 1),
            ("rotate_bytes", self.rotate_bytes, 1024, 1 << 30),
            ("rotate_s", self.rotate_s, 1, 86_400),
            ("max_request_bytes", self.max_request_bytes, 1024, 64 << 20),
        ):
            if not lowest <= number <= highest:
                raise ValueError(f"{name}: {number} given, allowed: {lowest} to {highest}")


def _is_url(text: str) -> bool:
    """Whether its parts can be told apart: of one whose port is no number, the password may be taken for it."""
    first, *further = text.split(",")
    try:
        return all(urlsplit(each).port != 0 for each in (first, *(f"redis://{node}" for node in further)))
    except ValueError:
        return False
