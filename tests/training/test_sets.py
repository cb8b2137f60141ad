import numpy as np
import pytest
import torch

from training.learning.batches import Examples
from training.learning.sets import SetBatches, Sets

QUERY_OF_N = np.array([7, 3, 7, 3, 9, 7, 5])
ITEM_N = np.array([0, 1, 2, 3, 4, 5, 6])


def examples() -> Examples:
    query = torch.from_numpy(QUERY_OF_N)
    return Examples(
        {"user_id": query.to(torch.int32), "hours": torch.stack([query.float(), -query.float()], 1)},
        torch.from_numpy(ITEM_N)[:, None],
        torch.from_numpy(ITEM_N).float() + 1,
        torch.empty((len(ITEM_N), 0), dtype=torch.int64),
    )


def told(batches: SetBatches) -> list[dict[int, dict[int, float]]]:
    """Of each batch: by user the weights of their positives."""
    found = []
    for batch in batches:
        users = batch.query["user_id"].tolist()
        assert torch.equal(batch.query["hours"][:, 0], batch.query["user_id"].float())
        assert torch.equal(batch.query_P, batch.query_P.sort().values)
        of_user: dict[int, dict[int, float]] = {user: {} for user in users}
        for query, item, weight in zip(batch.query_P, batch.item_row_P, batch.weight_P, strict=True):
            of_user[users[int(query)]][int(item)] = float(weight)
        found.append(of_user)
    return found


EXPECTED = {7: {0: 1.0, 2: 3.0, 5: 6.0}, 3: {1: 2.0, 3: 4.0}, 9: {4: 5.0}, 5: {6: 7.0}}


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_pass_holds_each_query_once_with_all_its_positives(size: int) -> None:
    batches = SetBatches(Sets.of(examples()), size=size, seed=(0, 0))
    found = told(batches)
    assert len(found) == len(batches)
    assert sum(len(each) for each in found) == len(EXPECTED)
    assert {user: items for each in found for user, items in each.items()} == EXPECTED


def test_the_seed_alone_gives_the_order() -> None:
    def passes(seed: tuple[int, int]) -> list[dict[int, dict[int, float]]]:
        return told(SetBatches(Sets.of(examples()), size=2, seed=seed))

    assert passes((0, 1)) == passes((0, 1))
    assert len({str(passes((0, epoch))) for epoch in range(8)}) > 1


def test_the_parts_of_processes_make_up_the_batches() -> None:
    sets = Sets.of(examples())
    whole = list(SetBatches(sets, size=4, seed=(0, 0)))
    parts = [list(SetBatches(sets, size=4, seed=(0, 0), part=(process, 2))) for process in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 1
    for batch, *mine in zip(whole, *parts, strict=True):
        users = torch.cat([each.query["user_id"] for each in mine])
        assert torch.equal(users.sort().values, batch.query["user_id"].sort().values)
        assert sum(float(each.share) for each in mine) / 2 == pytest.approx(1)
        for each in mine:
            assert each.share == pytest.approx(2 * float(each.weight_P.sum() / batch.weight_P.sum()))
            assert torch.equal(each.positive_row_W, batch.positive_row_W)
