"""The deep ranker as it serves, 500 candidates of one request on one thread, beside other ways to run the same network.

Two forms of one size: 20 embeddings of 16 and 40 numbers come to 360 columns, three crosses of rank 64 or none, then a
network of 256, 128 and 64. Weights are random; time does not depend on what was learned. Eager torch begins with the
feature rows, as ours does; the other engines are handed the 360 columns, which spares them the embeddings and the
attention. What short numbers do to the order is told beside what they save; LightGBM is there for scale.

Shape letters: N candidates, I items, R requests, L history, X columns of the network's input, A actions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Bench, Side, main
from candidate_gen.embedding import tensors
from candidate_gen.features import Feature, FeatureTable, RowKind
from ranking.inference import CompiledRanker, halves_are_fast
from ranking.metrics import ndcg_at
from ranking.model import Ranker, RankerShape

_ACTIONS = ("click", "long_view", "like")
_IDS = 5
"""Of query and of item beside those that the ranker asks for."""
_LENGTH = 32
_CANDIDATES = 500
_FORMS = {
    "crosses and network": RankerShape(query_width=171, cross_layers=3, rank=64, experts=1, hidden=(256, 128, 64)),
    "network": RankerShape(query_width=171, cross_layers=0, experts=1, hidden=(256, 128, 64)),
}


@dataclass(frozen=True, slots=True)
class Requests:
    """Feature rows: of items, of requests, and of the candidates of each."""

    table: FeatureTable
    item_row_I: np.ndarray
    query_row_R: np.ndarray
    row_RN: NDArray[np.int64]
    pair_row_RN: np.ndarray


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    asked = requests(items=2000, count=20) if bench.quick else requests(items=50_000, count=200)
    for form, shape in _FORMS.items():
        ranker = random_ranker(asked, shape)
        compiled = {
            kind: CompiledRanker(ranker, asked.table, asked.item_row_I, kind=kind)
            for kind in (("float32", "bfloat16") if halves_are_fast() else ("float32",))
        }
        expected_RNA = np.stack([eager(ranker, asked, r) for r in range(len(asked.query_row_R))])
        others = peers(bench, ranker, asked)
        for kind, each in compiled.items():
            note = quality(each, asked, expected_RNA)
            for name, run in others.items():
                bench.compare(f"{form}, {kind}", ours(each, asked), Side(name, run), unit="ms", note=note)
    if not halves_are_fast():
        bench.skip("bfloat16", "this processor has no products of such numbers")


def ours(compiled: CompiledRanker, asked: Requests) -> Side:
    query_row, row_N, pair_row_N = asked.query_row_R[:1], asked.row_RN[0], asked.pair_row_RN[0]
    return Side("compiled", lambda: compiled.logits(query_row, row_N, pair_row_N))


def peers(bench: Bench, ranker: Ranker, asked: Requests) -> dict[str, Callable[[], object]]:
    """Other ways to run it for the first request, by name."""
    x_NX = network_input(ranker, asked)
    network = Network(ranker).eval()
    found: dict[str, Callable[[], object]] = {
        "eager torch": lambda: eager(ranker, asked, 0),
        "eager torch, columns given": torch.inference_mode()(lambda: network(x_NX)),
    }
    if bench.installed("onnxruntime") and bench.installed("onnxscript"):
        found["ONNX Runtime, columns given"] = onnx_runtime(network, x_NX)
    if bench.installed("lightgbm"):
        found["LightGBM, 100 trees of 31"] = boosted(asked)
    return found


class Network(nn.Module):
    """What the ranker does with its columns."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        assert ranker.experts is not None
        self.crosses, self.experts, self.linear = ranker.crosses, ranker.experts, ranker.linear

    def forward(self, first_NX: Tensor) -> Tensor:
        x_NX = first_NX
        for cross in self.crosses:
            x_NX = cross(first_NX, x_NX)
        logit_NA: Tensor = self.linear(x_NX) + self.experts(x_NX)
        return logit_NA


def eager(ranker: Ranker, asked: Requests, r: int) -> NDArray[np.float32]:
    """Logits of one request, (N, A), as the ranker is trained."""
    with torch.inference_mode():
        half = ranker.query_half(tensors(asked.query_row_R[r], asked.table.of("query")))
        item = tensors(asked.item_row_I[asked.row_RN[r]], asked.table.of("item"))
        logit_NA: NDArray[np.float32] = ranker(
            half, item, tensors(asked.pair_row_RN[r], asked.table.of("pair"))
        ).numpy()
    return logit_NA


def network_input(ranker: Ranker, asked: Requests) -> Tensor:
    """The columns that the first request's candidates come to, (N, X)."""
    seen: list[Tensor] = []
    watch = ranker.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    crosses, ranker.crosses = ranker.crosses, nn.ModuleList()
    eager(ranker, asked, 0)
    ranker.crosses = crosses
    watch.remove()
    return seen[0].clone()


def onnx_runtime(network: nn.Module, x_NX: Tensor) -> Callable[[], object]:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(network, (x_NX.clone(),), path, dynamo=True, verbose=False)
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x_NX.numpy()}
    return lambda: session.run(None, given)


