"""What a generation would have earned beside the one that answered: rows of a pass over the log in, estimates out."""

from contextlib import closing
from math import nan
from pathlib import Path

import polars as pl

from index.generations import GenerationStore
from policy.ope import InsufficientOverlap, Interval, require_overlap
from serving.again import Snapshots
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog
from training.gates import Gate, GateFailed, UpliftSettings, uplift_gate
from training.log.impression_log import read_segment, read_these, segments
from training.log.served import as_published, read_events
from training.off_policy.draws import drawn_again, spaced
from training.off_policy.estimate import Estimates, estimate, examination, rewarded, slices_of
from training.off_policy.replay import compared, counterfactual_of


def estimated(
    rows: pl.DataFrame, target: Generation, *, log: Path, store: GenerationStore, interval: Interval
) -> Estimates:
    """
    Args:
        rows: see `training.off_policy.replay.ROW`; all of them answered by one generation of the store.
        target: the other side of them. An outcome is worth what its policy says.

    Raises:
        ValueError: where the log's propensities are not those of who answered.
        UnknownGeneration, CorruptGeneration: see `Generation.load`.
    """
    incumbent = Generation.load(store, rows["generation"][0])
    with closing(CatalogLog(store.root / FILE)) as catalog:
        asked = read_these(log, spaced(rows["request_id"].to_list()))
        draws = drawn_again(asked, incumbent, target, catalog=catalog)
    rewards = rewarded(read_events(log), target.settings.weights)
    curve_K = examination(incumbent.manifest.metrics)
    followed = counterfactual_of(rows, rewards, examination_K=curve_K, slates=False)
    return estimate(followed, slices=slices_of(rows), draws=draws, interval=interval)


def judged(
    target: Generation, settings: UpliftSettings, *, incumbent: str, log: Path, store: GenerationStore
) -> tuple[Gate, dict[str, float]]:
    """The gate of a generation that is not published yet, by what the incumbent answered after its training data
    ended; and the figures.

    Raises:
        InsufficientOverlap: with the figures, unless the settings let that pass.
        GateFailed: where there is no such request, likewise.
        ValueError: see `estimated`.
    """
    since_ms = target.manifest.data_window[1]
    with closing(CatalogLog(store.root / FILE)) as catalog:
        snapshots = Snapshots({target.id: target}, catalog)
        parts = []
        for segment in segments(log):
            answered = as_published(read_segment(log, segment))
            later = (each for each in answered if each.time_ms >= since_ms)
            parts.append(compared((each for each in later if each.generation == incumbent), target, snapshots))
    rows = pl.concat(parts)
    try:
        if not rows.height:
            raise GateFailed(
                f"uplift is unknown: {incumbent} answered no request after {since_ms} whose candidates are in {log}"
            )
        found = estimated(rows, target, log=log, store=store, interval="delta")
        require_overlap(found.overlap)
    except (InsufficientOverlap, GateFailed):
        if settings.on_no_overlap == "refuse":
            raise
        return Gate("uplift.low_share", nan, "anything, for it is unknown", passed=True), {}
    figures = {
        "uplift.value": found.uplift.value,
        "uplift.low": found.uplift.low,
        "uplift.high": found.uplift.high,
        "uplift.earned": found.logged.value,
        "uplift.requests": float(found.logged.n),
        "uplift.slots": float(found.depth),
        "uplift.effective_sample_size": found.overlap.effective_sample_size,
        "uplift.outside_support": found.overlap.outside_support,
        "uplift.thin_support": found.overlap.thin_support,
    }
    return uplift_gate(settings, figures), figures
