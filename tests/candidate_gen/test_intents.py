"""Categories that queries mean: learned, smoothed, and as sure as they are right."""

import numpy as np
import pytest

from candidate_gen.intents import Intents, Sample


def samples(count: int, *, noise: float = 0.2, seed: int = 0) -> list[Sample]:
    """Words w1 to w4 mean categories 1 to 4 but for the noise, and every text has the same word three times over."""
    rng = np.random.default_rng(seed)
    made: list[Sample] = []
    for _ in range(count):
        category = int(rng.integers(1, 5))
        said = category if rng.random() >= noise else int(rng.integers(1, 5))
        made.append(([f"w{said}", f"v{said}", f"u{said}", "the"], category, 1.0))
    return made


def test_words_mean_the_category_of_what_was_taken() -> None:
    intents = Intents.of(samples(800), values=5)
    p_C = intents.probabilities(["w2"])
    assert p_C is not None
    assert p_C.argmax() == 2
    assert p_C.sum() == pytest.approx(1)
    assert intents.quality["accuracy"] > 0.75


def test_words_that_say_the_same_thing_three_times_do_not_make_it_surer_than_it_is() -> None:
    intents = Intents.of(samples(2000), values=5)
    assert intents.quality["ece"] < 0.05
    assert intents.sharpness < 1, "naive Bayes would believe all three"


def test_unknown_words_mean_nothing() -> None:
    intents = Intents.of(samples(50), values=5)
    assert intents.probabilities(["never"]) is None
    assert intents.probabilities([]) is None


def test_without_texts_nothing_is_known() -> None:
    assert Intents.of([], values=3).probabilities(["a"]) is None
    assert Intents.of([(["a"], 1, 1.0)], values=3).probabilities(["a"]) is not None
