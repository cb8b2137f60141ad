"""Gates that ask a generation which is not published yet: the log again, held-out impressions, time, and size.

Shape letters: N examples, G requests.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import numpy as np
from numpy.typing import NDArray

from index.generations import GenerationStore
from protos.impression_pb2 import Degraded, Impression
from ranking.metrics import ndcg_of_groups
from ranking.rankers import AnyScorer
from serving.again import Snapshots, answering, recorded_again
from serving.canaries import NOT_OF_A_CANARY
from serving.codec import query_of
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog
from training.evaluation.topk import difference
from training.examples.exposures import Examples
from training.gates import Gate, IncumbentGateSettings, free_gate, least, most
from training.log.served import as_published
from training.off_policy.replay import divergence, verified

_CUTOFF = 10
_FEWEST = 20
"""Requests with an outcome; of fewer, a change says nothing."""
_MOST = 2000
"""Requests that are scored, the newest."""

Judged = tuple[Gate, Mapping[str, float]]
Load = Callable[[str], Generation]
"""A generation of the store, at hand once it was asked for."""


def replay_judged(target: Generation, *, logged: Sequence[Impression], store: GenerationStore, load: Load) -> Judged:
    """Requests of the log, answered again: by who answered them, as they were logged; and by the target twice.

    Requests whose generation the store holds no more are left out. Where none is left, there is nothing to hold.
    """
    held = set(store.ids())
    asked = [each for each in logged if answering(each) <= held]
    if not asked:
        return free_gate("replay.mismatches"), {"replay.requests": 0.0}
    generations = {name: load(name) for name in set[str]().union(*map(answering, asked))}
    with closing(CatalogLog(store.root / FILE)) as catalog:
        again = verified(asked, Snapshots(generations, catalog))
        snapshots = Snapshots({target.id: target}, catalog)
        unstable = 0
        for each in as_published(asked):
            snapshot = snapshots.at(target.id, each)
            unstable += divergence(recorded_again(each, snapshot), snapshot) is not None
    figures = {
        "replay.mismatches": float(again.mismatches + unstable),
        "replay.requests": float(again.requests),
    }
    return most("replay.mismatches", figures, 0.0), figures


def offline_judged(
    target: Generation,
    settings: IncumbentGateSettings,
    *,
    held_out: Examples,
    incumbent: str | None,
    load: Load,
) -> Judged:
    """Held-out impressions, put in order by the target's ranker and by the incumbent's: the change of ndcg@10 of the
    main action, request by request, with its interval."""
    if incumbent is None:
        return free_gate("offline.change_low"), {}
    newest_R = np.argsort(held_out.time_ms_R, kind="stable")[-_MOST:]
    asked = held_out.take(np.isin(held_out.request_N, newest_R))
    before = load(incumbent)
    found_G, before_G = (_ndcg(each.scorer, asked) for each in (target, before))
    change = difference(found_G, before_G, seed=0)
    requests = int(np.isfinite(found_G).sum())
    enough = requests >= _FEWEST and before.table.fingerprint == target.table.fingerprint
    figures = {
        "offline.change": change.mean,
        "offline.change_low": change.low if enough else nan,
        "offline.change_high": change.high,
        "offline.requests": float(requests),
    }
    return least("offline.change_low", figures, settings.offline), figures


def size_judged(
    target: Generation, settings: IncumbentGateSettings, *, incumbent: str | None, store: GenerationStore
) -> Judged:
    """Its bytes beside the incumbent's."""
    if incumbent is None:
        return free_gate("size.ratio"), {}
    figures = {"size.ratio": target.manifest.bytes / store.manifest(incumbent).bytes}
    return most("size.ratio", figures, settings.size), figures


def latency_judged(
    target: Generation,
    settings: IncumbentGateSettings,
    *,
    logged: Sequence[Impression],
    incumbent: str | None,
    store: GenerationStore,
    load: Load,
) -> Judged:
    """Logged requests, asked of both in turn: the target's median beside the incumbent's."""
    if incumbent is None or not logged:
        return free_gate("latency.ratio"), {}
    with closing(CatalogLog(store.root / FILE)) as catalog:
        pairs = asked_of_both(logged, load(incumbent), target, catalog)
    median, median_before = (float(np.median([pair[side].ms for pair in pairs])) for side in (1, 0))
    figures = {"latency.ratio": median / median_before, "latency.p50_ms": median}
    return most("latency.ratio", figures, settings.latency), figures


@dataclass(frozen=True, slots=True)
class Asked:
    """How one generation answered one request."""

    ms: float
    worse: bool
    """Degraded in a way that the answer which was logged was not."""
    failed: bool
    item_ids: tuple[str, ...] = ()


def asked_of_both(
    logged: Sequence[Impression], before: Generation, after: Generation, catalog: CatalogLog
) -> list[tuple[Asked, Asked]]:
    """What was shown as generations were published, asked again of two, as the catalogue was then; who is asked first
    changes with every request, and the first ones are asked twice, so that neither pays for warming up."""
    snapshots = Snapshots({before.id: before, after.id: after}, catalog)
    shown = list(as_published(sorted(logged, key=lambda each: each.catalog_seq)))
    for each in shown[:_FEWEST]:
        for generation in (before, after):
            _asked(each, snapshots.at(generation.id, each))
    pairs = []
    for turn, each in enumerate(shown):
        sides = [snapshots.at(generation.id, each) for generation in (before, after)]
        first, second = turn % 2, 1 - turn % 2
        answered = {first: _asked(each, sides[first])}
        answered[second] = _asked(each, sides[second])
        pairs.append((answered[0], answered[1]))
    return pairs


def _asked(logged: Impression, generation: Generation) -> Asked:
    started_s = time.perf_counter()
    try:
        answer = generation.pipeline.run(query_of(logged, generation))
    except Exception:  # whatever it is, a server would have failed too
        return Asked(nan, worse=True, failed=True)
    ms = 1000 * (time.perf_counter() - started_s)
    bits = answer.trace.degraded & (NOT_OF_A_CANARY & ~Degraded.DEGRADED_DEFAULT_FEATURES) & ~logged.degraded
    finite = bool(np.isfinite(answer.slate.propensity_K).all())
    row_K = answer.scored.candidates.row_N[answer.slate.index_K]
    return Asked(ms, worse=bool(bits) or not finite, failed=False, item_ids=tuple(generation.items.ids.ids.take(row_K)))


def _ndcg(scorer: AnyScorer, examples: Examples) -> NDArray[np.float64]:
    edge = np.flatnonzero(np.diff(examples.request_N, prepend=-1, append=-1))
    score_N = np.empty(len(examples))
    for first, after in pairwise(edge):
        request = examples.request_N[first]
        row = slice(first, after)
        query_row = examples.query_row_R[request : request + 1]
        score_N[row] = scorer.probabilities(query_row, examples.item_row_N[row], examples.pair_row_N[row])[:, 0]
    return ndcg_of_groups(_CUTOFF, examples.label_NA[:, 0], score_N, examples.request_N)
