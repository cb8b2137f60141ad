"""The knobs: what is refused, and that they survive a file."""

import json

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
    )
    again = PolicySettings.from_json(settings.to_json())
    assert again == settings
    assert again.fingerprint == settings.fingerprint


def test_the_fingerprint_tells_meanings_apart_and_not_spellings() -> None:
    settings = PolicySettings(weights={"click": 1, "like": 2})
    assert settings.fingerprint == PolicySettings(weights={"like": 2.0, "click": 1.0}).fingerprint
    assert settings.fingerprint != PolicySettings(weights={"click": 1, "like": 2}, epsilon=0.06).fingerprint


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
        ({"max_per_category": -1}, "max_per_category is -1; a cap is a whole number"),
        ({"max_per_creator": 1.5}, "max_per_creator is 1.5; a cap is a whole number"),
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