def boosted(asked: Requests) -> Callable[[], object]:
    """One model of 60 columns, as a gradient-boosted ranker of one action reads them."""
    lightgbm = import_module("lightgbm")
    random = np.random.default_rng(0)
    column_NX = random.random((20_000, 60), np.float32)
    label_N = column_NX @ random.normal(size=60) + random.normal(size=len(column_NX)) > 0
    told = {"objective": "binary", "num_leaves": 31, "num_threads": 1, "verbose": -1}
    model = lightgbm.train(told, lightgbm.Dataset(column_NX, label_N), 100)
    scored_NX = column_NX[: asked.row_RN.shape[1]]
    return lambda: model.predict(scored_NX, raw_score=True, num_threads=1)


def quality(compiled: CompiledRanker, asked: Requests, expected_RNA: NDArray[np.float32]) -> str:
    """How far the answers are from the trained ranker's, where clicks are drawn from what it says."""
    rows = zip(range(len(asked.query_row_R)), asked.row_RN, asked.pair_row_RN, strict=True)
    logit_RNA = np.stack([compiled.logits(asked.query_row_R[r : r + 1], row_N, pair_N) for r, row_N, pair_N in rows])
    gap = float(np.abs(_probability(logit_RNA) - _probability(expected_RNA)).max())
    gain_RN = np.random.default_rng(1).random(expected_RNA.shape[:2]) < _probability(expected_RNA[..., 0])
    request_N = np.repeat(np.arange(len(gain_RN)), gain_RN.shape[1])
    before, now = (
        ndcg_at(10, gain_RN.ravel(), all_RNA[..., 0].ravel(), request_N).mean for all_RNA in (expected_RNA, logit_RNA)
    )
    stored = compiled.half_I.dtype.itemsize
    return f"{stored:,} bytes an item; largest dp {gap:.1g}, NDCG@10 {before:.4f} {now - before:+.1e}"


def random_ranker(asked: Requests, shape: RankerShape) -> Ranker:
    """Every weight drawn, those of the heads too; the main action follows one time in twenty or so."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranker = Ranker(asked.table, shape).eval()
        assert ranker.experts is not None
        for weight in (ranker.linear.weight, ranker.experts.tower_AY):
            nn.init.normal_(weight, std=0.3)
        for name, weight in ranker.embed.named_parameters():
            if name.startswith("tables."):
                weight.data[1:].mul_(6)
        nn.init.constant_(ranker.linear.bias, -3.0)
    ranker.embed.fit_numbers(asked.query_row_R, asked.item_row_I, asked.pair_row_RN.ravel())
    ranker.embed.fit_ids(asked.query_row_R, asked.item_row_I)
    return ranker


def requests(*, items: int, count: int) -> Requests:
    """Of ids and numbers drawn at random; histories are full."""
    random = np.random.default_rng(0)
    table = table_of(items)
    item_row_I, query_row_R = drawn(table, "item", items, random), drawn(table, "query", count, random)
    past_RL = random.integers(items, size=(count, _LENGTH))
    for name in ("item", "category", "creator"):
        query_row_R[f"history_{name}"] = item_row_I["item_id" if name == "item" else name][past_RL]
    row_RN = np.stack([random.permutation(items)[:_CANDIDATES] for _ in range(count)])
    pair_row_RN = drawn(table, "pair", row_RN.size, random).reshape(row_RN.shape)
    return Requests(table, item_row_I, query_row_R, row_RN, pair_row_RN)


def table_of(items: int) -> FeatureTable:
    """8 ids and 4 lists of them in the query, 8 ids of the item, 40 numbers."""
    buckets = 1 << math.ceil(math.log2(2 * items))
    past = (_LENGTH,)
    features = [
        Feature("user_id", "user", "id", buckets, (2,), hashes=2),
        *[Feature(f"user_{n}", "user", "id", 50) for n in range(_IDS)],
        *[Feature(f"user_number_{n}", "user", "number") for n in range(10)],
        Feature("surface", "context", "id", 64),
        Feature("hour", "context", "id", 25),
        Feature("history_item", "history", "id", buckets, (_LENGTH, 2), hashes=2, shares="item_id"),
        Feature("history_category", "history", "id", 100, past, shares="category"),
        Feature("history_creator", "history", "id", buckets // 4, past, shares="creator"),
        Feature("history_action", "history", "id", 1 + len(_ACTIONS), past),
        Feature("history_log_hours", "history", "number", shape=past),
        Feature("item_id", "item", "id", buckets, (2,), hashes=2),
        Feature("category", "item", "id", 100),
        Feature("creator", "item", "id", buckets // 4),
        *[Feature(f"item_{n}", "item", "id", 50) for n in range(_IDS)],
        *[Feature(f"item_number_{n}", "item", "number") for n in range(15)],
        *[Feature(f"pair_number_{n}", "pair", "number") for n in range(14)],
    ]
    return FeatureTable(tuple(features), _ACTIONS, ())


def drawn(table: FeatureTable, kind: RowKind, count: int, random: np.random.Generator) -> np.ndarray:
    rows = table.empty(kind, count)
    for feature in table.of(kind):
        shape = (count, *feature.shape)
        rows[feature.name] = (
            random.integers(1, feature.size, shape) if feature.kind == "id" else random.normal(size=shape)
        )
    return rows


def _probability(logit: NDArray[np.float32]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logit.astype(np.float64)))


if __name__ == "__main__":
    main("ranker", measure, "500 candidates scored by the deep ranker")
