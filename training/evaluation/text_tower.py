"""Two towers over what texts say: given vectors and words, trained on judged pairs by a softmax over many titles.

Shape letters: N texts, T terms of all texts one after the other, V terms of the vocabulary, P pairs, B pairs of a
batch, C distinct titles of a batch, Q queries, I titles, D width.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.losses import mixture_log_q, sampled_softmax
from candidate_gen.text import words
from training.evaluation.judged_texts import JudgedTexts
from training.evaluation.search_sources import FOUND, Found, products
from training.evaluation.topk import top_k
from training.learning.row_adam import RowAdamW
from training.progress import progress

_WIDTH = 256
_FACTORS_BESIDE = 128
_FACTOR_WEIGHT = 0.7
"""Of the factors of words, where an encoder's vectors stand beside them."""
_EPOCHS = 6
_BATCH = 512
_UNIFORM = 1024
_TEMPERATURE = 0.06
_LEARNING_RATE = 2e-3
_PASSES = 3
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Texts:
    """Each as the words that it has, weighted, and as a vector."""

    term_NV: csr_matrix
    """Inverse document frequencies of the words and neighbours that a text has, scaled to length 1."""
    given_ND: NDArray[np.float32]
    """Of length 1."""

    def __len__(self) -> int:
        return len(self.given_ND)


