"""A generation's search held against a judgement list, through the pipeline that serves it.

Shape letters: Q queries, K places.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from protos.impression_pb2 import Impression, Kind, QueryOptions
from serving.codec import query_of
from serving.experiments.variants import without_chance
from serving.generation import Generation
from serving.understanding import decided
from training.datasets.dataset import DataError
from training.datasets.judgments import read_judgments, relevance
from training.evaluation.judged_texts import RELEVANT
from training.evaluation.search_run import SHOWN, SearchRun, retrieval_figures
from training.evaluation.topk import ItemSets, difference
from training.gates import Gate, SearchGateSettings, free_gate, search_gate

_PLACES = 100


def run_of(generation: Generation, judgments: pl.DataFrame) -> SearchRun:
    """What an anonymous search shows for every judged query, the best first and nothing explored; nothing is logged.

    Where people and clicks judged the same pair, people are right. What nobody judged counts as the lowest grade of the
    list, and judged items that the generation does not hold count as not found.

    `ndcg@10` has the gain 2^relevance - 1, relevance counted from the lowest grade.

    Raises:
        DataError: where all grades are the same.
    """
    pairs = relevance(judgments)
    highest = float(pairs["relevance"].max())  # type: ignore[arg-type]
    if not highest:
        raise DataError(f"all {pairs.height} judgments have the grade {pairs['grade'][0]:g}; nothing is to be found")
    greedy, ids = without_chance(generation), generation.items.ids
    text_Q = pairs["query"].unique(maintain_order=True).to_list()
    shown_QK = np.full((len(text_Q), _PLACES), -1, np.int64)
    for q, text in enumerate(text_Q):
        shown_K = _shown(greedy, text, number=q)
        shown_QK[q, : len(shown_K)] = shown_K
    rows = pairs.with_columns(
        query_row=pl.Series(np.repeat(np.arange(len(text_Q)), pairs["query"].rle().struct.field("len").to_numpy())),
        item_row=pl.Series(_numbered(ids.rows_of(pairs["item"].to_list()), beyond=len(ids))),
    )
    relevance_of = dict(zip(zip(rows["query_row"], rows["item_row"], strict=True), rows["relevance"], strict=True))
    relevance_QK = [[relevance_of.get((q, row), 0.0) for row in row_K] for q, row_K in enumerate(shown_QK.tolist())]
    ideal = rows.sort("query_row", "relevance", descending=[False, True]).group_by("query_row", maintain_order=True)
    dcg_Q = np.array([_dcg(each) for each in relevance_QK])
    ideal_Q = np.array([_dcg(each) for each in ideal.agg("relevance")["relevance"].to_list()])
    ndcg_Q = np.divide(dcg_Q, ideal_Q, out=np.full(len(text_Q), math.nan), where=ideal_Q > 0)
    wanted = rows.filter(pl.col("relevance") >= RELEVANT * highest)
    relevant = ItemSets.of(wanted["query_row"].to_numpy(), wanted["item_row"].to_numpy(), queries=len(text_Q))
    results = pl.DataFrame(
        [
            (text, place + 1, ids.ids[row], generation.items.titles[row], relevance_of.get((q, row)))
            for q, text in enumerate(text_Q)
            for place, row in enumerate(shown_QK[q, :SHOWN].tolist())
            if row >= 0
        ],
        {"query": pl.Utf8, "place": pl.Int64, "item": pl.Utf8, "title": pl.Utf8, "relevance": pl.Float64},
        orient="row",
    )
    return SearchRun(
        pl.DataFrame({"query": text_Q, "ndcg@10": ndcg_Q, **retrieval_figures(shown_QK, relevant)}),
        results,
        {
            "queries": float(np.isfinite(ndcg_Q).sum()),
            "queries.recall": float((relevant.size_B > 0).sum()),
            "titles": float(len(ids)),
            "rows": float(rows.height),
            "rows.unknown": float((rows["item_row"] >= len(ids)).sum()),
        },
    )


def judged(
    target: Generation, settings: SearchGateSettings, *, incumbent: str | None, load: Callable[[str], Generation]
) -> tuple[Gate, dict[str, float]]:
    """The gate of a generation that is not published yet, and the figures; `incumbent` is the one in force.

    Raises:
        DataError: see `read_judgments` and `run_of`.
        UnknownGeneration, CorruptGeneration: see `Generation.load`.
    """
    assert settings.judgments is not None
    judgments = read_judgments(Path(settings.judgments))
    run = run_of(target, judgments)
    figures = {f"search.{name}": value for name, value in run.metrics(seed=0).items() if not math.isnan(value)}
    if incumbent is None:
        return free_gate("search.change_low"), figures
    both = run.beside(run_of(load(incumbent), judgments))
    change = difference(both["ndcg@10"].to_numpy(), both["ndcg@10.before"].to_numpy(), seed=0)
    figures |= {"search.change": change.mean, "search.change_low": change.low, "search.change_high": change.high}
    return search_gate(settings, figures), figures


def _shown(generation: Generation, text: str, *, number: int) -> NDArray[np.int64]:
    asked = Impression(
        request_id=f"judged-{number}",
        time_ms=generation.manifest.data_window[1],
        kind=Kind.KIND_SEARCH,
        surface="search",
        size=_PLACES,
        text=text,
        query_options=decided(QueryOptions()),
    )
    answer = generation.pipeline.run(query_of(asked, generation))
    return answer.scored.candidates.row_N[answer.slate.index_K]


def _dcg(relevance_K: Sequence[float]) -> float:
    first_K = np.array(relevance_K[:10])
    return float(((np.exp2(first_K) - 1) / np.log2(np.arange(len(first_K)) + 2)).sum())


def _numbered(row_N: NDArray[np.int64], *, beyond: int) -> NDArray[np.int64]:
    """Rows of items, those that are not held (-1) as different rows from `beyond` on."""
    return np.where(row_N >= 0, row_N, beyond + np.arange(len(row_N)))
