"""Trains on the small world of `tower_cases`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tower_cases import EXAMPLES, FAST, ITEM_ROWS, ITEMS, POSITIVE_ROWS, QUERY_ROWS, TABLE, item_rows

from candidate_gen.embedding import tensors
from candidate_gen.losses import mixture_log_q, sampled_softmax
from candidate_gen.towers import Towers
from training.learning import tower
from training.learning.batches import Batches, Examples
from training.learning.tower import TowerSettings, TowerTraining, train_towers


def trained(folder: Path, *, settings: TowerSettings = FAST, seed: int = 0) -> tuple[Towers, dict[str, float]]:
    return train_towers(TABLE, ITEM_ROWS, QUERY_ROWS, POSITIVE_ROWS, settings=settings, seed=seed, folder=folder)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Towers, dict[str, float], Path]:
    folder = tmp_path_factory.mktemp("towers")
    return *trained(folder), folder


def test_it_finds_what_each_user_likes_better_than_popularity_does(
    result: tuple[Towers, dict[str, float], Path],
) -> None:
    _, metrics, _ = result
    train, held_out = POSITIVE_ROWS[: EXAMPLES * 9 // 10], POSITIVE_ROWS[EXAMPLES * 9 // 10 :]
    popular = np.argsort(-np.bincount(train, minlength=ITEMS))[:10]
    assert metrics["recall@10"] > 1.5 * float(np.isin(held_out, popular).mean())
    assert metrics["recall@10"] <= metrics["recall@50"] <= metrics["recall@100"] == 1.0
    assert metrics["examples"] == EXAMPLES * 9 // 10
    assert metrics["held_out"] == EXAMPLES // 10
    assert metrics["examples_per_s"] > 0
    assert metrics["loss"] < np.log(ITEMS)


def test_a_new_item_lands_near_its_kind(result: tuple[Towers, dict[str, float], Path]) -> None:
    towers, _, _ = result
    old_ID = towers.encode_items(ITEM_ROWS)
    new_ID = towers.encode_items(item_rows(TABLE, range(1000, 1040)))
    centre_CD = np.stack([old_ID[kind::4].mean(0) for kind in range(4)])
    nearest = (new_ID @ centre_CD.T).argmax(1)
    assert nearest.tolist() == [n % 4 for n in range(1000, 1040)]


def test_the_same_data_and_seed_give_the_same_weights_bit_by_bit(
    result: tuple[Towers, dict[str, float], Path], tmp_path: Path
) -> None:
    towers, metrics, _ = result
    torch.manual_seed(99)
    again, same = trained(tmp_path)
    assert again.fingerprint == towers.fingerprint
    assert {**same, "examples_per_s": 0} == {**metrics, "examples_per_s": 0}


def test_another_seed_gives_other_weights(result: tuple[Towers, dict[str, float], Path], tmp_path: Path) -> None:
    once = replace(FAST, epochs=1)
    assert trained(tmp_path / "a", settings=once, seed=1)[0].fingerprint != (
        trained(tmp_path / "b", settings=once, seed=2)[0].fingerprint
    )


def test_a_learned_temperature_moves_where_the_loss_is_less(tmp_path: Path) -> None:
    wide = replace(FAST, temperature=1.0)
    towers, metrics = trained(tmp_path / "learned", settings=replace(wide, temperature_learned=True))
    fixed, of_fixed = trained(tmp_path / "fixed", settings=wide)
    assert fixed.temperature == 1.0
    assert towers.temperature == metrics["temperature"] < 0.9
    assert metrics["loss"] < of_fixed["loss"]


def test_inner_products_of_vectors_of_any_length_learn_too(tmp_path: Path) -> None:
    dot = replace(FAST, shape=replace(FAST.shape, similarity="dot"), temperature=1.0)
    towers, metrics = trained(tmp_path, settings=dot)
    length_I = np.linalg.norm(towers.encode_items(ITEM_ROWS), axis=1)
    assert np.ptp(length_I) > 0.1
    assert metrics["recall@10"] > 0.5


def test_training_leaves_chance_and_switches_of_torch_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(tmp_path, settings=replace(FAST, epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_logs_and_checkpoints_are_in_the_folder_and_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, settings=replace(FAST, epochs=2))
    header, *lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert {"epoch", "loss_epoch", "recall@10"} <= set(header.split(","))
    assert lines
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt"}
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_training_twice_into_one_folder_is_no_error(tmp_path: Path) -> None:
    once = replace(FAST, epochs=1)
    assert trained(tmp_path, settings=once)[0].fingerprint == trained(tmp_path, settings=once)[0].fingerprint


def test_patience_gives_back_the_best_epoch(tmp_path: Path) -> None:
    # So large a step ruins the towers soon after a good start.
    settings = replace(FAST, epochs=12, patience=2, learning_rate=0.5)
    towers, metrics = trained(tmp_path, settings=settings)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    kept = {name.removeprefix("towers."): value for name, value in best["state_dict"].items()}
    assert all(torch.equal(value, kept[name]) for name, value in towers.state_dict().items())
    lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("recall@50")
    seen = [float(cell) for line in lines[1:] if (cell := line.split(",")[column])]
    assert metrics["recall@50"] == pytest.approx(max(seen))


def test_full_softmax_learns_too(tmp_path: Path, result: tuple[Towers, dict[str, float], Path]) -> None:
    _, metrics = trained(tmp_path, settings=replace(FAST, softmax="full"))
    assert metrics["recall@10"] > 0.8 * result[1]["recall@10"]


def test_without_validation_everything_is_trained_on(tmp_path: Path) -> None:
    _, metrics = trained(tmp_path, settings=replace(FAST, epochs=1, validation=0.0))
    assert metrics["examples"] == EXAMPLES
    assert "recall@10" not in metrics


def test_a_heavier_example_is_learned_more(tmp_path: Path) -> None:
    heavy = POSITIVE_ROWS % 4 == 0
    weight_N = np.where(heavy, 30.0, 0.01).astype(np.float32)
    once = replace(FAST, epochs=2, validation=0.0)
    scores = []
    for name, weights in (("even", None), ("heavy", weight_N)):
        towers, _ = train_towers(
            TABLE,
            ITEM_ROWS,
            QUERY_ROWS,
            POSITIVE_ROWS,
            weight_N=weights,
            settings=once,
            seed=0,
            folder=tmp_path / name,
        )
        query_BD = towers.encode_queries(QUERY_ROWS[~heavy])
        score_B = (query_BD * towers.encode_items(ITEM_ROWS)[POSITIVE_ROWS[~heavy]]).sum(1)
        scores.append(float(score_B.mean()))
    assert scores[1] < scores[0]


def small_training(settings: TowerSettings) -> tuple[TowerTraining, Examples]:
    examples = Examples(
        tensors(QUERY_ROWS, TABLE.of("query")),
        torch.from_numpy(POSITIVE_ROWS[:, None]),
        torch.ones(EXAMPLES),
        torch.empty((EXAMPLES, 0), dtype=torch.int64),
    )
    torch.manual_seed(0)
    towers = Towers(TABLE, replace(settings.shape, id_dropout=0.0), temperature=settings.temperature)
    item = tensors(ITEM_ROWS, TABLE.of("item"))
    training = TowerTraining(towers, settings, item=item, train=examples, held_out=examples, seed=3)
    return training, examples


def test_the_correction_is_the_exact_share_of_the_positives_mixed_with_the_uniform_draws() -> None:
    training, examples = small_training(FAST)
    batch = next(iter(Batches(examples, size=32, items=ITEMS, uniform=FAST.uniform_negatives, seed=(3, 0))))
    assert int(batch.count_S.sum()) == 32 + FAST.uniform_negatives
    share_I = torch.from_numpy(np.bincount(POSITIVE_ROWS, minlength=ITEMS) / EXAMPLES).float()
    log_q_I = mixture_log_q(share_I.log(), batch=32, uniform=FAST.uniform_negatives, items=ITEMS)
    item_ID = torch.from_numpy(training.towers.encode_items(ITEM_ROWS))
    expected = sampled_softmax(
        training.towers.query_vectors(batch.query),
        item_ID[batch.item_row_C],
        own_B=batch.own_B,
        count_S=batch.count_S,
        log_q_S=log_q_I[batch.item_row_C],
        temperature=FAST.temperature,
    )
    assert float(training.loss(batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("changed", [{}, {"softmax": "full"}, {"shares": "streamed"}, {"positive_temperature": 0.12}])
@pytest.mark.parametrize("large", [1, 1 << 30])
def test_every_parameter_gets_a_gradient_dense_or_by_rows(
    changed: dict[str, Any], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower, "_LARGE_TABLE", large)
    training, examples = small_training(replace(FAST, **changed))
    for batch in Batches(examples, size=64, items=ITEMS, uniform=16, seed=(3, 0)):
        torch.autograd.backward(training.loss(batch))
    unmoved = []
    for name, weight in training.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.is_sparse == (large == 1 and "softmax" not in changed and ".tables." in name), name
        if not weight.grad.to_dense().any():
            unmoved.append(name)
    # The small world has no creators.
    assert unmoved == ["towers.embedder.tables.creator.weight"]


def test_tables_trained_by_rows_learn_as_well(
    tmp_path: Path, result: tuple[Towers, dict[str, float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower, "_LARGE_TABLE", 1)
    _, metrics = trained(tmp_path)
    assert metrics["recall@10"] > 0.9 * result[1]["recall@10"]


@pytest.mark.parametrize("changed", [{"shares": "streamed"}, {"positive_temperature": 0.12}])
def test_other_losses_learn_as_well(
    changed: dict[str, Any], tmp_path: Path, result: tuple[Towers, dict[str, float], Path]
) -> None:
    _, metrics = trained(tmp_path, settings=replace(FAST, **changed))
    assert metrics["recall@10"] > 0.9 * result[1]["recall@10"]


def test_what_was_shown_and_not_taken_is_in_the_loss_drawn_or_not() -> None:
    training, examples = small_training(FAST)
    hard_row_NH = torch.from_numpy(np.random.default_rng(0).integers(-1, ITEMS, (EXAMPLES, 3)))
    shown = replace(examples, hard_row_NH=hard_row_NH)
    batch = next(iter(Batches(shown, size=EXAMPLES, items=ITEMS, seed=(3, 0))))
    order_N = np.random.default_rng((3, 0)).permutation(EXAMPLES)
    assert torch.equal(torch.where(batch.hard_BH < 0, -1, batch.item_row_C[batch.hard_BH]), hard_row_NH[order_N])
    assert len(set(batch.item_row_C.tolist())) == len(batch.item_row_C)
    few, batch = (next(iter(Batches(each, size=8, items=ITEMS, seed=(3, 0)))) for each in (examples, shown))
    assert len(few.item_row_C) == len(batch.count_S) < len(batch.item_row_C)
    assert float(training.loss(batch).detach()) != pytest.approx(float(training.loss(few).detach()), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16_loss", "bfloat16"])
def test_a_gpu_learns_as_well(
    precision: Any, tmp_path: Path, result: tuple[Towers, dict[str, float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower, "_LARGE_TABLE", TABLE["item_id"].size)
    _, metrics = trained(tmp_path, settings=replace(FAST, accelerator="cuda", precision=precision))
    assert metrics["recall@10"] > 0.9 * result[1]["recall@10"]


def test_every_epoch_passes_each_example_once_in_an_order_of_its_own() -> None:
    _, examples = small_training(FAST)
    marked = replace(examples, weight_N=torch.arange(EXAMPLES).float())
    epochs = []
    for epoch in (0, 1, 0):
        batches = Batches(marked, size=60, items=ITEMS, seed=(3, epoch))
        assert len(list(batches)) == len(batches) == EXAMPLES // 60
        epochs.append(torch.cat([batch.weight_B for batch in batches]).tolist())
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(EXAMPLES))
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]


def test_a_shuffled_pass_leaves_out_an_incomplete_batch_and_one_in_order_does_not() -> None:
    _, examples = small_training(FAST)
    shuffled = Batches(examples, size=500, items=ITEMS, seed=(0, 0))
    assert [len(batch.weight_B) for batch in shuffled] == [500, 500]
    in_order = list(Batches(examples, size=500, items=ITEMS))
    positive_row_N = torch.cat([batch.item_row_C[batch.own_B] for batch in in_order])
    assert torch.equal(positive_row_N, examples.positive_row_NP[:, 0])
    alone = list(Batches(examples, size=5000, items=ITEMS, seed=(0, 0)))
    assert [len(batch.weight_B) for batch in alone] == [EXAMPLES]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"positive_row_N": np.empty(0, np.int64), "query_row_N": QUERY_ROWS[:0]}, "0 of 0 positives are left"),
        ({"query_row_N": QUERY_ROWS[:7]}, "7 query rows for 1200 positives"),
        ({"item_row_I": ITEM_ROWS[:8]}, "positives are not among the 8 items"),
        ({"positive_row_N": np.where(np.arange(EXAMPLES) < 3, -1, POSITIVE_ROWS)}, "3 of 1200 positives are not among"),
        ({"weight_N": np.ones(5, np.float32)}, "5 of 5 weights are above 0 and finite; 1200 are needed"),
        ({"weight_N": np.zeros(EXAMPLES, np.float32)}, "0 of 1200 weights are above 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_both_numbers(
    changed: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    arguments = {"item_row_I": ITEM_ROWS, "query_row_N": QUERY_ROWS, "positive_row_N": POSITIVE_ROWS} | changed
    with pytest.raises(ValueError, match=message):
        train_towers(TABLE, **arguments, settings=FAST, seed=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch", 1),
        ("uniform_negatives", -1),
        ("softmax", "half"),
        ("learning_rate", 0.0),
        ("validation", 1.0),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        TowerSettings(**{field: value})  # type: ignore[arg-type]


def test_one_of_two_temperatures_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="temperature_learned is true"):
        replace(FAST, positive_temperature=0.12, temperature_learned=True)


def test_patience_without_validation_is_refused() -> None:
    with pytest.raises(ValueError, match="patience is 3 but validation is 0"):
        TowerSettings(patience=3, validation=0.0)
