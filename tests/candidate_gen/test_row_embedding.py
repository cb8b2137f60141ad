"""Rows embedded without torch beside the embedder that is trained."""

import numpy as np
import pytest
import torch
from retrieval_cases import DAY_MS, random_query_rows, small_item_rows, small_table

from candidate_gen.embedding import FeatureEmbedder, tensors
from candidate_gen.features import RowKind, pair_rows
from candidate_gen.row_embedding import PastEmbedding, RowEmbedding

TABLE = small_table()
ITEM_ROWS = small_item_rows(TABLE, 60)
QUERIES = random_query_rows(TABLE, ITEM_ROWS, 40)
PAST = ("history_item", "history_category", "history_creator", "history_action")
HOURS = "history_log_hours"


def rows_of(kind: RowKind) -> np.ndarray:
    if kind == "query":
        return QUERIES.copy()
    if kind == "item":
        return ITEM_ROWS.copy()
    query_row_N = QUERIES[np.arange(len(ITEM_ROWS)) % len(QUERIES)]
    return pair_rows(TABLE, query_row_N, ITEM_ROWS, age_ms_N=np.arange(len(ITEM_ROWS)) * DAY_MS)


def embedder(*, fitted: bool) -> FeatureEmbedder:
    """Of random weights, those of padding too; half of what there is was seen in training."""
    torch.manual_seed(0)
    embed = FeatureEmbedder(TABLE, "query", "item", "pair", dim=8)
    for weight in embed.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape))
    if fitted:
        seen = [rows_of(kind)[: len(rows_of(kind)) // 2] for kind in ("query", "item", "pair")]
        embed.fit_numbers(*seen)
        embed.fit_ids(*seen)
    return embed


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("kind", ["query", "item", "pair"])
def test_rows_become_what_the_trained_embedder_makes_of_them(kind: RowKind, fitted: bool) -> None:
    embed, rows = embedder(fitted=fitted), rows_of(kind)
    names = [feature.name for feature in TABLE.of(kind)][::-1]
    with torch.inference_mode():
        expected = embed(tensors(rows, TABLE.of(kind)), names).numpy()
    rows.flags.writeable = False
    made = RowEmbedding(embed, TABLE, kind, names)
    np.testing.assert_allclose(made(rows), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(made(rows[7:8]), made(rows)[7:8])
    assert made(rows[:0]).shape == (0, embed.width_of(names)) == (0, made.width)


def test_an_id_beyond_its_table_counts_as_unknown() -> None:
    embed = embedder(fitted=False)
    rows = rows_of("item")[:4]
    rows["creator"] = [0, TABLE["creator"].size, -3, 2**31 - 1]
    rows["item_id"][:, 1] = [5, 5, -1, TABLE["item_id"].size]
    rows["title"] = 0
    rows["title"][1:, 0] = [3, -2, TABLE["title"].size]
    creator = RowEmbedding(embed, TABLE, "item", ["creator"])(rows)
    assert (creator == creator[0]).all()
    item_id = RowEmbedding(embed, TABLE, "item", ["item_id"])(rows)
    np.testing.assert_array_equal(item_id[2], item_id[3])
    np.testing.assert_allclose(item_id[2], 2 * embed.get_parameter("tables.item_id.weight").detach()[0], rtol=1e-6)
    title = RowEmbedding(embed, TABLE, "item", ["title"])(rows)
    assert title[1].any()
    assert not title[[0, 2, 3]].any()


def test_a_history_is_embedded_entry_by_entry_without_its_padding() -> None:
    embed, rows = embedder(fitted=True), rows_of("query")
    rows["history_item"][::3, 1] = 0
    past = PastEmbedding(embed, TABLE, PAST, [HOURS])
    columns = tensors(rows, TABLE.of("query"))
    with torch.inference_mode():
        hours = embed.standardise(HOURS, columns[HOURS])[..., None]
        expected = torch.cat([*(embed.embed(name, columns[name]) for name in PAST), hours], -1).numpy()
    filled_BL = np.any(rows["history_item"] > 0, axis=2)
    assert {0, past.length} <= set(filled_BL.sum(1).tolist())
    for b, filled_L in enumerate(filled_BL):
        place_L, entry_LX = past(rows[b : b + 1])
        assert np.array_equal(place_L, np.flatnonzero(filled_L))
        np.testing.assert_allclose(entry_LX, expected[b][filled_L], rtol=0, atol=1e-6)
