"""Who gets in, against a real server with certificates and tokens."""

import hashlib
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificate_cases import Pair, authority, issued
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from serving_cases import NOW_MS, MemoryLog, load_fakes, publish, running, settings

from index.generations import GenerationStore
from protos import admin_pb2, catalog_pb2, events_pb2, recommender_pb2
from protos.recommender_pb2 import Context, RecommendRequest
from serving.client import CallFailed, CascadeClient, Event
from serving.client.channels import Access
from serving.generations import Generations
from serving.security import ROLE_OF, ROLES, Role, SecuritySettings, Tokens, new_token
from serving.server import Address
from serving.settings import ServerSettings

WIRE = RecommendRequest(context=Context(client_time_ms=NOW_MS), page_size=2).SerializeToString()


@dataclass(frozen=True, slots=True)
class Secured:
    """A server that asks for everything, and what it asks for."""

    address: Address
    folder: Path
    settings: SecuritySettings
    ca: Pair
    caller: Pair
    tokens: dict[str, str]

    def access(self, role: str = "read", **changes: Any) -> Access:
        given: dict[str, Any] = {
            "ca": self.ca.certificate,
            "certificate": self.caller.certificate,
            "key": self.caller.key,
            "token": self.tokens.get(role, role),
        }
        return Access(**given | changes)

    def client(self, role: str = "read", *, deadline_s: float = 20.0, **changes: Any) -> CascadeClient:
        target, admin = self.address.target, self.address.admin_target
        return CascadeClient(target, admin_target=admin, deadline_s=deadline_s, access=self.access(role, **changes))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    ca = authority(folder, "ca")
    server, caller = issued(folder, "server", by=ca), issued(folder, "caller", by=ca)
    file = folder / "tokens"
    tokens: dict[str, str] = {role: new_token(file, name=f"test-{role}", roles=(role,)) for role in ROLES}
    security = SecuritySettings(certificate=server.certificate, key=server.key, client_ca=ca.certificate, tokens=file)
    with pytest.MonkeyPatch.context() as patch:
        load_fakes(patch)
        store = GenerationStore(folder / "generations")
        store.activate(publish(store, 1), time_ms=NOW_MS)
        chosen = replace(settings(folder), security=security)
        with running(Generations(store), chosen, log=MemoryLog()) as address:
            yield Secured(address, folder, security, ca, caller, tokens)


