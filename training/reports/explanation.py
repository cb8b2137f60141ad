"""Why a request was answered as it was: found in the log, told by `serving.explain`, laid out for people."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from index.generations import GenerationStore
from policy.types import SlotFlag
from protos.impression_pb2 import FeatureValue
from protos.recommender_pb2 import ExplainResponse, Explanation, ReasonKind
from serving.again import Past
from serving.explain import explain
from serving.generations import Generations
from training.log.impression_log import read_these

_MOST_FEATURES = 8


def explanation(
    log: Path, store: Path, request_id: str, *, item_ids: Sequence[str] = (), features: bool = False
) -> ExplainResponse:
    """See `serving.explain.explain`.

    Raises:
        ValueError: where the log holds no such request, or the store is none.
    """
    if not store.is_dir():
        raise ValueError(f"{store} is no store of generations; name one with --generations")
    if not (found := read_these(log, [request_id])):
        raise ValueError(f"the log {log} holds no request {request_id!r}")
    with closing(Generations(GenerationStore(store))) as generations:
        return explain(found[0], Past(generations).answered(found[0]), item_ids=item_ids, features=features)


def laid_out(told: ExplainResponse) -> Iterator[RenderableType]:
    """The slate as a table, then what it beat, what the features did, and where others were lost."""
    logged, trace = told.impression, told.trace
    asked = f'"{logged.text}"' if logged.text else f"surface {logged.surface or '-'}"
    yield f"{logged.request_id}: {asked}, user {logged.user_id or '-'}, generation {logged.generation}"
    removed = ", ".join(f"{name} {count}" for name, count in sorted(trace.removed.items()) if count)
    named = ", ".join(f"{name} {count}" for name, count in sorted(trace.retrieved.items()))
    yield f"{trace.eligible} candidates ({named}); removed: {removed or 'none'}"
    yield (
        "asked again, it gives the same slate, bit by bit"
        if told.reproduced
        else f"asked again, it gives another answer, from {told.diverged} on; rivals and lost items are of that one"
    )
    shown = [each for each in told.items if each.position >= 0]
    if shown:
        yield ""
        yield _slate(shown)
    lost = [each for each in told.items if each.position < 0]
    if lost:
        yield ""
        for each in lost:
            yield f"{each.item_id}: {each.lost}{_against(each)}"
    for each in told.items:
        if each.features:
            yield ""
            yield _features(each, told)


def _slate(shown: Sequence[Explanation]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    terms = ("utility", "freshness", "rules", "diversity")
    for name in ("#", "item", "P", *terms, "actions", "ranks", "why", "beat"):
        table.add_column(name, overflow="fold")
    for each in shown:
        reasons = [ReasonKind.Name(reason.kind).removeprefix("REASON_").lower() for reason in each.reasons]
        flags = [flag.name.lower() for flag in SlotFlag if each.flags & flag and flag.name]
        table.add_row(
            str(each.position),
            each.item_id,
            f"{each.propensity:.3g}",
            *(f"{each.terms[name]:+.3f}" if name in each.terms else "" for name in terms),
            " ".join(f"{name} {probability:.3f}" for name, probability in sorted(each.actions.items())),
            " ".join(f"{name} {rank}" for name, rank in sorted(each.ranks.items())),
            " ".join(dict.fromkeys([*reasons, *flags])),
            " ".join(f"{rival.item_id} ({rival.propensity:.2g})" for rival in each.rivals),
        )
    return table


def _against(lost: Explanation) -> str:
    if not lost.rivals:
        return ""
    score = sum(lost.terms.values())
    return f", score {score:.3f}, against " + ", ".join(
        f"{rival.item_id} ({rival.score:.3f}, P {rival.propensity:.2g})" for rival in lost.rivals
    )


def _features(each: Explanation, told: ExplainResponse) -> Table:
    table = Table(
        title=f"{each.item_id}: what its utility owes to a feature", title_justify="left", box=None, pad_edge=False
    )
    for name in ("feature", "value", "owes"):
        table.add_column(name, justify="left" if name == "feature" else "right")
    largest = sorted(each.features.items(), key=lambda feature: -abs(feature[1]))[:_MOST_FEATURES]
    for name, owed in largest:
        value = each.values.get(name) or told.query_values.get(name)
        table.add_row(name, "several" if value is None else _shown(value), f"{owed:+.4f}")
    return table


def _shown(value: FeatureValue) -> str:
    return value.text if value.WhichOneof("kind") == "text" else f"{value.number:g}"
