"""What a generation is asked before it may serve.

Checksums prove that the files are those that were published; not that this library, on this machine, makes of them
what it made at build time. So it answers queries whose answers are known in part: nothing degraded, everything finite,
and of the vector index as many of the true neighbours as it was certified for.

Shape letters: B queries, D embedding width, K results.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.types import Query
from index.certificates import Certificate, Truth
from index.lengths import unit
from index.strings import IdMap
from index.types import Hits
from protos.impression_pb2 import Degraded
from serving.pipeline import Pipeline

FAULTS = (
    Degraded.DEGRADED_SOURCE_TIMEOUT
    | Degraded.DEGRADED_SOURCE_ERROR
    | Degraded.DEGRADED_RANKER_SKIPPED
    | Degraded.DEGRADED_POPULAR_FALLBACK
    | Degraded.DEGRADED_PARTIAL_INDEX
)
"""What is wrong with an answer whatever was asked; an empty one may be right."""
NOT_OF_A_CANARY = FAULTS | Degraded.DEGRADED_EMPTY | Degraded.DEGRADED_DEFAULT_FEATURES
_USERS = 16
_SLATE = 10
_SLACK = 0.1
"""Canaries are few; damage costs far more recall."""


class Unfit(ValueError):
    """It does not answer as it should."""


class CertifiedIndex(Protocol):
    """A `VectorIndex`, or a `ShardedIndex`."""

    @property
    def vector_ID(self) -> NDArray[np.float32]: ...
    @property
    def quarantined_Q(self) -> NDArray[np.int64]: ...
    @property
    def metric(self) -> str: ...
    @property
    def certificates(self) -> tuple[Certificate, ...]: ...
    def search(self, query_D: NDArray[np.float32], k: int) -> Hits: ...


def canaries(users: IdMap, titles: Sequence[str], *, at_ms: int) -> list[Query]:
    """A stranger, somebody who types the first title there is, and some of the users."""
    typed = next((title for title in titles if title), "")
    stranger = Query(f"canary//{typed}", at_ms, "canary", _SLATE, text=typed)
    step = max(1, len(users) // _USERS)
    known = [users.ids[row] for row in range(0, len(users), step)][:_USERS]
    return [stranger, *(Query(f"canary/{each}", at_ms, "canary", _SLATE, user_id=each) for each in ("", *known))]


def check_answers(pipeline: Pipeline, queries: Iterable[Query], *, wrong: int) -> None:
    """
    Args:
        wrong: bits that no answer may have.

    Raises:
        Unfit: for the first answer that is degraded so, or not finite.
    """
    for query in queries:
        answer = pipeline.run(query)
        if answer.trace.degraded & wrong or not np.isfinite(answer.slate.propensity_K).all():
            raise Unfit(
                f"a canary query (user {query.user_id!r}, text {query.text!r}) is answered with "
                f"{len(answer.slate)} items, degraded bits {answer.trace.degraded}, "
                f"skipped sources {answer.trace.skipped_sources}"
            )


def check_recall(index: CertifiedIndex, query_BD: NDArray[np.float32]) -> None:
    """Nothing is checked of an index without a certificate.

    Raises:
        Unfit: where a search names what is no row, or misses more than the index was certified to.
    """
    certificate = next((each for each in index.certificates if each.share == 1), None)
    if certificate is None:
        return
    k = certificate.recall.k
    vector_ID = np.asarray(index.vector_ID)
    usable_I = np.ones(len(vector_ID), np.bool_)
    usable_I[index.quarantined_Q] = False
    row_BK = np.full((len(query_BD), k), -1, np.int64)
    for row_K, query_D in zip(row_BK, query_BD, strict=True):
        hits = index.search(query_D, k)
        found_K = hits.row_K
        if (found_K < 0).any() or (found_K >= len(vector_ID)).any() or not np.isfinite(hits.score_K).all():
            raise Unfit("the index names rows that are none, or scores that are no numbers")
        row_K[: len(found_K)] = found_K
    cosine = index.metric == "cosine"
    truth = Truth(
        unit(vector_ID) if cosine else vector_ID,
        unit(query_BD) if cosine else query_BD,
        k,
        row_A=None if usable_I.all() else np.flatnonzero(usable_I),
    )
    recall = truth.recall(row_BK)
    if recall.value < certificate.recall.low - _SLACK:
        raise Unfit(
            f"the index finds {recall.value:.3f} of the nearest {k} for {recall.queries} canary queries; "
            f"it is certified for {certificate.recall.low:.3f}"
        )