def until(holds: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def answer(client: CascadeClient, path: str, wire: bytes = b"") -> str:
    """Status name of a raw call on the port that the path belongs to."""
    channel = client._admin if "Admin" in path else client._pool
    assert channel is not None
    multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    try:
        multi(wire, timeout=20, metadata=client._metadata, wait_for_ready=True)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def refused_handshake(secured: Secured, **changes: Any) -> bool:
    with secured.client(deadline_s=0.5, **changes) as client:
        return not client.ready(deadline_s=0.5)


def test_who_has_certificate_and_token_is_served(secured: Secured) -> None:
    with secured.client() as client:
        assert len(client.recommend("u1", size=3, time_ms=NOW_MS).items) == 3
    with secured.client("admin") as client:
        assert client.status().ready
    with secured.client("events") as client:
        assert client.write_events([Event("i1", "click", NOW_MS, user_id="u1")])[0].status == "STORED"


def test_no_tls_a_wrong_authority_an_expired_and_a_missing_certificate_fail_the_handshake(
    secured: Secured, tmp_path: Path
) -> None:
    other = authority(tmp_path, "other")
    stranger, expired = issued(tmp_path, "stranger", by=other), issued(tmp_path, "old", by=secured.ca, days=-1)
    assert not refused_handshake(secured)
    assert refused_handshake(secured, ca=None, certificate=None, key=None)
    assert refused_handshake(secured, ca=other.certificate)
    assert refused_handshake(secured, certificate=None, key=None)
    assert refused_handshake(secured, certificate=stranger.certificate, key=stranger.key)
    assert refused_handshake(secured, certificate=expired.certificate, key=expired.key)


def test_the_client_refuses_a_server_whose_certificate_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = authority(tmp_path, "ca")
    expired = issued(tmp_path, "old", by=ca, days=-1)
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    chosen = replace(settings(tmp_path), security=SecuritySettings(certificate=expired.certificate, key=expired.key))
    with (
        running(Generations(store), chosen) as address,
        CascadeClient(address.target, deadline_s=0.5, access=Access(ca=ca.certificate)) as client,
        pytest.raises(CallFailed, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
    ):
        client.recommend("u1")


@pytest.mark.parametrize("token", ["", "cascade_wrong", "Bearer", "x" * 4000])
def test_no_token_and_a_wrong_one_get_the_same_answer(secured: Secured, token: str) -> None:
    with secured.client(token=token) as client, pytest.raises(CallFailed) as caught:
        client.recommend("u1", time_ms=NOW_MS)
    assert caught.value.code == "UNAUTHENTICATED"
    assert caught.value.message == "a bearer token that this server knows is needed"


def test_every_method_takes_exactly_the_tokens_of_its_role(secured: Secured) -> None:
    for role in ROLES:
        with secured.client(role) as client:
            for path, needed in ROLE_OF.items():
                if path.startswith("/cascade.") and "Stream" not in path:
                    refused = answer(client, path) == "PERMISSION_DENIED"
                    assert refused == (needed != role), (role, path)


def test_a_role_that_is_lacking_is_not_named(secured: Secured) -> None:
    with secured.client("read") as client, pytest.raises(CallFailed) as caught:
        client.write_events([Event("i1", "click", NOW_MS)])
    assert (caught.value.code, caught.value.message) == ("PERMISSION_DENIED", "the token does not allow this call")


def test_streams_and_reflection_are_guarded_and_health_is_open(secured: Secured) -> None:
    def stream(client: CascadeClient, path: str, messages: Sequence[bytes]) -> str:
        multi: grpc.StreamStreamMultiCallable[bytes, bytes] = client._pool.stream_stream(path)
        try:
            next(iter(multi(iter(messages), timeout=20, metadata=client._metadata)))
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    ask = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    with secured.client("read") as client:
        assert stream(client, "/cascade.v1.Events/Stream", []) == "PERMISSION_DENIED"
        assert stream(client, reflect, [ask]) == "PERMISSION_DENIED"
    with secured.client("debug") as client:
        assert stream(client, reflect, [ask]) == "OK"
    with secured.client(token="") as client:
        assert stream(client, reflect, [ask]) == "UNAUTHENTICATED"
        check = health_pb2.HealthCheckRequest().SerializeToString()
        assert answer(client, "/grpc.health.v1.Health/Check", check) == "OK"


def test_every_method_of_every_service_has_a_role() -> None:
    files = (recommender_pb2, events_pb2, catalog_pb2, admin_pb2)
    services = [each for file in files for each in file.DESCRIPTOR.services_by_name.values()]
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert methods == {path for path in ROLE_OF if path.startswith("/cascade.")}
    assert all(ROLE_OF[path] for path in methods)


def test_what_no_table_names_is_refused_to_all(secured: Secured) -> None:
    with secured.client("admin") as client:
        assert answer(client, "/cascade.v1.Recommender/Invented") == "PERMISSION_DENIED"


def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not(secured: Secured, tmp_path: Path) -> None:
    certificate, key = secured.settings.certificate, secured.settings.key
    assert certificate is not None
    assert key is not None
    before = (certificate.read_bytes(), key.read_bytes())
    other = authority(tmp_path, "other")
    fresh = issued(tmp_path, "fresh", by=other)
    try:
        certificate.write_bytes(b"not a certificate")
        assert not refused_handshake(secured), "the old one stays in use"
        certificate.write_bytes(fresh.certificate.read_bytes())
        key.write_bytes(fresh.key.read_bytes())
        assert until(lambda: refused_handshake(secured))
        assert not refused_handshake(secured, ca=other.certificate)
    finally:
        certificate.write_bytes(before[0])
        key.write_bytes(before[1])
    assert until(lambda: not refused_handshake(secured))


def test_the_audit_log_names_whose_token_activated_and_rolled_back(secured: Secured) -> None:
    store = GenerationStore(secured.folder / "generations")
    first = store.current()
    with secured.client("admin") as client:
        client.activate(publish(store, 2), reason="newer")
        client.rollback()
        told = client.generations().history
    assert [(each.reason, each.by) for each in told[:2]] == [("rollback", "test-admin"), ("newer", "test-admin")]
    assert store.current() == first


def test_tokens_come_and_go_without_a_restart(secured: Secured) -> None:
    assert secured.settings.tokens is not None
    file = secured.settings.tokens
    token = new_token(file, name="late", roles=("read",))

    def works() -> bool:
        with secured.client(token=token) as client:
            return answer(client, "/cascade.v1.Recommender/Recommend", WIRE) == "OK"

    assert until(works)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("late ")))
    assert until(lambda: not works())


