import numpy as np
import pytest
from policy_cases import case, query, unit_vectors

from policy.rules import Rule
from policy.settings import PolicySettings


@pytest.mark.parametrize("by", ["mmr", "dpp"])
def test_the_terms_are_those_that_the_slots_were_drawn_from(by: str) -> None:
    """Between two candidates that may be drawn, the log of their odds is the difference of their adjusted utilities."""
    rng = np.random.default_rng(3)
    settings = PolicySettings(
        weights={"click": 1.0},
        temperature=0.2,
        epsilon=0.0,
        fresh_floor=0.0,
        diversity=0.3,
        diversity_by=by,  # type: ignore[arg-type]
        freshness_weight=0.4,
        half_life_days=2.0,
        max_per_category=0,
        max_per_creator=0,
        fresh_quota=0.0,
    )
    policy, scored = case(
        settings,
        rng.random((8, 1)),
        age_days_N=rng.random(8).tolist(),
        embedding_ND=3 * unit_vectors(rng, 8, 5),
        rules=[Rule(id="up", kind="boost", item_ids=("i3",), strength=0.5)],
    )
    asked = query(size=5)
    index_K = policy.select(asked, scored).index_K
    terms, draw = policy.terms(asked, scored, index_K), policy.propensity_of(asked, scored, index_K)
    for k, chance_N in enumerate(draw.distribution_KN):
        open_N = chance_N > 0
        assert open_N.sum() == 8 - k
        drawn = np.log(chance_N[open_N]) * settings.temperature
        adjusted = terms.adjusted_KN[k, open_N]
        np.testing.assert_allclose(drawn - drawn[0], adjusted - adjusted[0], atol=2e-4)
    assert terms.rules_N[np.flatnonzero(scored.candidates.row_N == 3)[0]] == 0.5
    assert np.count_nonzero(terms.rules_N) == 1


def test_without_slots_before_there_is_nothing_to_be_like() -> None:
    policy, scored = case(PolicySettings(weights={"click": 1.0}, diversity=1.0), np.full((3, 1), 0.5))
    terms = policy.terms(query(), scored, np.array([0, 1], np.int64))
    assert not terms.diversity_KN[0].any()
    assert terms.diversity_KN[1].tolist() == [-1.0, 0.0, 0.0]
