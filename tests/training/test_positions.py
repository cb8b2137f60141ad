"""Examples of several positives: one as of every place of their history."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from tower_cases import FAST, ITEM_ROWS, ITEMS, QUERY_ROWS, TABLE

from candidate_gen.embedding import tensors
from candidate_gen.history import HistoryKind
from candidate_gen.towers import Towers
from training.learning.batches import Batches, Examples
from training.learning.tower import TowerSettings, TowerTraining, train_towers

PLACES = TABLE["history_item"].shape[0]
COUNT = 300
ROWS = QUERY_ROWS[-COUNT:]
PAST = [feature.name for feature in TABLE.of("query") if feature.owner == "history" and feature.shape]


def several() -> np.ndarray:
    """Some positives as of each place that something came before."""
    random = np.random.default_rng(4)
    row_NP = random.integers(ITEMS, size=(COUNT, PLACES))
    row_NP[(random.random(row_NP.shape) < 0.3) | ~(ROWS["history_item"] > 0).any(-1)] = -1
    return row_NP


SEVERAL = several()


def examples(rows: np.ndarray, positive_row_NP: np.ndarray, weight_N: np.ndarray) -> Examples:
    return Examples(
        tensors(rows, TABLE.of("query")),
        torch.from_numpy(positive_row_NP),
        torch.from_numpy(weight_N.astype(np.float32)),
        torch.empty((len(rows), 0), dtype=torch.int64),
    )


def training(settings: TowerSettings, given: Examples) -> TowerTraining:
    torch.manual_seed(0)
    towers = Towers(TABLE, settings.shape, temperature=settings.temperature)
    with torch.no_grad():
        for weight in towers.query_tower.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    item = tensors(ITEM_ROWS, TABLE.of("item"))
    return TowerTraining(towers, settings, item=item, train=given, held_out=given, seed=3)


@pytest.mark.parametrize("kind", get_args(HistoryKind))
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_the_loss_of_all_places_is_that_of_one_at_a_time(
    kind: HistoryKind, softmax: Literal["full", "sampled"]
) -> None:
    shape = replace(FAST.shape, history=kind, heads=2, id_dropout=0.0, dropout=0.0)
    settings = replace(FAST, shape=shape, softmax=softmax, uniform_negatives=0, batch=5000)
    weight_N = np.random.default_rng(5).uniform(0.5, 2, COUNT)
    together = examples(ROWS, SEVERAL, weight_N)
    row_T, place_T = np.nonzero(SEVERAL >= 0)
    single = ROWS[row_T].copy()
    for name in PAST:
        for n, place in enumerate(place_T):
            single[name][n] = np.roll(single[name][n], -place, axis=0)
            single[name][n, PLACES - place :] = 0
    apart = examples(single, SEVERAL[row_T, place_T][:, None], weight_N[row_T])
    results = []
    for given in (together, apart):
        module = training(settings, given)
        (batch,) = Batches(given, size=5000, items=ITEMS)
        loss = module.loss(batch)
        torch.autograd.backward(loss)
        weights = dict(module.towers.named_parameters())
        gradients = {name: each.grad.to_dense() for name, each in weights.items() if each.grad is not None}
        results.append((float(loss.detach()), gradients))
    (one, found), (other, expected) = results
    assert one == pytest.approx(other, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], atol=1e-5), name


def test_every_pass_holds_each_positive_once_in_batches_of_about_the_size_asked_for() -> None:
    marked = examples(ROWS, np.where(SEVERAL >= 0, np.arange(SEVERAL.size).reshape(SEVERAL.shape), -1), np.ones(COUNT))
    all_rows = np.sort(marked.positive_row_NP[marked.positive_row_NP >= 0].numpy())
    orders = []
    for epoch in (0, 1, 0):
        batches = Batches(marked, size=40, items=SEVERAL.size, seed=(3, epoch))
        found = [batch.positive_row_W for batch in batches]
        assert len(found) == len(batches) == len(all_rows) // 40
        assert all(40 - PLACES < len(positives) < 40 + PLACES for positives in found)
        orders.append(torch.cat(found).tolist())
    assert orders[0] == orders[2] != orders[1]
    assert len(set(orders[0])) == len(orders[0])
    in_order = torch.cat([batch.positive_row_W for batch in Batches(marked, size=40, items=SEVERAL.size)])
    assert in_order.tolist() == all_rows.tolist()


def test_a_shuffled_pass_puts_examples_of_like_length_together() -> None:
    length_N = np.random.default_rng(6).integers(1, 33, size=2000)
    positive_row_NP = np.where(np.arange(32) < length_N[:, None], 0, -1)
    given = examples(np.resize(ROWS, 2000), positive_row_NP, np.ones(2000))
    padded = 0.0
    for batch in Batches(given, size=512, items=1, seed=(0, 0)):
        assert batch.as_of is not None
        row_B, place_B = batch.as_of
        padded += float((row_B.max() + 1) * (place_B.max() + 1)) / len(place_B)
    assert padded / len(Batches(given, size=512, items=1, seed=(0, 0))) < 1.3


def test_the_parts_of_a_batch_hold_it_between_them() -> None:
    given = examples(ROWS, SEVERAL, np.ones(COUNT))
    whole = list(Batches(given, size=64, items=ITEMS, seed=(1, 0)))
    parts = [list(Batches(given, size=64, items=ITEMS, seed=(1, 0), part=(n, 2))) for n in range(2)]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch.positive_row_W, one.positive_row_W)
        assert sorted(batch.own_B.tolist()) == sorted(one.own_B.tolist() + other.own_B.tolist())
        assert one.share + other.share == pytest.approx(2)
        for part in (one, other):
            assert part.as_of is not None
            assert int(part.as_of[0].max()) < len(part.query["user_id"])


def test_a_transformer_learns_from_all_places(tmp_path: Path) -> None:
    """The item after next follows from the last: a circle of 20 items, walked by all."""
    random = np.random.default_rng(7)
    start_N = random.integers(20, size=200)
    walk_NL = (start_N[:, None] + np.arange(PLACES + 1)) % 20
    rows = TABLE.empty("query", 200)
    rows["history_item"] = ITEM_ROWS["item_id"][walk_NL[:, PLACES - 1 :: -1]]
    positive_row_NP = walk_NL[:, :0:-1]
    settings = replace(
        FAST,
        shape=replace(FAST.shape, history="transformer", heads=2, id_dropout=0.0),
        softmax="full",
        epochs=8,
        validation=0.1,
    )
    _, metrics = train_towers(TABLE, ITEM_ROWS, rows, positive_row_NP, settings=settings, seed=0, folder=tmp_path)
    assert metrics["examples"] == 180 * PLACES
    assert metrics["recall@10"] > 0.95
    assert metrics["loss"] < 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"positive_row_N": np.zeros((COUNT, PLACES + 1), np.int64)}, "positives as of 5 places of histories of 4"),
        ({"hard_row_NH": np.zeros((COUNT, 1), np.int64)}, "hard negatives are of one positive each"),
        ({"positive_row_N": np.full((COUNT, 2), -2)}, "600 of 600 positives are not among the 80 items"),
    ],
)
def test_positives_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    given = {"positive_row_N": SEVERAL} | changed
    with pytest.raises(ValueError, match=message):
        train_towers(TABLE, ITEM_ROWS, ROWS, **given, settings=FAST, seed=0, folder=tmp_path)


def test_a_batch_too_small_for_one_example_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 3 positives cannot hold an example of 4"):
        Batches(examples(ROWS, np.abs(SEVERAL), np.ones(COUNT)), size=3, items=ITEMS)
