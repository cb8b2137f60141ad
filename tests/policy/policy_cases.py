"""Small catalogues for the tests of the policy. Shape letters: N candidates, D embedding width."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.predicates import Attributes
from candidate_gen.types import Candidates, Query
from index.strings import key64
from policy.rules import Rule, RuleBook, RulesInForce
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from policy.value import DAY_MS
from ranking.types import Scored

NOW_MS = 1_700_000_000_000


def query(request_id: str = "r0", *, size: int = 3) -> Query:
    return Query(request_id, NOW_MS, "home", size)


def case(
    settings: PolicySettings,
    probability_NA: NDArray[np.float64],
    *,
    actions: Sequence[str] = ("click",),
    category_N: Sequence[int] | None = None,
    creator_N: Sequence[int] | None = None,
    age_days_N: Sequence[float] | None = None,
    embedding_ND: NDArray[np.float64] | None = None,
    work_N: Sequence[int] | None = None,
    rules: Sequence[Rule] = (),
) -> tuple[SlatePolicy, Scored]:
    """A policy, and candidates of it: all items of a catalogue with as many, in an order of its own (reversed).

    Candidate n is item `i<count - 1 - n>`, its category is called `c<number>`, its attribute `work` is `w<number>`.
    """
    count = len(probability_NA)
    ids = [f"i{row}" for row in range(count)]
    embedding_ND = np.eye(max(count, 1))[:count] if embedding_ND is None else embedding_ND
    age_days = np.zeros(count) if age_days_N is None else np.array(age_days_N)
    row_N = np.arange(count)[::-1].copy()
    item_row_N = np.zeros(count, [("category", "<i4"), ("creator", "<i4")])
    item_row_N["category"] = 0 if category_N is None else category_N
    item_row_N["creator"] = 0 if creator_N is None else creator_N
    items = Items.of(
        ids=ids,
        titles=ids,
        row_I=item_row_N[row_N],
        published_ms=(NOW_MS - age_days * DAY_MS)[row_N],
        embedding_ID=embedding_ND.astype(np.float32)[row_N],
        attributes={
            name: np.array([key64(f"{name[0]}{code}") if code else 0 for code in code_N], np.uint64)[row_N]
            for name, code_N in (("category", item_row_N["category"]), ("work", work_N or [0] * count))
        },
    )
    scored = Scored(
        candidates=Candidates(row_N, (), np.zeros((count, 0), np.int16), np.zeros((count, 0), np.float32)),
        action_names=tuple(actions),
        probability_NA=probability_NA.astype(np.float32).reshape(count, len(actions)),
        query_row=np.zeros(1, [("user_id", "<i4")]),
        item_row_N=item_row_N,
        pair_row_N=np.zeros(count, [("bm25", "<f4")]),
    )
    in_force = RulesInForce(RuleBook(tuple(rules), "1"), items, Attributes(items)) if rules else None
    return SlatePolicy(settings, items, "g1", in_force), scored


def unit_vectors(rng: np.random.Generator, count: int, width: int) -> NDArray[np.float64]:
    vector_ND = rng.normal(size=(count, width))
    return np.asarray(vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True), np.float64)
