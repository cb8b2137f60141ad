"""Every encoder on histories of every length, gaps included."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from retrieval_cases import random_query_rows, small_item_rows, small_table
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import FeatureEmbedder, tensors
from candidate_gen.history import AsOf, Block, HistoryKind, history_encoder
from candidate_gen.towers import Towers, TowerShape

TABLE = small_table()
ITEM_ROWS = small_item_rows(TABLE, 60)
PAST = tuple(feature for feature in TABLE.of("query") if feature.owner == "history" and feature.shape)
PLACES = PAST[0].shape[0]
KINDS: tuple[HistoryKind, ...] = get_args(HistoryKind)
DIM = 8


def query_rows(count: int = 60) -> np.ndarray:
    rows = random_query_rows(TABLE, ITEM_ROWS, count, seed=1)
    for feature in PAST:
        rows[feature.name][::3, 1] = 0
    return rows


ROWS = query_rows()
HELD: NDArray[np.bool_] = np.any(ROWS["history_item"] > 0, axis=-1)


class Encoding:
    """An encoder whose every weight was drawn, with the embeddings it reads."""

    def __init__(self, kind: HistoryKind, *, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.embedder = FeatureEmbedder(TABLE, "query", "item", dim=DIM)
        self.encoder = history_encoder(kind, PAST, dim=DIM, heads=2, blocks=2, dropout=dropout)
        with torch.no_grad():
            for weight in [*self.encoder.parameters(), *self.embedder.parameters()]:
                weight.add_(0.3 * torch.randn_like(weight))
            for table in self.embedder.tables.values():
                assert isinstance(table, nn.Embedding)
                table.weight[0] = 0

    def __call__(self, rows: np.ndarray, as_of: AsOf | None = None) -> Tensor:
        columns = tensors(rows, TABLE.of("query"))
        with torch.no_grad():
            found: Tensor = self.encoder(columns, self.embedder, as_of)
        return found


def every_place(rows: np.ndarray) -> AsOf:
    row_T, place_T = torch.meshgrid(torch.arange(len(rows)), torch.arange(PLACES), indexing="ij")
    return row_T.flatten(), place_T.flatten()


def shifted(rows: np.ndarray, places: int) -> np.ndarray:
    """As the rows were before the newest entries came."""
    past = rows.copy()
    for feature in PAST:
        past[feature.name] = 0
        past[feature.name][:, : PLACES - places] = rows[feature.name][:, places:]
    return past


@pytest.mark.parametrize("kind", KINDS)
def test_as_of_a_place_is_what_the_history_gave_then(kind: HistoryKind) -> None:
    encode = Encoding(kind)
    found_BPW = encode(ROWS, every_place(ROWS)).view(len(ROWS), PLACES, -1)
    for place in range(PLACES):
        assert torch.allclose(found_BPW[:, place], encode(shifted(ROWS, place)), atol=1e-5)
    assert torch.allclose(found_BPW[:, 0], encode(ROWS), atol=1e-6)
    assert found_BPW.shape[-1] == encode.encoder.width


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_entry_never_changes_an_earlier_state(kind: HistoryKind) -> None:
    encode = Encoding(kind)
    before = encode(ROWS, every_place(ROWS)).view(len(ROWS), PLACES, -1)
    other = ROWS.copy()
    for feature in PAST:
        other[feature.name][:, :2] = ROWS[feature.name][::-1, :2]
    after = encode(other, every_place(ROWS)).view(len(ROWS), PLACES, -1)
    assert torch.allclose(before[:, 2:], after[:, 2:], atol=1e-6)
    assert (before[:, 0] - after[:, 0]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_the_other_queries_of_a_batch_matter(kind: HistoryKind) -> None:
    encode = Encoding(kind)
    empty = ~HELD
    dirty = ROWS.copy()
    dirty["history_log_hours"][empty] = 99
    dirty["history_action"][empty] = 1
    together = encode(dirty)
    for row in range(0, len(ROWS), 7):
        assert torch.allclose(encode(ROWS[row : row + 1])[0], together[row], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_does_not_count(kind: HistoryKind) -> None:
    full = ROWS[HELD.all(axis=1)]
    assert len(full) > 3
    gap = full.copy()
    closed = full.copy()
    for feature in PAST:
        gap[feature.name][:, 2] = 0
        closed[feature.name][:, 2:-1] = full[feature.name][:, 3:]
        closed[feature.name][:, -1] = 0
    encode = Encoding(kind)
    assert torch.allclose(encode(gap), encode(closed), atol=1e-6) == (kind != "attention")
    assert torch.isfinite(encode(gap)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_without_entries_gives_zeros(kind: HistoryKind) -> None:
    encode = Encoding(kind)
    empty = TABLE.empty("query", 3)
    assert not encode(empty).any()
    assert encode(empty[:0]).shape == (0, encode.encoder.width)
    mixed = np.concatenate([ROWS[:5], empty])
    assert not encode(mixed)[5:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_order_matters_but_to_the_mean(kind: HistoryKind) -> None:
    full = ROWS[HELD.all(axis=1)]
    turned = full.copy()
    for feature in PAST:
        turned[feature.name] = full[feature.name][:, ::-1]
    encode = Encoding(kind)
    apart = (encode(full) - encode(turned)).abs().amax(1)
    assert bool((apart > 1e-3).all()) == (kind != "mean")
    assert bool((apart < 1e-5).all()) == (kind == "mean")


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_receives_a_gradient_from_all_places(kind: HistoryKind) -> None:
    encode = Encoding(kind, dropout=0.1)
    columns: Mapping[str, Tensor] = tensors(ROWS, TABLE.of("query"))
    encode.encoder.train()
    found = encode.encoder(columns, encode.embedder, every_place(ROWS))
    torch.autograd.backward((found * torch.randn_like(found)).sum())
    without = [
        name for name, weight in encode.encoder.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("kind", KINDS)
def test_towers_serve_one_by_one_what_training_computes_as_of_all_places(kind: HistoryKind, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = TowerShape(width=16, embedding=DIM, hidden=12, heads=2, history=kind, dropout=0.3)
    towers = Towers(TABLE, shape, temperature=0.1).eval()
    towers.embedder.fit_ids(ROWS, ITEM_ROWS)
    towers.embedder.fit_numbers(ROWS, ITEM_ROWS)
    with torch.no_grad():
        for weight in towers.query_tower.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        trained_TD = towers.query_vectors(tensors(ROWS, TABLE.of("query")), every_place(ROWS)).numpy()
    towers.save(tmp_path)
    served = Towers.load(tmp_path, TABLE)
    assert served.shape == shape
    for row, place in ((0, 0), (3, 1), (7, 0), (11, 2), (20, 4), (41, 3)):
        served_D = served.encode_queries(shifted(ROWS[row : row + 1], place))[0]
        assert np.abs(served_D - trained_TD[row * PLACES + place]).max() < 1e-5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"history": "sum"}, "history is 'sum'; it must be one of mean, attention, transformer"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ({"blocks": 0}, "blocks is 0; it must be at least 1"),
        ({"history": "transformer", "embedding": 6}, "heads is 4; with a transformer it must divide embedding, 6"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TowerShape(**changed)


def test_dropout_is_of_training_alone() -> None:
    encode = Encoding("transformer", dropout=0.5)
    encode.encoder.train()
    assert not torch.equal(encode(ROWS), encode(ROWS))
    encode.encoder.eval()
    assert torch.equal(encode(ROWS), encode(ROWS))


def test_a_block_is_attention_over_what_came_before_by_content_and_distance() -> None:
    torch.manual_seed(2)
    block = Block(4, heads=2, places=9, dropout=0.0)
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
        state_LE = torch.randn(5, 4)
        parts = block.attention_in(block.attention_norm(state_LE)).view(5, 3, 2, 2)
        mixed_LE = torch.zeros(5, 4)
        for head in range(2):
            for i in range(5):
                logits = [
                    parts[i, 0, head] @ parts[j, 1, head] / 2**0.5 + block.bias_HL[head, i - j] for j in range(i + 1)
                ]
                share = torch.softmax(torch.stack(logits), 0)
                mixed_LE[i, 2 * head : 2 * head + 2] = sum(s * parts[j, 2, head] for j, s in enumerate(share))
        added_LE = state_LE + block.attention_out(mixed_LE)
        norm, inner, _, outer = block.network
        normal_LE = norm(added_LE)
        expected_LE = added_LE + outer(functional.gelu(inner(normal_LE)))
        assert torch.allclose(block(state_LE[None])[0], expected_LE, atol=1e-5)