def test_a_token_file_is_read_again_when_it_changes_and_kept_when_it_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    file = tmp_path / "tokens"
    first = new_token(file, name="one", roles=("read", "events", "read"))
    tokens = Tokens(file, clock=lambda: now[0])
    assert tokens.roles(first) == frozenset(("read", "events"))
    assert tokens.roles("\udcff") is None
    assert first not in file.read_text()
    assert (file.stat().st_mode & 0o777) == 0o600
    second = new_token(file, name="two", roles=("admin",))
    assert tokens.roles(second) is None, "it looks once a second"
    now[0] = 2.0
    assert tokens.roles(second) == frozenset(("admin",))
    file.write_text("# all gone\nnonsense\n")
    now[0] = 4.0
    with caplog.at_level(logging.ERROR):
        assert tokens.roles(first) == frozenset(("read", "events"))
    assert "line 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "roles", "message"),
    [("", ("read",), "name"), ("a b", ("read",), "name"), ("one", ("read",), "has a token"), ("x", (), "role")],
)
def test_a_token_that_cannot_be_made_is_refused(
    tmp_path: Path, name: str, roles: tuple[Role, ...], message: str
) -> None:
    new_token(tmp_path / "tokens", name="one", roles=("read",))
    with pytest.raises(ValueError, match=message):
        new_token(tmp_path / "tokens", name=name, roles=roles)


def beyond(folder: Path, **security: Path) -> ServerSettings:
    return replace(settings(folder), host="0.0.0.0", security=SecuritySettings(**security))


def test_only_with_tls_and_tokens_may_a_server_be_reached_from_elsewhere(tmp_path: Path) -> None:
    tls = {"certificate": tmp_path / "c.pem", "key": tmp_path / "c.key"}
    tokens = {"tokens": tmp_path / "tokens"}
    for lacking in ({}, tls, tokens, tls | {"client_ca": tmp_path / "ca.pem"}):
        with pytest.raises(ValueError, match=r"^host: '0\.0\.0\.0' given, allowed: a loopback address"):
            beyond(tmp_path, **lacking)
    assert beyond(tmp_path, **tls, **tokens).host == "0.0.0.0"


@pytest.mark.parametrize(
    "given",
    [{"certificate": Path("c")}, {"key": Path("k")}, {"client_ca": Path("a")}, {"key": Path("k"), "tokens": Path("t")}],
)
def test_half_of_tls_is_refused(given: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"^security\..*needs both"):
        SecuritySettings(**given)


def test_files_that_cannot_be_used_are_named_before_the_server_listens(tmp_path: Path) -> None:
    ca = authority(tmp_path, "ca")
    one, other = issued(tmp_path, "one", by=ca), issued(tmp_path, "two", by=ca)
    store = GenerationStore(tmp_path / "generations")
    for security, named in (
        (SecuritySettings(certificate=tmp_path / "none.pem", key=one.key), "none.pem"),
        (SecuritySettings(certificate=one.certificate, key=other.key), "two.key"),
        (SecuritySettings(certificate=one.certificate, key=one.key, client_ca=one.key), "one.key"),
        (SecuritySettings(tokens=tmp_path / "no-tokens"), "no-tokens"),
    ):
        chosen = replace(settings(tmp_path), security=security)
        with pytest.raises(ValueError, match=rf"^security.*{named}"), running(Generations(store), chosen):
            pass


def test_a_token_never_leaves_this_machine_in_the_clear() -> None:
    for target in ("example.org:1", "dns:///example.org:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "10.0.0.1:1"):
        with pytest.raises(ValueError, match="readable by others"):
            CascadeClient(target, access=Access(token="t"))
    for target in ("localhost:1", "127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "dns:///localhost:1", "[::1]:1"):
        CascadeClient(target, access=Access(token="t")).close()


def test_an_unknown_caller_who_sends_nothing_holds_no_thread(secured: Secured) -> None:
    """Refusals answer before the request has come, or a few silent callers would hold the pool."""
    assert secured.settings.client_ca is not None
    with secured.client(token="wrong") as client:
        gate: list[bytes] = []
        multi: grpc.StreamUnaryMultiCallable[bytes, bytes] = client._pool.stream_unary("/cascade.v1.Recommender/Rank")

        def silent() -> Iterator[bytes]:
            while not gate:
                time.sleep(0.01)
            yield from gate

        with pytest.raises(grpc.RpcError) as caught:
            multi(silent(), timeout=20, metadata=client._metadata)
        gate.append(b"")
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_hash_of_a_token_is_that_of_its_text(tmp_path: Path) -> None:
    token = new_token(tmp_path / "tokens", name="one", roles=("read",))
    assert (tmp_path / "tokens").read_text() == f"one read {hashlib.sha256(token.encode()).hexdigest()}\n"


def test_plain_bytes_at_a_secure_port_hurt_nobody(secured: Secured) -> None:
    host, port = secured.address.target.rsplit(":", 1)
    for content in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 40, b""):
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(content)
    with secured.client() as client:
        assert client.ready(deadline_s=10)
