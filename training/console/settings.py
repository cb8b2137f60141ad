"""What `cascade console` is told."""

from dataclasses import dataclass, field
from pathlib import Path

from serving.client.channels import Access
from serving.security import SecuritySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """Which server the page is of, and who may see it.

    Raises:
        ValueError: naming what is allowed, for a host beyond this machine that anybody could reach; two reports of one
            name.
    """

    target: str
    admin: str
    """Empty shows neither generations nor experiments."""
    reports: tuple[Path, ...]
    """Pages of the loop's jobs; those that do not exist are left out."""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    """These four: what the server asks for, see `serving.client.channels.Access`."""
    host: str = "127.0.0.1"
    port: int = 50080
    security: SecuritySettings = field(default_factory=SecuritySettings)
    """What the page asks of a browser: a token is the password."""

    def __post_init__(self) -> None:
        if not self.security.may_listen(self.host):
            raise ValueError(
                f"host: {self.host!r} given, allowed: a loopback address (127.0.0.1, ::1, localhost), or with "
                "security.certificate, security.key and security.tokens any address of this machine"
            )
        reports = tuple(Path(each).expanduser() for each in self.reports)  # as texts, where YAML names them
        object.__setattr__(self, "reports", reports)
        names = [each.stem for each in reports]
        if len(set(names)) < len(names):
            raise ValueError(f"reports: {', '.join(names)} given, allowed: each name once")

    def access(self) -> Access:
        """
        Raises:
            OSError: the token cannot be read.
            ValueError: see `Access`.
        """
        token = self.token_file.read_text().strip() if self.token_file else ""
        return Access(ca=self.ca, certificate=self.certificate, key=self.key, token=token)
