"""The estimators beside obp 0.5.7, on inputs without chance and on the Open Bandit data.

Numbers are what obp's own classes return for the same arrays. obp has no `mrdr` (it weighs the rows of a regression)
and no pseudo-inverse; `test_ope.py` and `test_ope_slates.py` hold those against their definitions.

Shape letters: N rows, K slots, A actions.
"""

import math
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from policy import ope
from policy.ope import InsufficientOverlap, diagnose, faults, require_overlap

N, A, K = 40, 5, 3


def spread(*shape: int, start: int) -> NDArray[np.float64]:
    """Evenly spread numbers in [0, 1) without chance, the same everywhere: a Weyl sequence."""
    number = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    spread_: NDArray[np.float64] = ((start + number) * 0.6180339887498949 % 1).reshape(shape)
    return spread_


def test_estimators_of_single_actions_return_what_obp_returns() -> None:
    logged_NA, target_NA = 0.05 + spread(N, A, start=0), spread(N, A, start=1000) ** 3
    logged_NA /= logged_NA.sum(axis=1, keepdims=True)
    target_NA /= target_NA.sum(axis=1, keepdims=True)
    row_N = np.arange(N)
    action_N = (row_N * 7 + row_N // 3) % A
    reward_N, predicted_NA = spread(N, start=2000), spread(N, A, start=3000)
    logged_N, target_N = logged_NA[row_N, action_N], target_NA[row_N, action_N]
    best_N = (target_NA == target_NA.max(axis=1, keepdims=True))[row_N, action_N].astype(np.float64)
    modelled = (reward_N, action_N, logged_N, target_NA, predicted_NA)
    values = {
        "ips": ope.ips(reward_N, logged_N, target_N),
        "ips, clipped": ope.ips(reward_N, logged_N, target_N, clip=1.5),
        "snips": ope.snips(reward_N, logged_N, target_N),
        "dm": ope.dm(*modelled),
        "dr": ope.dr(*modelled),
        "sndr": ope.sndr(*modelled),
        "switch_dr": ope.switch_dr(*modelled, threshold=1.5),
        "dr_os": ope.dr_os(*modelled, lam=2.0),
        "dr_os, not shrunk": ope.dr_os(*modelled, lam=math.inf),
        "replay": ope.replay(reward_N, logged_N, best_N),
    }
    assert {name: each.value for name, each in values.items()} == pytest.approx(
        {
            "ips": 0.3331841552181407,
            "ips, clipped": 0.3084360285069637,
            "snips": 0.4650238307469327,
            "dm": 0.6546308887521318,
            "dr": 0.574039803076178,
            "sndr": 0.5421502236360197,
            "switch_dr": 0.5981056946896265,
            "dr_os": 0.6121700265076518,
            "dr_os, not shrunk": 0.574039803076178,
            "replay": 0.4007932297872969,
        },
        abs=1e-12,
    )


def test_estimators_of_slates_return_what_obp_returns() -> None:
    reward_NK = spread(N, K, start=4000)
    logged_NK = np.cumprod(0.2 + 0.7 * spread(N, K, start=5000), axis=1)
    target_NK = np.cumprod(0.1 + 0.8 * spread(N, K, start=6000), axis=1)
    marginal = (0.2 + 0.7 * spread(N, K, start=7000), 0.1 + 0.8 * spread(N, K, start=8000))
    model_NKA, target_NKA = spread(N, K, A, start=9000), 0.05 + spread(N, K, A, start=10000)
    target_NKA /= target_NKA.sum(axis=2, keepdims=True)
    action_NK = (np.arange(N)[:, None] * 3 + np.arange(K) * 2) % A
    predicted_NK = np.take_along_axis(model_NKA, action_NK[:, :, None], axis=2)[:, :, 0]
    joint, prefix = (logged_NK[:, -1], target_NK[:, -1]), (logged_NK, target_NK)
    values = {
        "sips": ope.sips(reward_NK, *joint),
        "sn_sips": ope.sn_sips(reward_NK, *joint),
        "iips": ope.iips(reward_NK, *marginal),
        "sn_iips": ope.sn_iips(reward_NK, *marginal),
        "rips": ope.rips(reward_NK, *prefix),
        "sn_rips": ope.sn_rips(reward_NK, *prefix),
        "cascade_dr": ope.cascade_dr(reward_NK, *prefix, predicted_NK, (model_NKA * target_NKA).sum(axis=2)),
    }
    assert {name: each.value for name, each in values.items()} == pytest.approx(
        {
            "sips": 1.0404049920227787,
            "sn_sips": 1.4870365159133394,
            "iips": 1.3301421087602778,
            "sn_iips": 1.4832513628529809,
            "rips": 1.1797869140227044,
            "sn_rips": 1.5058679271872801,
            "cascade_dr": 1.6328114015781263,
        },
        abs=1e-12,
    )


# Of 10^6 slates drawn by obp 0.5.7's BernoulliTS(campaign="men", is_zozotown_prior=True, random_state=12345), how
# many held each item in each position: its `compute_batch_action_dist(n_sim=1_000_000)` before division.
THOMPSON_PI = np.array([
    [45913, 4180, 32654, 13774, 764, 2585, 35972, 16790, 16606, 33494, 4040, 807, 453, 286488, 17938, 3308, 4527,
     9002, 53435, 16047, 1987, 39858, 64701, 153895, 2894, 359, 32420, 21740, 2903, 25322, 1968, 28584, 4568, 20024],
    [45969, 3052, 40989, 32546, 515, 1752, 56483, 21386, 15082, 44374, 7775, 915, 578, 314215, 17731, 2352, 2379,
     9128, 22103, 10120, 1853, 20908, 36621, 161895, 2444, 285, 29198, 20770, 2282, 20375, 1471, 23013, 2625, 26816],
    [52516, 3211, 52108, 58621, 464, 1760, 78098, 28717, 17195, 58853, 13059, 1199, 851, 209464, 21496, 2626, 2339,
     10774, 19083, 9688, 2271, 19128, 34115, 154255, 2897, 310, 32455, 24350, 2608, 21747, 1508, 24328, 2717, 35189],
])  # fmt: skip


def open_bandit(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], pl.DataFrame]:
    """Rewards, logged propensities, and the whole log."""
    root = os.environ.get("CASCADE_DATA", "")
    path = Path(root) / "obd-small" / f"{name}.parquet"
    if not root or not path.exists():
        pytest.skip(f"set CASCADE_DATA to a folder that holds obd-small/{name}.parquet (Open Bandit Dataset)")
    log = pl.read_parquet(path)
    return log["click"].to_numpy().astype(np.float64), log["propensity_score"].to_numpy(), log


