"""A search from typed text to slate, on one core: BM25, tower and ranker over 50,000 titles; and their index.

The peer is what one would write first on the same parts: the same BM25 and the same vectors, titles taken apart when
they are candidates and compared in plain Python, and the ranker as it was trained. It filters nothing, draws nothing
and logs nothing.

Shape letters: N candidates, Q typed words.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import torch

from benchmarks.harness import Bench, Side, main
from benchmarks.large_catalogue import CANDIDATES, LargeCatalogue, Size, large_catalogue
from benchmarks.pipeline import record
from candidate_gen.features import pair_rows
from candidate_gen.prepared_texts import PreparedTexts, match_words
from candidate_gen.text_match import TEXT_MATCH, field_matches
from candidate_gen.types import Query
from index.lexical import LexicalIndex
from ranking.scorer import RankerScorer
from serving.client import CascadeClient
from serving.generation import Generation
from serving.state.local_redis import LocalRedis
from training.server_process import server_process
from training.simulation.world import World

_TITLES = Size(items=48_000, learned_items=2000, users=1000, requests=6000, epochs=1)
_FEW = Size(items=3000, learned_items=1000, users=300, requests=600, epochs=1)
_MILLION = 1_000_000
_SIZE = 10


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    catalogue = large_catalogue(_FEW if bench.quick else _TITLES)
    generation = Generation.load(catalogue.store, catalogue.store.ids()[0])
    queries = _queries(generation, 20 if bench.quick else 300)
    record(bench, "search", generation, queries)
    bench.record("search, whole, CPU time", _cpu_s(generation, queries), unit="ms", note="whatever else the core does")
    naive = NaiveSearch(generation)
    turn_of: dict[str, int] = {"ours": 0, "peer": 0}

    def next_of(side: str) -> Query:
        turn_of[side] += 1
        return queries[turn_of[side] % len(queries)]

    bench.compare(
        f"search, {len(generation.items):,} titles",
        Side("ours", lambda: generation.pipeline.run(next_of("ours"))),
        Side("plain Python", lambda: naive.search(next_of("peer"))),
        unit="ms",
    )
    row_N = np.random.default_rng(0).integers(len(generation.items), size=CANDIDATES)
    bench.compare(
        f"matches of texts, {CANDIDATES} candidates",
        Side("ours", lambda: field_matches(next_of("ours").text, generation.items.prepared, row_N)),
        Side("plain Python", lambda: naive.matches(next_of("peer").text, row_N)),
        unit="ms",
        note=f"{len(TEXT_MATCH)} of the title and 5 of the text beside 7",
    )
    _over_the_wire(bench, catalogue, queries)
    _built(bench, 20_000 if bench.quick else _MILLION)


class NaiveSearch:
    """Text to slate with no more than the parts: see the page."""

    def __init__(self, generation: Generation) -> None:
        assert isinstance(generation.scorer, RankerScorer)
        self._generation, self._scorer = generation, generation.scorer
        frequency: dict[str, int] = {}
        for title in generation.items.titles:
            for word in set(match_words(title)):
                frequency[word] = frequency.get(word, 0) + 1
        count = len(generation.items)
        self._idf = {word: np.log1p((count - n + 0.5) / (n + 0.5)) for word, n in frequency.items()}

    def search(self, query: Query) -> list[str]:
        items, hydrated = self._generation.items, self._generation.pipeline.hydrate(query)
        by_text = self._generation.lexical.search(query.text, 100)
        by_vector = self._generation.vectors.search(hydrated.vector_D, CANDIDATES - 100)
        row_N = np.array(list(dict.fromkeys([*by_text.row_K.tolist(), *by_vector.row_K.tolist()])))
        item_row_N = np.asarray(items.row_I)[row_N]
        pair_row_N = pair_rows(
            self._generation.table,
            hydrated.row,
            item_row_N,
            age_ms_N=query.time_ms - np.asarray(items.published_ms_I)[row_N],
            tower_score_N=np.asarray(items.embedding_ID)[row_N] @ hydrated.vector_D,
        )
        for name, column_N in self.matches(query.text, row_N).items():
            pair_row_N[f"title_{name}"] = column_N
        click_N = self._scorer.probabilities(hydrated.row, item_row_N, pair_row_N)[:, 0]
        return items.ids.ids.take(row_N[np.argsort(-click_N)[:_SIZE]])

    def matches(self, text: str, row_N: np.ndarray) -> dict[str, list[float]]:
        """Some of `text_match`, a title at a time."""
        typed = match_words(text)
        idf_Q = [self._idf.get(word, 12.0) for word in typed]
        typed_grams, pairs = set().union(*map(_grams, typed)), set(pairwise(typed))
        found: dict[str, list[float]] = {name: [] for name in ("coverage", "idf_overlap", "bigrams", "prefix")}
        found |= {name: [] for name in ("trigram_cosine", "numbers", "length_ratio")}
        for title in self._generation.items.titles.take(row_N):
            held = match_words(title)
            has = set(held)
            grams = set().union(*map(_grams, held))
            found["coverage"].append(sum(word in has for word in typed) / len(typed))
            found["idf_overlap"].append(
                sum(idf for word, idf in zip(typed, idf_Q, strict=True) if word in has) / sum(idf_Q)
            )
            found["bigrams"].append(len(pairs & set(pairwise(held))) / max(len(pairs), 1))
            found["prefix"].append(sum(any(other.startswith(word) for other in held) for word in typed) / len(typed))
            found["trigram_cosine"].append(len(grams & typed_grams) / max(len(grams) * len(typed_grams), 1) ** 0.5)
            numbers = [word for word in typed if word.isdigit()]
            found["numbers"].append(sum(word in has for word in numbers) / len(numbers) if numbers else 1.0)
            found["length_ratio"].append(min(len(held), len(typed)) / max(len(held), len(typed)))
        return found


def _grams(word: str) -> set[str]:
    marked = f"^{word}$"
    return {marked[at : at + 3] for at in range(len(marked) - 2)}


def _queries(generation: Generation, count: int) -> list[Query]:
    """What users of the world that the models learned from type next."""
    world = World(0, users=_TITLES.users, items=_TITLES.learned_items, days=20)
    now_ms = generation.manifest.data_window[1]
    asked = world.requests(now_ms, now_ms + 86_400_000, count, search_share=1.0)
    return [
        Query(each.request_id, each.time_ms, each.surface, _SIZE, user_id=each.user_id, text=each.text)
        for each in asked
    ]


def _cpu_s(generation: Generation, queries: list[Query]) -> np.ndarray:
    taken_s = []
    for query in queries:
        started = time.process_time()
        generation.pipeline.run(query)
        taken_s.append(time.process_time() - started)
    return np.array(taken_s)


def _over_the_wire(bench: Bench, catalogue: LargeCatalogue, queries: list[Query]) -> None:
    """The same searches one by one through gRPC, with user state in Redis and the impression logged."""
    with TemporaryDirectory(prefix="cascade-benchmark-") as scratch, LocalRedis(Path(scratch) / "redis") as redis:
        folder = Path(scratch)
        overrides = (
            f"generations={catalogue.store.root}",
            f"log={folder / 'log'}",
            f"redis='{redis.url}'",
            "service.clock=request",
        )
        with server_process(folder, overrides) as (target, _), CascadeClient(target, deadline_s=10.0) as client:

            def search(query: Query, turn: int) -> object:
                name = f"{query.request_id}-{turn}"
                return client.search(
                    query.text, user_id=query.user_id, size=_SIZE, request_id=name, time_ms=query.time_ms
                )

            def suggest(query: Query, _: int) -> object:
                return client.suggest(query.text[: max(2, len(query.text) // 2)], time_ms=query.time_ms)

            searched_s, suggested_s = (_answered_s(ask, queries) for ask in (search, suggest))
    bench.record("search through gRPC, one at a time", searched_s, unit="ms", note="logged, user state in Redis")
    bench.record("suggest through gRPC, one at a time", suggested_s, unit="ms", note="half of what was typed")


def _answered_s(ask: Callable[[Query, int], object], queries: list[Query]) -> np.ndarray:
    """How long each is waited for, the second time round."""
    taken_s = np.zeros(len(queries))
    for turn in range(2):
        for number, query in enumerate(queries):
            started = time.perf_counter()
            ask(query, turn)
            taken_s[number] = time.perf_counter() - started
    return taken_s


def _built(bench: Bench, titles: int) -> None:
    """All that search needs of a catalogue's texts, from plain strings."""
    few = World(0, users=1, items=20_000, arriving=0).items["title"].to_list()
    texts = [f"{few[n % len(few)]} {n // len(few)}" for n in range(titles)]
    with TemporaryDirectory(prefix="cascade-benchmark-") as folder:
        started = time.perf_counter()
        LexicalIndex.build(Path(folder) / "lexical", texts)
        indexed = time.perf_counter()
        PreparedTexts.of(texts)
        prepared = time.perf_counter()
    bench.record(f"BM25 index of {titles:,} titles, built", np.array([indexed - started]), unit="ms")
    bench.record(f"words of {titles:,} titles, prepared", np.array([prepared - indexed]), unit="ms")


if __name__ == "__main__":
    main("search", measure, "a search from typed text to slate over 50,000 titles, and its index")
