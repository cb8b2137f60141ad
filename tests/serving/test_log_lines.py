"""What a server says of itself: each line by itself, whole, and about the call that it is about."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from serving_cases import NOW_MS, MemoryState, Switch, refusal, serving

from protos.recommender_pb2 import Context, RecommendRequest
from serving.observability.log_lines import JsonLines, SlowCalls, TextLines
from serving.observability.telemetry import Call, Telemetry
from serving.pipeline import Trace

ROOT = Path(__file__).parents[2]
WIRE = RecommendRequest(context=Context(client_time_ms=NOW_MS, user_id="u1"), request_id="r1").SerializeToString()


class Lines(logging.Handler):
    """Formats at once, in the thread that says it, as a stream handler does."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@pytest.fixture(params=[JsonLines, TextLines])
def lines(request: pytest.FixtureRequest) -> Iterator[Lines]:
    handler = Lines(request.param())
    logger = logging.getLogger("cascade")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def objects(lines: Lines) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.said]


@pytest.mark.parametrize("lines", [JsonLines], indirect=True)
def test_a_line_names_the_request_that_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    state = MemoryState(down=True)
    with serving(tmp_path, monkeypatch, state=state) as address, grpc.insecure_channel(address.target) as channel:
        assert refusal(channel, "Recommender/Recommend", WIRE)[0] == "OK"
    about = [each for each in objects(lines) if "user state" in each["message"]]
    assert about
    for line in about:
        assert line["request_id"] == "r1"
        assert line["generation"].startswith("000001-")
        assert (line["level"], line["logger"]) == ("WARNING", "cascade.serving")
        assert line["time"].endswith("Z")


@pytest.mark.parametrize("lines", [JsonLines], indirect=True)
def test_a_defect_is_found_by_the_id_that_the_caller_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
) -> None:
    switch = Switch(fail=frozenset({"hydrate"}))
    with serving(tmp_path, monkeypatch, switch=switch) as address, grpc.insecure_channel(address.target) as channel:
        code, message = refusal(channel, "Recommender/Recommend", WIRE)
    assert code == "INTERNAL"
    (line,) = [each for each in objects(lines) if "defect" in each]
    assert message == f"internal error {line['defect']}"
    assert line["request_id"] == "r1"
    assert "Traceback" in line["error"]


def slow_call(telemetry: Telemetry, ms: float) -> None:
    call = Call("Recommend", ms=ms, request_id="r7", trace=Trace(stage_ms={"retrieve": 900.0, "select": 0.123}))
    telemetry.begin(call)
    telemetry.end(call)


def test_a_slow_call_says_where_its_time_went_and_many_say_it_once(lines: Lines) -> None:
    telemetry = Telemetry()
    telemetry.listeners.append(SlowCalls(500.0))
    slow_call(telemetry, 499.0)
    assert lines.said == []
    for _ in range(50):
        slow_call(telemetry, 1000.0)
    (line,) = lines.said
    assert "Recommend took 1000 ms, retrieve 900, select 0.12" in line
    assert "r7" in line


@pytest.mark.parametrize("lines", [JsonLines], indirect=True)
def test_whatever_is_said_is_one_line(lines: Lines) -> None:
    logging.getLogger("cascade.serving").error("two\nlines of %s", '"quotes"\u2028')
    (line,) = lines.said
    assert "\n" not in line
    assert json.loads(line)["message"] == 'two\nlines of "quotes"\u2028'


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_process_says_it_once_from_info_on_to_stderr(form: str) -> None:
    script = (
        "import logging; from serving.observability.log_lines import say; "
        f"say({form!r}); say({form!r}); log = logging.getLogger('cascade.serving'); "
        "log.debug('no'); log.info('generation is active'); logging.getLogger('other').info('no')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert (json.loads(line)["message"] if form == "json" else line).endswith("generation is active")
    assert done.stdout == ""
