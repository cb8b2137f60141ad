"""What a log's clicks say of its searches, as a judgement list, and how far people agree with it."""

from pathlib import Path

import polars as pl

from index.generations import GenerationStore
from training.datasets.judgments import mined, read_judgments, write_judgments
from training.log.impression_log import read_impressions
from training.log.served import read_events, shown
from training.off_policy.estimate import examination


def evaluate(
    log: Path,
    out: Path,
    *,
    store: Path = Path("generations"),
    action: str = "click",
    least: int = 5,
    human: Path | None = None,
) -> dict[str, float]:
    """Mine a judgement list from a log; see `training.datasets.judgments.mined`.

    Args:
        log: of impressions.
        out: gets the list.
        store: of the generations; what the current one's ranker learned of who looks where is what clicks are held
            against. Without one, all places count as looked at alike.
        action: the outcome that counts as a click.
        least: shown so often under a query, a pair is judged.
        human: a judgement list of people, to be compared with.

    Returns:
        `queries`, `rows`, and with `human` `rows.both`, which are judged in both lists, and `agreement`: of two items
        of one query that people tell apart, how often clicks order them likewise (a tie of clicks counts half).

    Raises:
        ValueError: where the log holds no such outcome, or no search whose items were shown often enough.
    """
    clicks = read_events(log).filter(pl.col("action") == action)
    if not clicks.height:
        raise ValueError(f"{log} holds no outcome {action!r}")
    generations = GenerationStore(store)
    current = generations.current()
    examined_K = examination(generations.manifest(current).metrics if current is not None else {})
    found = mined(shown(read_impressions(log)), clicks, examination=examined_K, least=least)
    if not found.height:
        raise ValueError(f"{log} holds no item that was shown {least} times under one query")
    write_judgments(found, out)
    told = {"queries": float(found["query"].n_unique()), "rows": float(found.height)}
    return told if human is None else told | agreement(found, read_judgments(human))


def agreement(clicks: pl.DataFrame, people: pl.DataFrame) -> dict[str, float]:
    """See `evaluate`; NaN where nothing is comparable."""
    both = clicks.join(people, ["query", "item"], suffix=".people").select("query", "item", "grade", "grade.people")
    pairs = both.join(both, "query", suffix=".other").filter(pl.col("grade.people") > pl.col("grade.people.other"))
    likewise = (pairs["grade"] - pairs["grade.other"]).sign() / 2 + 0.5
    mean = likewise.mean()
    return {"rows.both": float(both.height), "agreement": mean if isinstance(mean, float) else float("nan")}
