"""`cascade call` changes the catalogue of a server that runs, and says in one line what was not taken."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_cases import NOW_MS, running, shown, store_of

from serving.client import CallFailed, CascadeClient, ShownSlate
from training.cli import MISUSE, main

ITEM = {"item_id": "n1", "title": "Paper Moons", "category": "jazz", "published_ms": NOW_MS, "price": 3}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CascadeClient, str]]:
    folder = tmp_path_factory.mktemp("commands")
    store_of(folder)
    with running(folder) as (client, _, address):
        yield client, address.target


def test_items_are_added_hidden_shown_and_deleted(
    site: tuple[CascadeClient, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, target = site
    file = tmp_path / "items.json"
    file.write_text(json.dumps([ITEM, {**ITEM, "item_id": "n2", "attributes": {"format": "film"}}]))
    assert main(["call", "upsert", str(file), "--target", target]) == 0
    assert capsys.readouterr().out.split() == ["done", "2"]
    assert {"n1", "n2"} <= set(shown(client, "paper moons"))
    assert main(["call", "hide", "n1", "n2", "--target", target]) == 0
    assert not {"n1", "n2"} & set(shown(client))
    assert main(["call", "show", "n2", "--target", target]) == 0
    assert "n2" in shown(client)
    capsys.readouterr()
    assert main(["call", "delete", "n2", "n3", "--target", target, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [(each["item_id"], each["status"]) for each in answers] == [("n2", "DONE"), ("n3", "UNKNOWN")]
    assert "n2" not in shown(client)


def test_one_item_comes_from_the_standard_input_and_many_in_parts(
    site: tuple[CascadeClient, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client, target = site
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(ITEM)))
    assert main(["call", "upsert", "-", "--target", target]) == 0
    assert "n1" in shown(client)
    capsys.readouterr()
    assert main(["call", "delete", *[f"m{number}" for number in range(1001)], "--target", target]) == 0
    assert capsys.readouterr().out.split() == ["unknown", "1,001"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: "),
        ("[]", "holds no items"),
        ("[3]", "item 1: .*mapping"),
        ('{"title": "no id"}', "item 1: missing 1 required positional argument: 'item_id'"),
        ('[{"item_id": "a", "title": "b", "colour": "red"}]', "item 1: got an unexpected keyword argument 'colour'"),
        ('{"item_id": 3, "title": "b"}', "bad argument type for built-in operation"),
        (
            '{"item_id": "a", "title": "b", "attributes": {"colour": "red"}}',
            "1 of 1 were not taken; the first is a: attr",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    site: tuple[CascadeClient, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = tmp_path / "items.json"
    file.write_text(content)
    assert main(["call", "upsert", str(file), "--target", site[1]]) == MISUSE
    errors = capsys.readouterr().err
    assert errors.startswith("cascade: error: ")
    assert errors.count("\n") == 1
    assert re.search(message, errors)


def test_a_change_needs_a_server_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["call", "delete", "n1"]) == MISUSE
    assert "no server is running" in capsys.readouterr().err
    assert main(["call", "upsert", "none.json", "--target", "127.0.0.1:1"]) == MISUSE
    assert "none.json" in capsys.readouterr().err


def test_a_filter_is_passed_on(
    site: tuple[CascadeClient, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed: list[object] = []

    def ask(*_: object, **asked: object) -> ShownSlate:
        passed.append(asked["filter"])
        raise CallFailed("Recommend", "INVALID_ARGUMENT", "filter: ...")

    for method, words in (("recommend", []), ("search", ["moons"]), ("rank", ["i1"])):
        monkeypatch.setattr(CascadeClient, method, ask)
        assert main(["call", method, *words, "--filter", "price < 3", "--target", site[1]]) == MISUSE
    assert passed == ["price < 3"] * 3
    assert "INVALID_ARGUMENT: filter" in capsys.readouterr().err


def test_users_are_told_of_and_forgotten(
    site: tuple[CascadeClient, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client, target = site
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([{"user_id": "new", "attributes": {"age": 33}}])))
    assert client.recommend("new", size=5, time_ms=NOW_MS).degraded
    assert main(["call", "users", "-", "--target", target]) == 0
    assert not client.recommend("new", size=5, time_ms=NOW_MS).degraded
    capsys.readouterr()
    assert main(["call", "forget", "new", "--reference", "ticket 7", "--target", target, "--json"]) == 0
    assert int(json.loads(capsys.readouterr().out)["audit_id"]) > 0
    assert client.recommend("new", size=5, time_ms=NOW_MS).degraded
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"user": "x"})))
    assert main(["call", "users", "-", "--target", target]) == MISUSE
    assert "user 1: got an unexpected keyword argument 'user'" in capsys.readouterr().err
