"""The knobs: what is refused, and that they survive a file."""

import json
from hashlib import sha256

import pytest

from policy.settings import PolicySettings


def test_settings_survive_json_and_keep_their_fingerprint() -> None:
    settings = PolicySettings(
        weights={"click": 1, "like": 2.5, "hide": -3},
        temperature=0,
        epsilon=0.1,
        diversity=0.3,
        freshness_weight=0.2,
        half_life_days=3,
        max_per_category=2,
        max_per_creator=1,
        fresh_quota=0.2,
        fresh_days=2,
        diversity_by="dpp",
        category_window=5,
        creator_window=3,
        min_per_category={"news": 2},
        duplicate_attribute="isbn",
        fresh_floor=0.1,
    )
    again = PolicySettings.from_json(settings.to_json())
    assert again == settings
    assert again.fingerprint == settings.fingerprint


def test_the_fingerprint_tells_meanings_apart_and_not_spellings() -> None:
    settings = PolicySettings(weights={"click": 1, "like": 2})
    assert settings.fingerprint == PolicySettings(weights={"like": 2.0, "click": 1.0}).fingerprint
    assert settings.fingerprint != PolicySettings(weights={"click": 1, "like": 2}, epsilon=0.06).fingerprint


def test_a_generation_of_before_the_later_settings_keeps_its_fingerprint() -> None:
    """The text is what the first release wrote for these weights; the manifest of a generation holds its hash."""
    written = (
        '{"diversity": 0.05, "epsilon": 0.05, "fresh_days": 1.0, "fresh_quota": 0.0, "freshness_weight": 0.0, '
        '"half_life_days": 7.0, "max_per_category": 0, "max_per_creator": 0, '
        '"negative_actions": ["hide", "dislike", "report", "block"], "temperature": 0.1, "weights": {"click": 1.0}}'
    )
    settings = PolicySettings.from_json(written)
    assert settings.to_json() == written
    assert settings.fingerprint == sha256(written.encode()).hexdigest()[:16]


def test_settings_do_not_change_with_the_mapping_they_were_made_from() -> None:
    weights = {"click": 1.0}
    settings = PolicySettings(weights=weights)
    weights["click"] = 2.0
    assert settings.weights == {"click": 1.0}


def test_fields_left_out_of_the_file_keep_their_defaults() -> None:
    assert PolicySettings.from_json('{"weights": {"click": 1}}') == PolicySettings(weights={"click": 1})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": {"click": 1, "hide": 2}}, "weights.hide is 2.0; 'hide' is a negative action"),
        ({"weights": {"click": -1, "like": 1}}, "weights.click is -1.0; below 0 only for negative actions"),
        ({"weights": {"click": 0, "hide": -1}}, "at least one must be above 0"),
        ({"weights": {}}, "at least one must be above 0"),
        ({"weights": {"click": float("nan")}}, "weights.click is nan; a finite number"),
        ({"weights": {"click": 1e7}}, "weights.click is 10000000.0; it must be between"),
        ({"weights": {"click": "much"}}, "weights.click is 'much'; a finite number"),
        ({"negative_actions": "hide"}, "negative_actions is 'hide'; a list"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"temperature": float("inf")}, "temperature is inf; a finite number"),
        ({"epsilon": 1.5}, "epsilon is 1.5; it must be between 0 and 1"),
        ({"epsilon": True}, "epsilon is True; a finite number"),
        ({"diversity": -1}, "diversity is -1; it must be between 0 and"),
        ({"freshness_weight": None}, "freshness_weight is None; a finite number"),
        ({"half_life_days": 0}, "half_life_days is 0.0; it must be above 0"),
        ({"max_per_category": -1}, "max_per_category is -1; a whole number"),
        ({"max_per_creator": 1.5}, "max_per_creator is 1.5; a whole number"),
        ({"min_per_category": {"news": -1}}, r"min_per_category\['news'\] is -1; a whole number"),
        ({"min_per_category": dict.fromkeys(map(str, range(25)), 1)}, "names 25 categories; at most 24"),
        ({"diversity_by": "mrm"}, "diversity_by is 'mrm'; it must be mmr or dpp"),
        ({"duplicate_attribute": 1}, "duplicate_attribute is 1; the name of an attribute"),
        ({"fresh_floor": -1}, "fresh_floor is -1; it must be between 0 and 1"),
        ({"epsilon": 0.6, "fresh_floor": 0.5}, "epsilon is 0.6 and fresh_floor is 0.5; together they are at most 1"),
        ({"category_window": 5}, "category_window is 5 and max_per_category 0; a cap of a window is from 1 to 4"),
        ({"creator_window": 2, "max_per_creator": 2}, "creator_window is 2 and max_per_creator 2; a cap of a window"),
        (
            {"min_per_category": {"news": 3}, "max_per_category": 2},
            r"min_per_category\['news'\] is 3 and max_per_category 2; no slate holds as many and as few",
        ),
        ({"fresh_quota": 2}, "fresh_quota is 2; it must be between 0 and 1"),
        ({"fresh_days": -1}, "fresh_days is -1; it must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicySettings(**{"weights": {"click": 1}, **changed})  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "policy settings are not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", 'with "weights"'),
        ('{"weights": [1]}', 'with "weights"'),
        (
            json.dumps({"weights": {"click": 1}, "temprature": 1}),
            "no policy setting 'temprature'; the nearest is 'temp",
        ),
    ],
)
def test_a_file_that_is_no_settings_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicySettings.from_json(text)


def test_any_action_can_be_declared_negative() -> None:
    settings = PolicySettings(weights={"click": 1, "is_hate": -5}, negative_actions=("is_hate",))
    assert PolicySettings.from_json(settings.to_json()) == settings
