"""No secret is told: canaries are put where secrets are, and looked for wherever something is said."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from serving_cases import NOW_MS, MemoryLog, load_fakes, publish, running, settings

from index.generations import GenerationStore
from serving.client import CallFailed, CascadeClient
from serving.client.channels import Access
from serving.generations import Generations
from serving.security import SecuritySettings, Tokens, masked, new_token
from serving.server import Server
from serving.state.exchange import EventExchange
from serving.state.redis_store import StateUnavailable
from serving.state.user_state import UserState, Wanted
from training import configuration

CANARY = "hunter2canary"
URLS = (
    f"redis://:{CANARY}@127.0.0.1:1/0",
    f"redis://user:{CANARY}@127.0.0.1:1",
    f"rediss://user:{CANARY}@127.0.0.1:1",
    f"redis://127.0.0.1:1?password={CANARY}&db=1",
)


def test_a_password_is_not_in_a_printed_configuration_nor_in_the_settings_text(tmp_path: Path) -> None:
    shown = configuration.as_yaml("serve", [f"redis={URLS[0]}"])
    assert CANARY not in shown
    assert "127.0.0.1:1" in shown
    for url in URLS:
        assert CANARY not in repr(replace(settings(tmp_path), redis=url)) + masked(f"redis: {url}\n")


@pytest.mark.parametrize("url", URLS)
def test_state_that_cannot_be_had_says_so_without_the_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    state = UserState(url, timeout_s=0.05)
    with caplog.at_level(logging.DEBUG), pytest.raises(StateUnavailable) as caught:
        state.recall(Wanted("u1"))
    assert CANARY not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {state!r} {caplog.text}"
    state.close()


@pytest.mark.parametrize(
    "text",
    [
        f"redis://:{CANARY}#x@host:6379",
        f"redis://:{CANARY}/x@host:6379",
        f"redis://user:{CANARY}?@host",
        f"redis://:{CANARY}@[::1",
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="redis") as caught:
        replace(settings(tmp_path), redis=text)
    assert CANARY not in str(caught.value)


def test_the_command_line_tells_no_password_and_no_token(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "training.cli", "--traceback", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode in (0, 2)
        return done.stdout + done.stderr

    token = said("token", "new", str(tmp_path / "tokens"), "--name", "one", "--role", "read").strip()
    assert token.startswith("cascade_")
    assert token not in (tmp_path / "tokens").read_text()
    (tmp_path / "token").write_text(f"{token}\n")
    told = said("call", "status", "--target", "10.255.255.1:1", "--token-file", str(tmp_path / "token"))
    assert "readable by others" in told
    assert token not in told


def test_a_server_tells_no_secret_in_status_answers_errors_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    file = tmp_path / "tokens"
    token = new_token(file, name="all", roles=("read", "admin"))
    chosen = replace(settings(tmp_path), redis=URLS[0], security=SecuritySettings(tokens=file))
    state = UserState(URLS[0], timeout_s=0.05)
    access = Access(token=token)
    with (
        caplog.at_level(logging.DEBUG),
        running(Generations(store), chosen, log=MemoryLog(), state=state) as address,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20, access=access) as client,
    ):
        slate = client.recommend("u1", time_ms=NOW_MS, request_id="r")
        assert slate.degraded == ("DEFAULT_FEATURES",)
        with pytest.raises(CallFailed) as wrong:
            client.recommend("u1", size=0, time_ms=NOW_MS)
        exchange = EventExchange(Server(Generations(store), state=None, log=None, settings=chosen).live, URLS[0])
        exchange.start()
        exchange.close()
        with CascadeClient(address.target, access=Access(token=CANARY)) as other, pytest.raises(CallFailed) as unknown:
            other.recommend("u1")
        told = f"{slate!r} {client.status()} {wrong.value!r} {unknown.value!r} {access!r} {client!r} {chosen!r}"
    state.close()
    for secret in (CANARY, token, file.read_text().split()[2]):
        assert secret not in told + caplog.text


def test_a_file_that_cannot_be_used_is_named_but_not_quoted(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"one read {CANARY}\n")
    with pytest.raises(ValueError, match="line 1") as caught:
        Tokens(file)
    assert CANARY not in str(caught.value)


def test_only_the_password_is_left_out() -> None:
    assert masked("a: redis://u:p@h:1/0\nb: unix:///x") == "a: redis://u:***@h:1/0\nb: unix:///x"
    assert masked("redis://h?password=p&db=1 12:30") == "redis://h?password=***&db=1 12:30"