@dataclass(frozen=True, slots=True)
class TowerTexts:
    """What both towers read."""

    queries: Texts
    titles: Texts

    @classmethod
    def of(
        cls,
        text_Q: Sequence[str],
        title_I: Sequence[str],
        encoded: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
        *,
        seed: int,
    ) -> Self:
        """Given vectors are factors of the titles' words (latent semantic analysis, Deerwester et al. 1990); or an
        encoder's, of queries and titles, with fewer such factors beside them, in the leading dimensions of the titles'.
        """
        vocabulary = _Vocabulary.of(title_I)
        term_QV, term_IV = vocabulary.weighted(text_Q), vocabulary.weighted(title_I)
        width = _WIDTH if encoded is None else _FACTORS_BESIDE
        factor_VD = leading_factors(term_IV, width, seed=seed)
        given_QD, given_ID = term_QV @ factor_VD, term_IV @ factor_VD
        if encoded is not None:
            given_QD, given_ID = (
                np.concatenate([vector_ND, _FACTOR_WEIGHT * _unit(factor_ND)], axis=1)
                for vector_ND, factor_ND in zip(encoded, (given_QD, given_ID), strict=True)
            )
            _, turned_DD = np.linalg.eigh(given_ID.T @ given_ID)
            leading_DD = turned_DD[:, ::-1][:, :_WIDTH]
            given_QD, given_ID = given_QD @ leading_DD, given_ID @ leading_DD
        return cls(Texts(term_QV, _unit(given_QD)), Texts(term_IV, _unit(given_ID)))


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The words, and pairs of neighbouring words, that at least two titles have; all where none are."""

    row_of: dict[str, int]
    idf_V: NDArray[np.float32]

    @classmethod
    def of(cls, titles: Sequence[str]) -> Self:
        count = Counter(term for title in titles for term in _terms(title))
        common = sorted(term for term, titles_of in count.items() if titles_of > 1) or sorted(count)
        idf_V = np.log1p(len(titles) / np.array([count[term] for term in common], np.float32))
        return cls({term: row for row, term in enumerate(common)}, idf_V)

    def weighted(self, texts: Sequence[str]) -> csr_matrix:
        """Rows of length 1, of 0 where a text has no known term."""
        row_of = [[self.row_of[term] for term in _terms(text) if term in self.row_of] for text in texts]
        offset_N1 = np.concatenate([[0], np.cumsum([len(each) for each in row_of])])
        row_T = np.array([row for each in row_of for row in each], np.int64)
        idf_T = self.idf_V[row_T]
        text_T = np.repeat(np.arange(len(texts)), np.diff(offset_N1))
        length_N = np.sqrt(np.bincount(text_T, idf_T**2, len(texts)))
        return csr_matrix((idf_T / length_N[text_T], row_T, offset_N1), (len(texts), len(self.row_of)))


def _terms(text: str) -> list[str]:
    split = words(text)
    return list(dict.fromkeys([*split, *(f"{one} {two}" for one, two in pairwise(split))]))


def leading_factors(term_NV: csr_matrix, width: int, *, seed: int) -> NDArray[np.float32]:
    """Orthonormal columns (V, D) that span most of the rows, by subspace iteration from a random start (Halko,
    Martinsson and Tropp 2011, "Finding Structure with Randomness"); at most as many as there are rows and terms."""
    width = min(width, *term_NV.shape)
    basis = np.random.default_rng(seed).standard_normal((term_NV.shape[1], width), np.float32)
    for _ in range(_PASSES):
        basis, _ = np.linalg.qr(term_NV.T @ (term_NV @ basis))
    return basis.astype(np.float32)


def _unit(vector_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = (vector_ND / np.maximum(length_N1, 1e-9)).astype(np.float32)
    return unit_ND


class TextTowers(nn.Module):
    """A text's vector: a linear map of its given one, of each side's own, and the sum of those of its terms, scaled to
    length 1. Before training the product of two is the cosine of their given vectors."""

    def __init__(self, terms: int, width: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(terms, width, mode="sum", sparse=True)
        nn.init.zeros_(self.table.weight)
        linear_of = {side: nn.Linear(width, width, bias=False) for side in ("query", "title")}
        for linear in linear_of.values():
            nn.init.eye_(linear.weight)
        self.given = nn.ModuleDict(linear_of)

    def forward(self, side: str, texts: Texts, at: NDArray[np.int64]) -> Tensor:
        part = texts.term_NV[at]
        start_B = torch.from_numpy(part.indptr[:-1].astype(np.int64))
        weight_T = torch.from_numpy(part.data.astype(np.float32))
        added: Tensor = self.table(
            torch.from_numpy(part.indices.astype(np.int64)), start_B, per_sample_weights=weight_T
        )
        return functional.normalize(self.given[side](torch.from_numpy(texts.given_ND[at])) + added, dim=1)

    @torch.inference_mode()
    def vectors(self, side: str, texts: Texts) -> NDArray[np.float32]:
        """Of all texts, (N, D)."""
        parts = [np.arange(first, min(first + _BLOCK, len(texts))) for first in range(0, len(texts), _BLOCK)]
        return torch.cat([self(side, texts, at) for at in parts]).numpy()


def out_of_fold_towers(texts: TowerTexts, judged: JudgedTexts, fold_Q: NDArray[np.int64], *, seed: int) -> Found:
    """What towers find that were trained without the fold of each query, and what they say of its judged titles."""
    row_QK = np.full((len(fold_Q), min(FOUND, len(texts.titles))), -1, np.int64)
    score_N = np.zeros(len(judged.item_N), np.float32)
    folds = int(fold_Q.max()) + 1
    fold_N = fold_Q[judged.query_N]
    with progress() as bars:
        bar = bars.add_task("text towers", total=folds)
        for fold in range(folds):
            held_out_N = fold_N == fold
            learned_N = judged.relevant_N & ~held_out_N
            towers = trained(
                texts,
                judged.query_N[learned_N],
                judged.item_N[learned_N],
                judged.relevance_N[learned_N].astype(np.float32),
                seed=seed * folds + fold,
            )
            title_ID, query_QD = towers.vectors("title", texts.titles), towers.vectors("query", texts.queries)
            row_QK[fold_Q == fold] = top_k(query_QD[fold_Q == fold], title_ID, FOUND)
            score_N[held_out_N] = products(query_QD, title_ID, judged.query_N[held_out_N], judged.item_N[held_out_N])
            bars.advance(bar)
    return Found(row_QK, score_N)


def trained(
    texts: TowerTexts,
    query_P: NDArray[np.int64],
    title_P: NDArray[np.int64],
    weight_P: NDArray[np.float32],
    *,
    seed: int,
) -> TextTowers:
    """Towers whose softmax over the other titles of a batch and uniform draws, corrected for how often each is there,
    prefers a query's own; determined by the seed.

    Args:
        weight_P: how much each pair counts, above 0. Without a pair the towers stay as they start.
    """
    queries, titles = texts.queries, texts.titles
    random = np.random.default_rng(seed)
    towers = TextTowers(titles.term_NV.shape[1], titles.given_ND.shape[1])
    if not len(query_P):
        return towers
    optimizer = RowAdamW(towers.parameters(), lr=_LEARNING_RATE, weight_decay=0.0, fused=True)
    steps = _EPOCHS * math.ceil(len(query_P) / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=max(steps, 100), pct_start=0.1
    )
    share_I = np.bincount(title_P, minlength=len(titles)) / len(title_P)
    with np.errstate(divide="ignore"):
        log_q_I = torch.from_numpy(np.log(share_I)).float()
    for _ in range(_EPOCHS):
        order_P = random.permutation(len(query_P))
        for first in range(0, len(order_P), _BATCH):
            taken = order_P[first : first + _BATCH]
            drawn = np.concatenate([title_P[taken], random.integers(len(titles), size=_UNIFORM)])
            distinct_C, own, count_C = np.unique(drawn, return_inverse=True, return_counts=True)
            log_q_C = mixture_log_q(log_q_I[distinct_C], batch=len(taken), uniform=_UNIFORM, items=len(titles))
            loss = sampled_softmax(
                towers("query", queries, query_P[taken]),
                towers("title", titles, distinct_C),
                own_B=torch.from_numpy(own[: len(taken)]),
                count_S=torch.from_numpy(count_C),
                log_q_S=log_q_C,
                temperature=_TEMPERATURE,
                weight_B=torch.from_numpy(weight_P[taken]),
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return towers
