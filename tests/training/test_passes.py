"""Whole logs replayed: the same as in memory, in one process or two, after a kill, and clear about bad input."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import Loop

from protos.impression_pb2 import Impression
from serving.log.impression_log import SPOOLS, ImpressionLog
from training import cli
from training.log.impression_log import Segment, read_segment, segments
from training.log.resumable import Result
from training.off_policy import passes
from training.off_policy.estimate import outcome_rewards, rewarded
from training.off_policy.passes import Log
from training.off_policy.replay import Divergence, Verified, counterfactual, counterfactual_of
from training.settings import ReplaySettings

CURVE_K = np.array([1.0, 0.6, 0.3])


def log(loop: Loop, folder: Path, *, workers: int = 1, newest: int | None = None, path: Path | None = None) -> Log:
    return Log(path or loop.log, loop.store.root, folder, workers, newest)


def rewritten(loop: Loop, path: Path, change: Callable[[Impression], None], *, most: int = 5) -> Path:
    """A log of some of the impressions that the second generation was not trained on, the third of them changed."""
    later = [each for each in loop.everything.impressions if each.generation == loop.first.id][:most]
    with ImpressionLog(path, durability="os") as made:
        for number, each in enumerate(later):
            copy = Impression.FromString(each.SerializeToString())
            copy.time_ms = max(copy.time_ms, loop.served_end_ms)
            if number == 2:
                change(copy)
            made.append(copy)
    return path


def test_a_log_is_verified_by_two_processes_as_by_one_and_leaves_nothing(loop: Loop, tmp_path: Path) -> None:
    everything = len(loop.everything.impressions)
    verified, went = passes.verify(log(loop, tmp_path, workers=2))
    assert verified == Verified(requests=everything, recalled=verified.recalled)
    assert verified.recalled > 0.9 * everything
    assert (went.requests, went.resumed, went.afresh) == (everything, 0, "")
    assert not list(tmp_path.iterdir()), "the next run begins at the beginning"
    few, _ = passes.verify(log(loop, tmp_path, newest=7))
    assert (few.requests, few.mismatches) == (7, 0)


def test_a_verification_that_was_stopped_goes_on(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = passes._verifying
    monkeypatch.setattr(passes, "segments", partial(segments, size=5))

    def stopped(log: Path, generations: Path, *, after: int) -> Callable[..., Result]:
        work, done = whole(log, generations), iter(range(after))

        def some(segment: Segment) -> Result:
            if next(done, None) is None:
                raise KeyboardInterrupt
            return work(segment)

        return some

    monkeypatch.setattr(passes, "_verifying", partial(stopped, after=2))
    with pytest.raises(KeyboardInterrupt):
        passes.verify(log(loop, tmp_path, newest=24))
    monkeypatch.setattr(passes, "_verifying", partial(stopped, after=100))
    verified, went = passes.verify(log(loop, tmp_path, newest=24))
    assert (verified.requests, verified.mismatches) == (24, 0)
    assert went.resumed + went.requests == 24
    assert 5 <= went.resumed <= 10


def test_mismatches_are_counted_by_stage_and_named(loop: Loop, tmp_path: Path) -> None:
    def change(logged: Impression) -> None:
        logged.propensity[0] *= 0.5

    path = rewritten(loop, tmp_path / "log", change)
    verified, _ = passes.verify(log(loop, tmp_path, path=path))
    # What was asked of each was moved in time too, so that all of them give another answer.
    assert verified.requests == verified.mismatches == 5
    assert sum(verified.stages.values()) == 5
    one = Verified(1, 1, (Divergence("r", "score", "utility"),), {"score": 1}, 2, 3)
    assert one + one == Verified(2, 2, one.divergences * 2, {"score": 2}, 4, 6)


def test_a_comparison_in_parquet_is_that_in_memory_and_is_made_once(loop: Loop, tmp_path: Path) -> None:
    path = rewritten(loop, tmp_path / "log", lambda _: None, most=20)
    target = loop.generations[1]
    rows, went = passes.compare(log(loop, tmp_path / "rows", path=path), target.id)
    kept = rows.collect()
    assert (went.requests, went.resumed) == (20, 0)
    assert set(rows.collect()["generation"]) == {loop.first.id}
    events = loop.everything.events
    logged = list(read_segment(path, segments(path)[0]))
    memory = counterfactual(logged, target, rewards=outcome_rewards(events, loop.world.weights), examination_K=CURVE_K)
    streamed = counterfactual_of(rows.collect(), rewarded(events, loop.world.weights), examination_K=CURVE_K)
    for name in ("reward_MK", "logged_prefix_MK", "target_prefix_MK", "predicted_reward_MK", "target_predicted_MK"):
        assert getattr(streamed, name).tobytes() == getattr(memory, name).tobytes(), name
    assert (streamed.request_ids, streamed.target_item_ids) == (memory.request_ids, memory.target_item_ids)
    assert memory.reward_MK.any()
    again, went = passes.compare(log(loop, tmp_path / "rows", path=path), target.id)
    assert (went.requests, went.resumed) == (0, 20)
    assert again.collect().equals(kept)


def test_only_what_others_answered_after_the_training_data_is_compared(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of \d+ impressions is later than"):
        passes.compare(log(loop, tmp_path), loop.second.id)
    rows, _ = passes.compare(log(loop, tmp_path, newest=30), loop.first.id)
    assert set(rows.collect()["generation"]) == {loop.second.id}
    own = rewritten(loop, tmp_path / "log", lambda _: None)
    with pytest.raises(ValueError, match=f"no request that another generation than {loop.first.id} answered"):
        passes.compare(log(loop, tmp_path, path=own), loop.first.id)


def set_propensity(value: float) -> Callable[[Impression], None]:
    def change(logged: Impression) -> None:
        logged.propensity[1] = value

    return change


def shorten(logged: Impression) -> None:
    del logged.propensity[-1]


def lose_utility(logged: Impression) -> None:
    del logged.eligible_utility[-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_propensity(0.0), "propensity[1] is 0; it must be above 0 and at most 1"),
        (set_propensity(-0.5), "propensity[1] is -0.5; it must be above 0 and at most 1"),
        (set_propensity(1.5), "propensity[1] is 1.5; it must be above 0 and at most 1"),
        (set_propensity(float("nan")), "propensity[1] is nan; it must be above 0 and at most 1"),
        (shorten, "holds 6 item_id, 5 propensity, 6 utility"),
        (lose_utility, "eligible_utility; columns of one kind must be of one length"),
    ],
)
def test_a_log_with_impossible_columns_is_refused_in_one_line_with_code_2(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Impression], None], told: str
) -> None:
    path = rewritten(loop, tmp_path / "log", change)
    words = [f"log={path}", f"generations={loop.store.root}", f"generation={loop.second.id}", "workers=1"]
    assert cli.main(["replay", "counterfactual", *words, f"output={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cascade: error: impression ")
    assert told in err
    assert err.count("\n") == 1


def test_an_unknown_generation_and_a_log_of_another_schema_are_refused_in_one_line_with_code_2(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        capsys.readouterr()
        assert cli.main([*words, f"generations={loop.store.root}", "workers=1"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("cascade: error: ")
        assert err.count("\n") == 1
        return err

    replayed, output = f"replayed={tmp_path / 'out'}", f"output={tmp_path / 'out'}"
    unknown, logged = "000009-abcdef01", f"log={loop.log}"
    assert unknown in refused("replay", "counterfactual", logged, f"generation={unknown}", output)
    assert unknown in refused("ope", logged, f"generation={unknown}", replayed)

    def another(logged: Impression) -> None:
        logged.generation = unknown

    path = rewritten(loop, tmp_path / "log", another)
    assert unknown in refused("replay", "verify", f"log={path}", output)

    def unlike(logged: Impression) -> None:
        logged.schema = "0" * 16

    path = rewritten(loop, tmp_path / "schema.db", unlike)
    assert "gave another answer" in refused("replay", "verify", f"log={path}", output)
    (path / SPOOLS / "1-1-1.sealed").write_bytes(b"another program's file")
    assert "is not a spool of version 1" in refused("replay", "verify", f"log={path}", output)
    assert "is not a spool of version 1" in refused("ope", f"log={path}", f"generation={loop.second.id}", replayed)


def test_a_comparison_is_of_one_program_and_one_generation(loop: Loop, tmp_path: Path) -> None:
    kept = passes.compare(log(loop, tmp_path, newest=10), loop.first.id)[0].collect()
    journal = tmp_path / loop.first.id / "compared.jsonl"
    header, *rest = journal.read_text().splitlines()
    journal.write_text("\n".join([header.replace(passes.program(), "another"), *rest, ""]))
    again, went = passes.compare(log(loop, tmp_path, newest=10), loop.first.id)
    assert (went.requests, went.resumed, went.afresh) == (10, 0, "program differs from the last run's")
    assert again.collect().equals(kept)
    part = next((tmp_path / loop.first.id).glob("*.parquet"))
    part.unlink()
    assert passes.compare(log(loop, tmp_path, newest=10), loop.first.id)[1].requests == 10, "what is lost is made again"


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("limit", -1)])
def test_settings_of_a_replay_are_checked(name: str, value: int) -> None:
    plain = {"workers": None, "limit": None, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1, or null"):
        ReplaySettings(mode="verify", log=Path("l"), generations=Path("g"), generation="", output=Path("o"), **plain)
