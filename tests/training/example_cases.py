"""A small world whose truth is known: tastes by category, item quality, and examination that falls with position.

Shape letters: U users, I items, C categories, R requests, K slots, P positions.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, feature_table
from training.datasets.dataset import EVENT_SCHEMA
from training.examples.exposures import Examples, from_impressions

ACTIONS = ("click", "like")
START_MS = 1_700_000_000_000
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class SimulatedLog:
    users: pl.DataFrame
    items: pl.DataFrame
    impressions: pl.DataFrame
    events: pl.DataFrame
    table: FeatureTable
    examination_P: NDArray[np.float64]
    end_ms: int
    click_NK: NDArray[np.float64]
    """True P(click | examined) of each slot of each request, in the order of the impressions."""

    def examples(self, watermark_ms: int | None = None) -> Examples:
        """As they are known at that time, or at the end."""
        return from_impressions(
            self.table,
            users=self.users,
            items=self.items,
            impressions=self.impressions,
            events=self.events,
            watermark_ms=self.end_ms if watermark_ms is None else watermark_ms,
        )


def simulated_log(
    *,
    seed: int,
    users: int = 60,
    items: int = 80,
    requests: int = 600,
    slots: int = 8,
    days: int = 6,
    categories: int = 5,
) -> SimulatedLog:
    random = np.random.default_rng(seed)
    category_I = random.integers(categories, size=items)
    quality_I = random.normal(0, 0.7, items)
    taste_UC = random.normal(0, 1.2, (users, categories))
    examination_P = 1 / (1 + 0.4 * np.arange(slots))
    time_R = START_MS + np.sort(random.integers(days * _DAY_MS, size=requests))
    user_R = random.integers(users, size=requests)
    item_RK = np.stack([random.choice(items, slots, replace=False) for _ in range(requests)])
    logit_RK = -0.5 + taste_UC[user_R[:, None], category_I[item_RK]] + quality_I[item_RK]
    click_RK = 1 / (1 + np.exp(-logit_RK))
    clicked_RK = random.random((requests, slots)) < click_RK * examination_P
    liked_RK = clicked_RK & (random.random((requests, slots)) < 0.4)
    rows = []
    for action, happened_RK in (("click", clicked_RK), ("like", liked_RK)):
        for r, k in np.argwhere(happened_RK):
            at_ms = int(time_R[r] + 1000 * (k + 1) + (action == "like"))
            rows.append(
                (
                    f"e{r}-{k}-{action}",
                    f"r{r}",
                    f"u{user_R[r]}",
                    f"i{item_RK[r, k]}",
                    action,
                    1.0,
                    at_ms,
                    at_ms + 500,
                    k,
                )
            )
    names = [f"category {c}" for c in range(categories)]
    return SimulatedLog(
        users=pl.DataFrame({"user_id": [f"u{u}" for u in range(users)]}),
        items=pl.DataFrame(
            {
                "item_id": [f"i{i}" for i in range(items)],
                "title": [f"{names[c]} number {i}" for i, c in enumerate(category_I)],
                "category": [names[c] for c in category_I],
                "creator": [f"creator {i % 7}" for i in range(items)],
                "published_ms": (START_MS - random.integers(1, 30 * _DAY_MS, items)).tolist(),
                "available": [True] * items,
            }
        ),
        impressions=pl.DataFrame(
            {
                "request_id": [f"r{r}" for r in range(requests)],
                "user_id": [f"u{u}" for u in user_R],
                "time_ms": time_R,
                "surface": ["home"] * requests,
                "text": [""] * requests,
                "item_id": [[f"i{i}" for i in item_K] for item_K in item_RK],
                "propensity": [[1 / (items - k) for k in range(slots)]] * requests,
            }
        ),
        events=event_frame(rows),
        table=feature_table(
            users=users,
            items=items,
            actions=ACTIONS,
            categories=names,
            sources=("ann", "lexical", "popular"),
            user_columns={},
            item_columns={},
            history_length=12,
        ),
        examination_P=examination_P,
        end_ms=START_MS + days * _DAY_MS + 10_000_000,
        click_NK=click_RK,
    )


def event_frame(rows: list[tuple[str, str, str, str, str, float, int, int, int]]) -> pl.DataFrame:
    """Events in the canonical form."""
    return pl.DataFrame(rows, EVENT_SCHEMA, orient="row")
