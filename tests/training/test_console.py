"""The console, asked as a browser asks it, over a real server of a real loop. `test_console_browser.py` looks at it."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import Loop
from console_cases import Page, Visitor, console_of, eventually, server_of

from index.generations import GenerationStore
from protos.admin_pb2 import Arm, ArmStatus, Experiment, GetTrafficResponse, TrafficMode
from protos.recommender_pb2 import Context, RecommendRequest, SearchRequest
from serving.client import CascadeClient
from serving.security import SecuritySettings, new_token
from serving.server import Address
from training import cli
from training.console import views
from training.console.question import Question
from training.console.settings import ConsoleSettings

NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console")


@pytest.fixture(scope="module")
def server(loop: Loop, folder: Path) -> Iterator[Address]:
    with server_of(loop, folder) as at:
        yield at


@pytest.fixture(scope="module")
def console(server: Address, folder: Path) -> Iterator[Visitor]:
    report = folder / "monitor.html"
    report.write_text("<!doctype html><title>days</title>")
    found = {"findings": [{"verdict": "bad", "text": "Clicks drifted <far>."}]}
    report.with_suffix(".json").write_text(json.dumps(found))
    (folder / "ope.html").write_text("<!doctype html>")
    (folder / "ope.json").write_text("{broken")
    reports = (report, folder / "ope.html", folder / "nightly.html")
    with console_of(server.target, server.admin_target, reports=reports) as visitor:
        yield visitor


@pytest.fixture(scope="module")
def client(server: Address) -> Iterator[CascadeClient]:
    with CascadeClient(server.target, admin_target=server.admin_target, deadline_s=60.0) as made:
        yield made


def test_the_page_at_rest_says_how_the_server_is_and_what_can_be_done(console: Visitor, loop: Loop) -> None:
    answer = console.get()
    assert answer.status == 200
    for words in ("serving", loop.second.id, "Look up", "Generations", "Experiments", "Reports", "None is in force"):
        assert words in answer.text
    assert "http-equiv" not in answer.text, "what is well does not have to be asked for again"
    assert "Try it otherwise" not in answer.text


def test_a_user_is_shown_the_slate_that_the_server_explains_with_everything_on_the_way(
    console: Visitor, client: CascadeClient, loop: Loop
) -> None:
    text = unescape(console.look_up(user="u1", draw="a-draw", size="7").text)
    told = client.explain(
        RecommendRequest(context=Context(user_id="u1", client_time_ms=NOW_MS), request_id="a-draw", page_size=7)
    )
    assert len(told.items) == 7
    assert all(each.title in text for each in told.items)
    assert all(f"P({action})" in text for action in told.impression.action_names)
    for words in ("not drawn", *told.trace.retrieved, "freshness", "diversity", "similar", "beat"):
        assert words in text
    assert not client.status().logged, "a look-up is nobody's impression"


def test_what_is_tried_stands_beside_what_is_served(console: Visitor, loop: Loop) -> None:
    words = {"user": "u1", "draw": "d", "policy.temperature": "0", "policy.epsilon": "0", "quotas.ann": "0"}
    text = unescape(console.look_up(**words, generation=loop.first.id).text)
    served, tried = text.split("What if", 1)
    assert "As it is served now" in served
    assert loop.second.id in served
    assert f"generation <strong>{loop.first.id}</strong>" in tried
    assert "temperature <strong>0</strong>" in tried
    assert "exp(0.00)" in tried or "exp(-0.00)" in tried
    assert "<td>ann</td>" not in tried.partition("Try it otherwise")[0]
    fields = {each["name"]: each["value"] for each in Page.of(text).fields if "value" in each}
    assert fields["policy.temperature"] == "0", "what was tried can be tried on"


def test_an_address_says_from_what_its_slate_is_drawn(console: Visitor) -> None:
    first, second = (console.get(console.asking(user="u1")).headers["location"] for _ in range(2))
    assert re.fullmatch(r"/\?user=u1&draw=\w{32}", first)
    assert first != second
    assert console.get(first).status == 200


def test_the_same_words_draw_the_same_slate_and_others_another(console: Visitor) -> None:
    def slates(draw: str) -> list[str]:
        words = {"user": "u2", "draw": draw, "size": "20", "weights.click": "1"}
        return re.findall(r'class="told">([^<]*)<', console.look_up(**words).text)[:20]

    assert slates("one") == slates("one")
    assert slates("one") != slates("two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"policy.temperature": "-1"}, "what_ifs[0]: temperature is -1"),
        ({"policy.warmth": "1"}, "what_ifs[0]: policy: 'warmth' given"),
        ({"weights.click": "much"}, "weights.click: 'much' given, allowed: a number"),
        ({"quotas.ann": "0.5"}, "quotas.ann: '0.5' given, allowed: a whole number"),
        ({"generation": "000099-00000000"}, "no generation '000099-00000000'"),
    ],
)
def test_what_cannot_be_tried_is_said_and_what_is_served_stays(
    console: Visitor, words: dict[str, str], message: str
) -> None:
    text = unescape(console.look_up(user="u1", **words).text)
    assert f"What was tried is refused: {message}" in text
    assert "As it is served now" in text
    assert "What if" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"user": "u1", "size": "many"}, "size: 'many' given, allowed: a whole number"),
        ({"user": "u1", "size": "9999"}, "page_size: 9999 given, allowed: 1 to 500"),
        ({"request": "nobody"}, "'nobody' given, which the impression log does not hold"),
        ({"user": "u" * 300}, "context.user_id"),
    ],
)
def test_what_cannot_be_looked_up_is_said_and_nothing_else(
    console: Visitor, words: dict[str, str], message: str
) -> None:
    answer = console.look_up(**words)
    assert message in unescape(answer.text)
    assert answer.status == 200
    assert "As it is served" not in answer.text


def test_a_search_shows_what_was_understood_and_what_matches(
    console: Visitor, client: CascadeClient, loop: Loop
) -> None:
    title = loop.dataset.items["title"][0]
    word = max(re.findall(r"[A-Za-z]+", title), key=len)
    text = unescape(console.look_up(text=word).text)
    assert "What was understood" in text
    found = client.search(word, no_log=True, facets=("category",))
    assert found.total_size > 0
    assert f"<dt>matches</dt><dd>{found.total_size}</dd>" in text
    assert all(f"{value} {count}" in text for value, count in found.facets["category"].items())
    told = client.explain(SearchRequest(context=Context(), query=word)).impression.understood
    assert all(f"{name} {chance:.0%}" in text for name, chance in zip(told.intent, told.probability, strict=True))


def test_a_logged_request_is_shown_as_it_was_served(console: Visitor, client: CascadeClient) -> None:
    shown = client.recommend("u3", size=5, request_id="logged-1")
    text = unescape(console.look_up(request="logged-1").text)
    assert "As it was served" in text
    assert all(item.title in text for item in shown.items)
    assert "gives another answer" not in text


def test_what_a_visitor_types_is_shown_as_text(console: Visitor) -> None:
    for words in ({"user": "<script>alert(1)</script>"}, {"text": '"><img src=x>'}, {"request": "<u>"}):
        text = console.look_up(**words).text
        assert not {tag for tag, _ in Page.of(text).tags} & {"script", "img", "u"}


@pytest.mark.parametrize("words", [{}, {"user": "u1"}, {"text": "the", "policy.temperature": "0"}, {"request": "none"}])
def test_every_field_has_a_label_every_id_is_one_of_a_kind_and_every_link_leads_somewhere(
    console: Visitor, words: dict[str, str]
) -> None:
    text = console.look_up(**words).text if words else console.get().text
    page = Page.of(text)
    assert len(page.ids) == len(set(page.ids))
    assert {each["id"] for each in page.fields} == page.labels
    assert set(page.targets) <= set(page.ids)
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    for tag, given in page.tags:
        named = {"scroll": "aria-label", "bar": "aria-hidden"}.get(given.get("class", ""))
        assert named is None or given[named]
        assert tag != "th" or given["scope"] == "col"
        assert "style" not in given, "the policy of the page forbids it"
        assert not any(name.startswith("on") for name in given)
        refers = (given.get("aria-labelledby"), given.get("aria-describedby"))
        assert all(each in page.ids for each in refers if each)


def test_nothing_of_the_page_comes_from_elsewhere_or_runs(console: Visitor) -> None:
    answer = console.look_up(user="u1")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', answer.text)
    style = console.get("/console.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "prefers-color-scheme: dark" in style.text
    assert "url(" not in style.text


def test_reports_are_linked_with_what_they_say_and_confined(console: Visitor) -> None:
    text = console.get().text
    assert "Clicks drifted &lt;far&gt;." in text
    assert "/reports/ope" in text
    assert "/reports/nightly" not in text
    page = console.get("/reports/monitor")
    assert "<title>days</title>" in page.text
    assert "sandbox" in page.headers["content-security-policy"]
    for name in ("nightly", "monitor.json", "..%2fmonitor", "%2e%2e/secret"):
        assert console.get(f"/reports/{name}").status == 404


def test_a_generation_is_activated_and_rolled_back_and_the_audit_log_says_why(
    console: Visitor, client: CascadeClient, loop: Loop, folder: Path
) -> None:
    store = GenerationStore(folder / "generations")
    late = console.change(action="activate", generation=loop.first.id, expected=loop.first.id, reason="late")
    assert late.status == 409
    assert f"expected {loop.first.id} to be current, found {loop.second.id}" in late.text
    assert 'value="late"' in late.text, "what was typed is kept"
    done = console.change(action="activate", generation=loop.first.id, expected=loop.second.id, reason="worse <clicks>")
    assert (done.status, done.headers["location"]) == (303, "/#generations")
    assert client.status().generation == store.current() == loop.first.id
    text = console.get().text
    assert "worse &lt;clicks&gt;" in text
    assert "the admin port" in text
    assert console.change(action="rollback", reason="better now").status == 303
    assert store.current() == loop.second.id
    assert [each.reason for each in store.history()[-2:]] == ["worse <clicks>", "better now"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"action": "rollback", "reason": "  "}, "reason: none given"),
        ({"action": "rollback", "reason": "r", "secret": "guessed"}, "the form is of an earlier console"),
        ({"action": "format", "reason": "r"}, "action: 'format' given"),
        (
            {"action": "activate", "generation": "000099-00000000", "reason": "r"},
            "no generation '000099-00000000'",
        ),
        ({"action": "rollback", "reason": "r" * 600}, "reason: "),
    ],
)
def test_a_change_that_cannot_be_is_said_and_nothing_is_changed(
    console: Visitor, folder: Path, form: dict[str, str], message: str
) -> None:
    history = GenerationStore(folder / "generations").history()
    answer = console.change(**form)
    assert answer.status == 409
    assert "Nothing was changed: " in answer.text
    assert GenerationStore(folder / "generations").history() == history
    assert message in unescape(answer.text)


def test_somebody_elses_page_can_neither_send_the_form_nor_read_this_one(console: Visitor, folder: Path) -> None:
    form = {"action": "rollback", "reason": "evil", "secret": Page.of(console.get().text).hidden["secret"]}
    assert console.post(form, origin="http://evil.example").status == 403
    assert console.post(form, origin="null").status == 403
    assert console.post(form, origin="").status == 403
    assert console.get(host="evil.example:80").status == 421
    for host in ("127.0.0.1.evil.example", "127.0.0.1@evil.example", "a:b:c", "[", "localhost:x"):
        assert console.get(host=host).status == 421
    assert console.get(host="localhost").status == 200
    assert console.post({**form, "reason": "x" * 20_000}).status == 413
    assert all(each.reason != "evil" for each in GenerationStore(folder / "generations").history())


def test_with_tokens_reading_takes_the_role_debug_and_changing_the_role_admin(server: Address, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    tokens = {
        "both": new_token(file, name="both", roles=("debug", "admin")),
        "reader": new_token(file, name="reader", roles=("debug",)),
        "shop": new_token(file, name="shop", roles=("read",)),
    }

    def password(token: str) -> dict[str, str]:
        from base64 import b64encode

        return {"authorization": "Basic " + b64encode(f"me:{token}".encode()).decode()}

    with console_of(server.target, server.admin_target, security=SecuritySettings(tokens=file)) as visitor:
        assert visitor.get().status == 401
        assert visitor.get().headers["www-authenticate"].startswith("Basic ")
        assert visitor.get(**password("guessed")).status == 401
        assert visitor.get(authorization="Basic !").status == 401
        assert visitor.get(**password(tokens["shop"])).status == 403
        page = visitor.get(**password(tokens["reader"]))
        assert page.status == 200
        form = {"action": "rollback", "reason": "", "secret": Page.of(page.text).hidden["secret"]}
        assert visitor.post(form, **password(tokens["reader"])).status == 403
        assert visitor.post(form, **password(tokens["both"])).status == 409, "let in, and told that a reason is needed"
        assert visitor.get("/console.css").status == 200


def test_with_a_certificate_the_page_is_encrypted_and_may_listen_anywhere(server: Address, tmp_path: Path) -> None:
    certificate, key, file = tmp_path / "page.pem", tmp_path / "page.key", tmp_path / "tokens"
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=page")
    names = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate)
    subprocess.run(["openssl", "req", *kind, *names], check=True, capture_output=True)
    new_token(file, name="me", roles=("debug",))
    security = SecuritySettings(certificate=certificate, key=key, tokens=file)
    with console_of(server.target, server.admin_target, security=security) as visitor:
        assert visitor.url.startswith("https://")
        assert visitor.get("/console.css").status == 200
        assert visitor.get().status == 401
    assert ConsoleSettings(target="t", admin="", reports=(), host="0.0.0.0", security=security).host == "0.0.0.0"
    key.write_text("no key")
    with (
        pytest.raises(ValueError, match=r"security: .*page\.pem, .*page\.key cannot be used for TLS"),
        console_of(server.target, server.admin_target, security=security),
    ):
        pass


def free_ports(count: int) -> list[int]:
    bound = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in bound]
    for each in bound:
        each.close()
    return ports


def test_without_a_server_the_page_says_so_and_goes_on_by_itself_when_there_is_one(loop: Loop, tmp_path: Path) -> None:
    port, admin_port = free_ports(2)
    with console_of(f"127.0.0.1:{port}", f"127.0.0.1:{admin_port}") as visitor:
        answer = visitor.look_up(user="u1")
        assert answer.status == 200
        assert f"No server answers at 127.0.0.1:{port}" in answer.text
        assert f"No admin port answers at 127.0.0.1:{admin_port}" in answer.text
        assert '<meta http-equiv="refresh"' in answer.text
        with server_of(loop, tmp_path, port=port, admin_port=admin_port):
            assert '<meta http-equiv="refresh"' not in eventually(visitor, loop.second.id).text
        assert "No server answers" in eventually(visitor, "No admin port answers").text


def test_without_an_admin_port_look_ups_work_and_the_rest_says_why_not(server: Address) -> None:
    with console_of(server.target, "") as visitor:
        text = visitor.look_up(user="u1").text
        assert "As it is served now" in text
        assert text.count("The console was not told of an admin port.") == 2
        assert "http-equiv" not in text


def test_arms_are_told_with_their_shares_changes_and_alarms() -> None:
    arms = [Arm(name="now", weight=3), Arm(name="next", weight=1, generation="g", policy={"temperature": 0.5})]
    traffic = GetTrafficResponse(
        experiments=[Experiment(name="e", mode=TrafficMode.TRAFFIC_MODE_CANARY, unit="user_id", arms=arms)],
        arms=[ArmStatus(experiment="e", arm="next", requests=9, evidence={"failed": 1.2, "slow": 0.3})],
    )
    (line,) = views.experiments(traffic)
    assert (line.name, line.mode, line.unit) == ("e", "canary", "user_id")
    assert [each.share for each in line.arms] == [0.75, 0.25]
    assert line.arms[1].changes == "temperature 0.5"
    assert line.arms[1].alarms == ("failed",)
    assert line.arms[0].status is None


def test_a_question_is_what_the_words_of_an_address_say() -> None:
    words = {"user": " u1 ", "size": "3", "policy.temperature": "0.5", "quotas.ann": "", "other": "x", "draw": "d"}
    question = Question.of(words)
    assert question.asked
    assert question.changes == {"policy.temperature": "0.5"}
    assert question.request_to(now_ms=5) == RecommendRequest(
        context=Context(user_id="u1", client_time_ms=5), request_id="d", page_size=3
    )
    assert question.what_if().variation.policy == {"temperature": 0.5}
    assert not Question.of({"other": "x"}).asked
    assert Question.of({"user": ""}).asked, "nobody is somebody to look up"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "0.0.0.0"}, "host: '0.0.0.0' given, allowed: a loopback address"),
        ({"host": "shop"}, "host: 'shop' given"),
        ({"reports": (Path("a/x.html"), Path("b/x.html"))}, "reports: x, x given"),
    ],
)
def test_settings_that_let_anybody_in_or_contradict_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ConsoleSettings(**{"target": "t", "admin": "", "reports": (), **changes})


def test_misuse_of_the_command_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words in (f"port={port}", "host=0.0.0.0", "token_file=/nowhere", "security.tokens=/nowhere", "porrt=1"):
            assert cli.main(["console", words]) == 2
            err = capsys.readouterr().err
            assert err.startswith("cascade: error: ")
            assert err.count("\n") == 1
