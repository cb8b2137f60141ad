"""Search on judged pairs of query and title: how well the judged titles of a query are re-ranked, and found.

Shape letters: N judgments (rows, those of a query side by side), Q queries, I distinct titles, F features, K places.
"""

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from candidate_gen.prepared_texts import PreparedTexts
from candidate_gen.search_text import SearchText
from candidate_gen.sentence_encoder import SentenceEncoder
from candidate_gen.text_match import text_match
from index.generations import GenerationStore
from index.lexical import GRAMS, LexicalIndex
from serving.generation import Generation
from training.datasets.judgments import read_judgments
from training.durable import appearing
from training.evaluation.judged_texts import JudgedTexts, read_collection, read_pairs
from training.evaluation.search_ranker import folded, out_of_fold
from training.evaluation.search_run import SearchRun
from training.evaluation.search_sources import Found, by_vectors, by_words, fused
from training.evaluation.text_tower import TowerTexts, out_of_fold_towers
from training.progress import progress
from training.reports import search_report
from training.search_judged import run_of

Encoder = Literal["none", "float32", "bfloat16"]
_MEMBERS = 3
_WEIGHTS = {"words": 2.0, "grams": 1.0, "tower": 2.0, "encoder": 1.0}
"""Of the sources where they are fused; those that are there."""