def test_values_on_the_open_bandit_data_are_those_of_obp() -> None:
    reward_N, logged_N, log = open_bandit("random_men")
    item_N, position_N = log["item_id"].to_numpy(), log["position"].to_numpy() - 1
    target_NA = THOMPSON_PI[position_N] / 1_000_000
    target_N = target_NA[np.arange(len(item_N)), item_N]
    # A model that saw these rows: good for comparing numbers and for nothing else.
    clicks_A, shown_A = np.bincount(item_N, reward_N, 34), np.bincount(item_N, minlength=34)
    predicted_NA = np.broadcast_to((clicks_A + 1) / (shown_A + 100), target_NA.shape)
    modelled = (reward_N, item_N, logged_N, target_NA, predicted_NA)
    values = {
        "ips": ope.ips(reward_N, logged_N, target_N),
        "ips, clipped": ope.ips(reward_N, logged_N, target_N, clip=3.0),
        "snips": ope.snips(reward_N, logged_N, target_N),
        "dm": ope.dm(*modelled),
        "dr": ope.dr(*modelled),
        "sndr": ope.sndr(*modelled),
        "switch_dr": ope.switch_dr(*modelled, threshold=3.0),
        "dr_os": ope.dr_os(*modelled, lam=10.0),
    }
    assert {name: each.value for name, each in values.items()} == pytest.approx(
        {
            "ips": 0.0045426788,
            "ips, clipped": 0.0036827911999999996,
            "snips": 0.004613508072993415,
            "dm": 0.006399804998332196,
            "dr": 0.004661503335526498,
            "sndr": 0.004634399802910507,
            "switch_dr": 0.0054470400233159215,
            "dr_os": 0.005575566292515544,
        },
        abs=1e-9,
    )
    # As published, to the last digit.
    assert (f"{values['ips'].value:.8f}", f"{values['snips'].value:.8f}") == ("0.00454268", "0.00461351")
    require_overlap(diagnose(logged_N, target_N, actions_N=34))


@pytest.mark.parametrize(
    ("name", "actions", "ips", "snips"),
    [
        ("bts_men", 34, 0.003008626327256482, 0.0031894231622774027),
        ("bts_women", 46, 0.00743757754192316, 0.0023730461434477677),
        ("random_women", 46, 0.0046, 0.0046),
    ],
)
def test_values_of_the_uniform_policy_are_those_of_obp(name: str, actions: int, ips: float, snips: float) -> None:
    reward_N, logged_N, _ = open_bandit(name)
    target_N = np.full(len(logged_N), 1 / actions)
    assert ope.ips(reward_N, logged_N, target_N).value == pytest.approx(ips, abs=1e-9)
    assert ope.snips(reward_N, logged_N, target_N).value == pytest.approx(snips, abs=1e-9)
    overlap = diagnose(logged_N, target_N, actions_N=actions)
    assert overlap.shown_actions == pytest.approx(overlap.mean_weight), "against the uniform policy they are the same"
    assert bool(faults(overlap)) == (name == "bts_women")


def test_the_uniform_policy_cannot_be_judged_from_the_womens_thompson_log() -> None:
    _, logged_N, _ = open_bandit("bts_women")
    overlap = diagnose(logged_N, np.full(len(logged_N), 1 / 46))
    assert overlap.effective_sample_size < 3
    with pytest.raises(InsufficientOverlap, match=r"size 2\.1 of 10000 rows .*share of the weight 69\.4%"):
        require_overlap(overlap)