def evaluate(
    judgments: Path | None = None,
    *,
    query: str = "query",
    title: str = "title",
    relevance: str = "grade",
    description: str = "",
    id: str = "",  # noqa: A002
    documents: Path | None = None,
    queries: Path | None = None,
    qrels: Path | None = None,
    generation: str = "",
    store: Path = Path("generations"),
    encoder: Encoder = "none",
    tower: bool = True,
    cache: Path | None = None,
    out: Path | None = None,
    against: Path | None = None,
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Cross-validate retrieval and a re-ranker over queries.

    Texts are prepared as `candidate_gen.search_text` says, for every row of the table but the random one; what is typed
    has its spelling repaired for all but `bm25`.

    Retrieval fuses what BM25 over words and over runs of letters, a text tower and an encoder find, by reciprocal rank
    with fixed weights. The re-ranker reads features of the texts (`text_match` as typed and as prepared, scores of the
    sources) and is trained with a listwise loss. The tower and the re-ranker are trained on the queries of the other
    folds, so no judgment of a query helps to rank it; the tower's scores that the re-ranker learns from are out of fold
    too. Document frequencies, spelling and factors are of all titles, and of no query.

    `ndcg@10` is of the judged titles alone, with the gain 2^relevance - 1, relevance counted from the lowest grade in
    the file, and the mean over the queries whose judged titles differ in relevance. For the others every order is as
    good (an ideal gain of 0 is among these cases), so they would only pull all rows of the table together. Titles with
    equal scores count as in random order, which for constant scores is the expectation of the random row.

    Recall, MRR and mean average precision are of all titles: a query's judged titles of at least two thirds of the
    scale among the first 100 (300 for MRR and MAP; 1,000 for those of BM25); queries without such a title are left out.
    `recall@100.unseen` counts only titles that no query of the other folds is judged with.

    Args:
        judgments: Parquet or CSV, a row for each judged pair of query and title.
        query: name of the column of what was typed.
        title: of the titles.
        relevance: of the grades, numbers of which more is better.
        description: of a longer text of the same item, which then has features of its own.
        id: of what tells items apart, whose first title and description count; without it, the title.
        documents, queries, qrels: in place of `judgments`, a collection with the columns `doc_id` and `text`,
            `query_id` and `text`, `query_id`, `doc_id` and `rel`.
        generation: in place of all that, one that is published: what its own pipeline shows (`training.search_judged`)
            is held against `judgments`, which is then a judgement list (`training.datasets.judgments`).
        store: that holds it.
        encoder: the pretrained one, in this precision; needs the extra `encoder`.
        tower: train text towers.
        cache: a folder that keeps the encoder's vectors by what was encoded.
        out: a folder that gets the table of queries and the page, for later runs to be compared with.
        against: such a folder of an earlier run, to compare this one with, query by query.

    Returns:
        `ndcg@10` with `.low` and `.high` of its interval, `.bm25`, `.random`; `gain` over BM25 with its paired interval
        and p; `recall@100`, `mrr` and `map` and the same of `.bm25`; `against.*` likewise; `queries` in the mean of the
        NDCG, `queries.undecided` left out of it, `queries.recall` in the mean of the recall, `titles` and `rows`.

    Raises:
        ValueError: where a file lacks a column, holds nulls or is empty, where grades are not finite numbers, are
            all the same or span more than 100, where there are fewer decided queries than folds, and where the encoder
            is asked for and not installed.
    """
    before = None if against is None else SearchRun.read(against)
    if generation:
        return _told(_published(generation, store, judgments), before, out, seed=seed)
    judged = _read(
        judgments, documents, queries, qrels,
        query=query, title=title, relevance=relevance, description=description, item_id=id,
    )  # fmt: skip
    decided = int(judged.decided_Q.sum())
    trains = decided >= folds >= 2
    if judgments is not None and not trains:
        raise ValueError(
            f"folds is {folds}; it must be at least 2 and at most the {decided} queries of {judgments} whose titles "
            "differ in relevance"
        )
    if not 2 <= folds <= len(judged.text_Q):
        raise ValueError(f"folds is {folds}; it must be at least 2 and at most the {len(judged.text_Q)} queries")
    fold_Q = folded(judged.decided_Q, folds=folds, seed=seed)
    prepared = SearchText.of(judged.title_I)
    title_I = [prepared.of_item(each) for each in judged.title_I]
    plain_Q = [prepared.of_item(each) for each in judged.text_Q]
    text_Q = [prepared.of_query(each) for each in judged.text_Q]
    found = {}
    with TemporaryDirectory(prefix="cascade-search-") as folder:
        lexical = LexicalIndex.build(Path(folder) / "words", title_I)
        bm25 = by_words(lexical, plain_Q, judged, places=1000)
        found["words"] = by_words(lexical, text_Q, judged)
        grams = LexicalIndex.build(Path(folder) / "grams", title_I, language=GRAMS)
        found["grams"] = by_words(grams, text_Q, judged)
    vectors = None if encoder == "none" else _encoded(judged, encoder, cache)
    if vectors is not None:
        found["encoder"] = by_vectors(*vectors, judged)
    if tower:
        texts = TowerTexts.of(text_Q, title_I, vectors, seed=seed)
        found["tower"] = out_of_fold_towers(texts, judged, fold_Q, seed=seed)
    ranked_QK = fused(found, {name: _WEIGHTS[name] for name in found})
    score_N = bm25.score_N
    if trains:
        score_N = out_of_fold(
            _features(judged, title_I, text_Q, bm25, found),
            judged.relevance_N, judged.query_N, judged.decided_Q, fold_Q, members=_MEMBERS, seed=seed,
        )  # fmt: skip
    run = SearchRun.of(
        judged,
        fold_Q,
        ranked_QK=ranked_QK,
        score_N=score_N,
        bm25_ranked_QK=bm25.row_QK,
        bm25_score_N=bm25.score_N,
    )
    return _told(run, before, out, seed=seed)


def _told(run: SearchRun, before: SearchRun | None, out: Path | None, *, seed: int) -> dict[str, float]:
    metrics = run.metrics(before, seed=seed)
    if out is not None:
        search_report.write(run, before, metrics, out)
    return metrics


def _published(generation: str, store: Path, judgments: Path | None) -> SearchRun:
    if judgments is None:
        raise ValueError(f"generation={generation} needs judgments=FILE, a judgement list")
    if not store.is_dir():
        raise ValueError(f"{store} is no store of generations; name one with store=FOLDER")
    return run_of(Generation.load(GenerationStore(store), generation), read_judgments(judgments))


def _read(
    judgments: Path | None, documents: Path | None, queries: Path | None, qrels: Path | None, **columns: str
) -> JudgedTexts:
    if judgments is not None and documents is None and queries is None and qrels is None:
        return read_pairs(judgments, **columns)
    if judgments is None and documents is not None and queries is not None and qrels is not None:
        return read_collection(documents, queries, qrels)
    raise ValueError("evaluate search needs judgments=FILE, or documents=FILE queries=FILE qrels=FILE")


def _features(
    judged: JudgedTexts, title_I: list[str], text_Q: list[str], bm25: Found, found: Mapping[str, Found]
) -> NDArray[np.float32]:
    start_Q1 = judged.start_Q1
    blocks = [np.log1p(bm25.score_N)[:, None]]
    for name, source in found.items():
        blocks.append((np.log1p(source.score_N) if name in ("words", "grams") else source.score_N)[:, None])
    for typed_Q, text_I in ((text_Q, title_I), (judged.text_Q, judged.title_I), (judged.text_Q, judged.description_I)):
        if text_I is not None:
            stats = PreparedTexts.of(text_I)
            matches = [
                text_match(text, stats, judged.item_N[start_Q1[q] : start_Q1[q + 1]]) for q, text in enumerate(typed_Q)
            ]
            blocks.append(np.concatenate(matches))
    return np.concatenate(blocks, axis=1)


def _encoded(
    judged: JudgedTexts, precision: Literal["float32", "bfloat16"], cache: Path | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of the queries and of the titles, from the cache where it has those of exactly these by this encoder."""
    encoder = SentenceEncoder.load(precision)
    vectors = []
    for name, texts in (("queries", judged.text_Q), ("titles", judged.title_I)):
        digest = sha256("\0".join([encoder.fingerprint, *texts]).encode("utf-8", "surrogatepass")).hexdigest()
        kept = None if cache is None else cache / f"{digest[:24]}.npy"
        if kept is not None and kept.exists():
            vectors.append(np.load(kept, allow_pickle=False))
            continue
        with progress() as bars:
            bar = bars.add_task(f"encode {name}", total=len(texts))
            vectors.append(encoder.vectors(texts, advance=partial(bars.advance, bar)))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with appearing(kept) as draft, draft.open("wb") as file:
                np.save(file, vectors[-1], allow_pickle=False)
    query_QD, title_ID = vectors
    return query_QD, title_ID
