"""A simulated world whose truth is known: who likes what, how far down people look, how taste and novelty change.

The truth, for user u, item i of category c, subtopic s, tone-vector z and creator m, at time t:

    taste(u, i, t)   = 1.0 category(u, c, t) + 0.5 subtopic(u, s) + 0.55 tone(u) . z(i) + 1.1 [u follows m]
    appeal(i, t)     = 0.6 quality(i) + 0.4 bait(i) + 0.9 exp(-age(i, t) / 5 days)
    P(click | looked at)  = sigmoid(-3.45 + taste + appeal)                               for a recommendation
                          = sigmoid(-5.6 + 4.6 relevance(i, text) + 0.5 (taste + appeal)) for a search
    P(like | click)       = sigmoid(-0.6 + 0.5 taste + 0.8 quality(i) - 0.9 bait(i))
    P(hide | no click)    = sigmoid(-4.6 - 0.6 taste + 0.5 bait(i))
    P(slot k looked at)   = (1 + k) ** -0.6, k from 0, independently of the other slots

`category(u, c, t)` turns from one taste towards another, by `drift` radians a day for the average user: taste drifts.
Relevance is the share of the typed words that name the item's category, its subtopic or occur in its title, so an item
can be relevant without holding a word. Some people type another word for what they mean, or misspell it: what they mean
is what they look for, and no text of the world holds what they type. The reward of a slate is the expected sum over
slots and actions of weight * P(action at that slot).

Everything is a function of the seed; what a request's user does depends on the request's id, the slate and the seed,
not on what was asked before.

Shape letters: U users, I items, C categories, S subtopics, T tones, N pairs of user and item, K slots, A actions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from candidate_gen.text import words
from index.strings import key64
from training.datasets.dataset import EVENT_SCHEMA, IMPRESSION_SCHEMA, Columns, Dataset
from training.simulation.typing import Typing
from training.simulation.words import FIRST_NAMES, LAST_NAMES, TONES, TOPICS

DAY_MS = 86_400_000
_START_MS = 1_736_121_600_000  # Monday, 6 January 2025
_PAST_DAYS = 60
_NOVELTY_DAYS = 5.0
_EXAMINATION_POWER = 0.6
_LATE_MS = 40 * 60_000
_SEGMENTS = ("explorer", "homebody", "thriller", "scholar", "fan", "dreamer", "maker", "night_owl")
_AGE_BANDS = ("under_25", "25_34", "35_49", "50_64", "over_64")
_STOP = {"the", "a", "of", "and"}


@dataclass(frozen=True, slots=True)
class WorldRequest:
    """Someone comes at some time, to be shown something or to look for something."""

    request_id: str
    user_id: str
    time_ms: int
    surface: str
    text: str


class World:
    """Users, items and the truth about them.

    Items are sorted by the time they are published, `items` holds also those that are not yet: the share `arriving` of
    them arrives evenly over `days`, the others are there at the start.

    Args:
        drift: radians a day by which the average user's taste turns; 0 for tastes that stay.

    Raises:
        ValueError: without users, items or days, for a drift below 0 and for an `arriving` outside [0, 1).
    """

    actions = ("click", "like", "hide")
    weights: Mapping[str, float] = {"click": 1.0, "like": 2.0, "hide": -2.0}
    start_ms = _START_MS

    def __init__(
        self,
        seed: int,
        *,
        users: int = 1200,
        items: int = 2000,
        days: int = 30,
        drift: float = 0.03,
        arriving: float = 0.4,
    ) -> None:
        if min(users, items, days) < 1:
            raise ValueError(f"users, items and days must be at least 1, got {users}, {items} and {days}")
        if not (0 <= drift < math.inf and 0 <= arriving < 1):
            raise ValueError(
                f"drift must be at least 0 and arriving at least 0 and below 1, got {drift} and {arriving}"
            )
        self.seed = seed
        self.days = days
        self._make_items(items, arriving, np.random.default_rng([seed, 1]))
        self._typing = Typing(self._about.keys())
        self._make_users(users, drift, np.random.default_rng([seed, 2]))
        self._weight_A = np.array([self.weights[action] for action in self.actions])
        self._item_row = {item_id: row for row, item_id in enumerate(self.items["item_id"])}
        self._user_row = {user_id: row for row, user_id in enumerate(self.users["user_id"])}

    def _make_items(self, count: int, share: float, rng: np.random.Generator) -> None:
        categories: tuple[str, ...] = tuple(TOPICS)
        subtopics = [(c, name) for c, (names, _) in enumerate(TOPICS.values()) for name in names]
        arriving = int(share * count)
        age_days = np.minimum(rng.exponential(_PAST_DAYS / 3, count - arriving), _PAST_DAYS)
        offset_days = np.concatenate(
            [-age_days, (np.arange(arriving) + rng.random(arriving)) * self.days / count / share]
        )
        published_ms_I = np.sort(self.start_ms + (offset_days * DAY_MS).astype(np.int64))
        share_C = rng.dirichlet(np.full(len(categories), 6.0))
        category_I = rng.choice(len(categories), count, p=share_C)
        subtopic_I = 3 * category_I + rng.integers(3, size=count)

        names = [f"{first} {last}" for first in FIRST_NAMES.split() for last in LAST_NAMES.split()]
        creators = rng.permutation(names)[: max(len(categories), min(count // 12, len(names)))]
        home_M = rng.permutation(np.arange(len(creators)) % len(categories))
        tone_MT = rng.normal(size=(len(creators), len(TONES)))
        wanted_I = np.where(rng.random(count) < 0.85, category_I, rng.integers(len(categories), size=count))
        creator_I = np.empty(count, np.int64)
        for c in range(len(categories)):
            at = np.flatnonzero(wanted_I == c)
            creator_I[at] = rng.choice(np.flatnonzero(home_M == c), len(at))
        raw_IT = 0.6 * tone_MT[creator_I] + 0.8 * rng.normal(size=(count, len(TONES)))
        spoken_I = (3 * raw_IT).argmax(axis=1)
        self._tone_IT = 0.5 * raw_IT + 1.0 * np.eye(len(TONES))[spoken_I]
        self._tone_IT -= self._tone_IT.mean(axis=1, keepdims=True)
        self._quality_I = rng.normal(size=count)
        self._bait_I = rng.normal(size=count)
        self._renown_I = np.exp(0.7 * self._quality_I + 0.3 * self._bait_I + 0.7 * rng.normal(size=count))
        self._renown_total_I = np.cumsum(self._renown_I)
        self._category_I, self._subtopic_I, self._creator_I = category_I, subtopic_I, creator_I
        self._published_ms_I = published_ms_I
        self._creators = creators
        self._home_M = home_M

        titles: dict[str, int] = {}
        for i in range(count):
            category, (_, subtopic) = categories[category_I[i]], subtopics[subtopic_I[i]]
            adjective = rng.choice(TONES[spoken_I[i]].split())
            noun = rng.choice(TOPICS[category][1].split())
            last = str(creators[creator_I[i]]).split()[1]
            form = (
                f"{adjective} {noun}, a {category} Story",
                f"{subtopic}: The {adjective} {noun}",
                f"The {adjective} {noun} of {last}",
                f"{category}: {subtopic} and the {adjective} {noun}",
            )[rng.choice(4, p=[0.25, 0.35, 0.15, 0.25])]
            title, part = form, 2
            while title in titles:
                title, part = f"{form}, Part {part}", part + 1
            titles[title] = i
        self.items = pl.DataFrame(
            {
                "item_id": [f"i{row:05d}" for row in range(count)],
                "title": list(titles),
                "category": [categories[c] for c in category_I],
                "creator": creators[creator_I].tolist(),
                "published_ms": published_ms_I,
                "available": [True] * count,
            }
        )
        self.item_columns: Columns = {}
        topical = [{*words(categories[category_I[i]]), *words(subtopics[subtopic_I[i]][1])} for i in range(count)]
        titular = [set(words(title)) - _STOP for title in titles]
        self._titled = _postings(titular, count)
        self._about = _postings([a | b for a, b in zip(topical, titular, strict=True)], count)
        self._categories = categories
        self._subtopics = tuple(name for _, name in subtopics)
        self._titles = list(titles)

    def _make_users(self, count: int, drift: float, rng: np.random.Generator) -> None:
        C, S, T = len(self._categories), len(self._subtopics), len(TONES)
        taste_GC = rng.dirichlet(np.full(C, 0.25), len(_SEGMENTS))
        tone_BT = rng.normal(size=(len(_AGE_BANDS), T))
        segment_U = rng.integers(len(_SEGMENTS), size=count)
        band_U = rng.integers(len(_AGE_BANDS), size=count)

        def likings(segment: NDArray[np.int64]) -> NDArray[np.float64]:
            mixed_UC = 0.6 * taste_GC[segment] + 0.4 * rng.dirichlet(np.full(C, 0.2), count)
            log_UC = np.log(0.02 + mixed_UC)
            centred_UC = log_UC - log_UC.mean(axis=1, keepdims=True)
            return np.asarray(centred_UC / centred_UC.std(axis=1, keepdims=True), np.float64)

        self._now_UC = likings(segment_U)
        self._later_UC = likings(rng.integers(len(_SEGMENTS), size=count))
        self._turn_U = drift * rng.uniform(0.3, 1.7, count)
        self._liking_US = rng.normal(size=(count, S))
        self._tone_UT = 0.8 * tone_BT[band_U] + 0.6 * rng.normal(size=(count, T))
        self._follows_UM = np.zeros((count, len(self._creators)), np.bool_)
        for u in range(count):
            weight_M = np.exp(1.5 * self._now_UC[u, self._home_M])
            some = rng.choice(len(weight_M), min(5, len(weight_M)), replace=False, p=weight_M / weight_M.sum())
            self._follows_UM[u, some] = True
        activity_U = rng.gamma(1.5, size=count) + 0.1
        self._activity_U = activity_U / activity_U.sum()
        told_U = np.where(rng.random(count) < 0.85, segment_U, rng.integers(len(_SEGMENTS), size=count))
        aged_U = np.where(rng.random(count) < 0.85, band_U, rng.integers(len(_AGE_BANDS), size=count))
        self.users = pl.DataFrame(
            {
                "user_id": [f"u{row:05d}" for row in range(count)],
                "segment": [_SEGMENTS[g] for g in told_U],
                "age_band": [_AGE_BANDS[b] for b in aged_U],
            }
        )
        self.user_columns: Columns = {"segment": _SEGMENTS, "age_band": _AGE_BANDS}

    # -- Time and catalogue

    def day_ms(self, day: float) -> int:
        """The moment `day` days after the start."""
        return self.start_ms + int(day * DAY_MS)

    def items_at(self, time_ms: int) -> pl.DataFrame:
        """Items published by a time."""
        return self.items.head(self._published(time_ms))

    def dataset(self, impressions: pl.DataFrame, events: pl.DataFrame) -> Dataset:
        """A log of this world as a data set."""
        return Dataset(
            items=self.items,
            users=self.users,
            impressions=impressions,
            events=events,
            actions=self.actions,
            weights=self.weights,
            user_columns=self.user_columns,
            item_columns=self.item_columns,
            repeats=True,
        )

    def _published(self, time_ms: int) -> int:
        return int(np.searchsorted(self._published_ms_I, time_ms, side="right"))

    # -- Truth

    @staticmethod
    def examination(size: int) -> NDArray[np.float64]:
        """P(looked at) of each of `size` slots."""
        return np.power(1.0 + np.arange(size, dtype=np.float64), -_EXAMINATION_POWER)

    def relevance(self, text: str) -> NDArray[np.float64]:
        """Share of the typed words, or of those meant by them, that an item is about, (I,); 0 where no word but
        articles is typed."""
        typed = [self._typing.meant(word) for word in words(text) if word not in _STOP]
        relevance_I = np.zeros(self.items.height)
        for word in typed:
            relevance_I[self._about.get(word, [])] += 1 / len(typed)
        return relevance_I

    def probability(
        self, user_row_N: ArrayLike, item_row_N: ArrayLike, time_ms_N: ArrayLike, text: str = ""
    ) -> NDArray[np.float64]:
        """P(action | looked at) of pairs, (N, A) in the order of `actions`; arguments are broadcast.

        Rows are positions in `users` and `items`. An item that is not yet published counts as new.
        """
        u, i, time_ms = np.broadcast_arrays(
            np.atleast_1d(user_row_N), np.asarray(item_row_N), np.asarray(time_ms_N, np.int64)
        )
        angle_N = self._turn_U[u] * (time_ms - self.start_ms) / DAY_MS
        c = self._category_I[i]
        taste_N = (
            np.cos(angle_N) * self._now_UC[u, c]
            + np.sin(angle_N) * self._later_UC[u, c]
            + 0.5 * self._liking_US[u, self._subtopic_I[i]]
            + 0.55 * (self._tone_UT[u] * self._tone_IT[i]).sum(axis=-1)
            + 1.1 * self._follows_UM[u, self._creator_I[i]]
        )
        age_days_N = np.maximum(time_ms - self._published_ms_I[i], 0) / DAY_MS
        quality_N, bait_N = self._quality_I[i], self._bait_I[i]
        drawn_N = taste_N + 0.6 * quality_N + 0.4 * bait_N + 0.9 * np.exp(-age_days_N / _NOVELTY_DAYS)
        click_N = _sigmoid(-5.6 + 4.6 * self.relevance(text)[i] + 0.5 * drawn_N if text else -3.45 + drawn_N)
        like_N = click_N * _sigmoid(-0.6 + 0.5 * taste_N + 0.8 * quality_N - 0.9 * bait_N)
        hide_N = (1 - click_N) * _sigmoid(-4.6 - 0.6 * taste_N + 0.5 * bait_N)
        return np.stack([click_N, like_N, hide_N], axis=-1)

    def value(self, request: WorldRequest, item_row_N: ArrayLike) -> NDArray[np.float64]:
        """Expected reward of items that are looked at."""
        user_row = self._user_row[request.user_id]
        values: NDArray[np.float64] = (
            self.probability(user_row, item_row_N, request.time_ms, request.text) @ self._weight_A
        )
        return values

    def expected_reward(self, request: WorldRequest, item_ids: Sequence[str]) -> float:
        """Expected reward of a slate: sum over slots of P(looked at) * sum over actions of weight * P(action).

        Raises:
            ValueError: where the slate holds an item that the world does not know, or one twice.
        """
        row_K = self._rows(item_ids)
        return float(self.examination(len(row_K)) @ self.value(request, row_K)) if len(row_K) else 0.0

    # -- Requests and responses

    def requests(
        self, start_ms: int, end_ms: int, count: int, *, search_share: float = 0.25, seed: int = 0
    ) -> list[WorldRequest]:
        """Who comes between two times, by time; more by day than by night, active users more often.

        A search is for the category, the subtopic or the title of something that the user likes and that is there. A
        fifth of them say what they can in other words, and a tenth misspell one.
        Ids differ between windows and between seeds.

        Raises:
            ValueError: where the window is empty, or the share is not one.
        """
        if end_ms <= start_ms or count < 0 or not 0 <= search_share <= 1:
            raise ValueError(
                f"requests need start_ms < end_ms, count >= 0 and a search_share in 0..1, "
                f"got {start_ms}, {end_ms}, {count} and {search_share}"
            )
        rng = np.random.default_rng([self.seed, 3, start_ms, end_ms, seed])
        slot_ms = np.linspace(start_ms, end_ms, 1 + max(24, int((end_ms - start_ms) / 3_600_000)))[:-1]
        share = 1 + 0.7 * np.sin((slot_ms / DAY_MS % 1 - 0.375) * 2 * np.pi)
        width_ms = (end_ms - start_ms) / len(slot_ms)
        time_ms = rng.choice(slot_ms, count, p=share / share.sum()) + rng.random(count) * width_ms
        time_ms = np.sort(np.minimum(time_ms.astype(np.int64), end_ms - 1))
        user_row = rng.choice(len(self._activity_U), count, p=self._activity_U)
        searches = rng.random(count) < search_share
        slips = np.random.default_rng([self.seed, 7, start_ms, end_ms, seed])
        return [
            WorldRequest(
                f"w{self.seed}-{seed}-{start_ms}-{n:06d}",
                f"u{user_row[n]:05d}",
                int(time_ms[n]),
                "search" if searches[n] else "home",
                self._typing.typed(self._intent(user_row[n], int(time_ms[n]), rng), slips) if searches[n] else "",
            )
            for n in range(count)
        ]

    def _intent(self, user_row: int, time_ms: int, rng: np.random.Generator) -> str:
        row_N = rng.integers(self._published(time_ms), size=20)
        click_N = self.probability(user_row, row_N, time_ms)[:, 0]
        row = int(row_N[rng.choice(len(row_N), p=click_N / click_N.sum())])
        kind = rng.random()
        if kind < 0.35:
            return self._categories[int(self._category_I[row])].lower()
        if kind < 0.75:
            return self._subtopics[int(self._subtopic_I[row])].lower()
        titled = [word for word in words(self._titles[row]) if word not in _STOP]
        first = int(rng.integers(max(len(titled) - 1, 1)))
        return " ".join(titled[first : first + 2])

    def respond(self, request: WorldRequest, item_ids: Sequence[str]) -> list[dict[str, str | float | int]]:
        """What the user does with a slate: rows of the events frame, in the order of their time.

        The answer is the same whenever the same slate is shown for the same request.

        Raises:
            ValueError: see `expected_reward`.
        """
        row_K = self._rows(item_ids)
        if not len(row_K):
            return []
        rng = np.random.default_rng([self.seed, 4, key64(request.request_id)])
        draw_K4 = rng.random((len(row_K), 4))
        pause_K3 = rng.exponential(size=(len(row_K), 3))
        click_K, like_K, hide_K = self.probability(
            self._user_row[request.user_id], row_K, request.time_ms, request.text
        ).T
        looked_K = draw_K4[:, 0] < self.examination(len(row_K))
        clicked_K = looked_K & (draw_K4[:, 1] < click_K)
        liked_K = clicked_K & (draw_K4[:, 2] * click_K < like_K)
        hidden_K = looked_K & ~clicked_K & (draw_K4[:, 2] * (1 - click_K) < hide_K)
        happened: list[dict[str, str | float | int]] = []
        for k in np.flatnonzero(clicked_K | hidden_K).tolist():
            seen_ms = request.time_ms + 1000 + int(1500 * k + 2000 * pause_K3[k, 0])
            late_ms = _LATE_MS * min(pause_K3[k, 2], 1.0) if draw_K4[k, 3] < 0.02 else 300 * pause_K3[k, 2]
            done = [("hide", seen_ms)] if hidden_K[k] else [("click", seen_ms)]
            if liked_K[k]:
                done.append(("like", seen_ms + 5000 + min(int(60_000 * pause_K3[k, 1]), 600_000)))
            happened += [
                {
                    "event_id": f"{request.request_id}/{k}/{action}",
                    "request_id": request.request_id,
                    "user_id": request.user_id,
                    "item_id": str(item_ids[k]),
                    "action": action,
                    "value": 1.0,
                    "time_ms": at_ms,
                    "visible_ms": at_ms + int(late_ms),
                    "position": k,
                }
                for action, at_ms in done
            ]
        return sorted(happened, key=lambda event: (int(event["time_ms"]), str(event["event_id"])))

    # -- Slates

    def first_log(
        self, requests: Sequence[WorldRequest], *, slate_size: int = 10, popularity_share: float = 0.5
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Impressions and events of the policy that was there before any model.

        Each slot, among what is published and not yet in the slate: with `popularity_share` an item drawn by its
        renown (for a search: uniformly from those whose title holds a typed word, while there are any), else one
        drawn uniformly. Propensities are exact.

        Raises:
            ValueError: where the share or the size is none.
        """
        if slate_size < 1 or not 0 <= popularity_share <= 1:
            raise ValueError(
                f"slate_size must be at least 1 and popularity_share in 0..1, got {slate_size} and {popularity_share}"
            )
        item_ids = self.items["item_id"].to_list()
        shown, happened = [], []
        for request in requests:
            rng = np.random.default_rng([self.seed, 5, key64(request.request_id)])
            rows, propensities = self._first_slate(request, slate_size, popularity_share, rng)
            slate = [item_ids[row] for row in rows]
            shown.append(
                (
                    request.request_id,
                    request.user_id,
                    request.time_ms,
                    request.surface,
                    request.text,
                    slate,
                    propensities,
                )
            )
            happened += self.respond(request, slate)
        return (
            pl.DataFrame(shown, IMPRESSION_SCHEMA, orient="row"),
            pl.DataFrame(happened, EVENT_SCHEMA).sort("time_ms", "event_id"),
        )

    def _first_slate(
        self, request: WorldRequest, size: int, popularity_share: float, rng: np.random.Generator
    ) -> tuple[list[int], list[float]]:
        """Rows and the probability of each given those before; drawn again where a draw is taken already."""
        published = self._published(request.time_ms)
        if request.text:
            row_M = self._matches(request)
            total_M = np.arange(1.0, len(row_M) + 1)
        else:
            row_M = np.arange(published)
            total_M = self._renown_total_I[:published]
        mass_of = dict(zip(row_M.tolist(), np.diff(total_M, prepend=0.0).tolist(), strict=True)) if request.text else {}
        left = float(total_M[-1]) if len(total_M) else 0.0
        remaining = len(row_M)
        rows: list[int] = []
        propensities: list[float] = []
        for k in range(min(size, published)):
            share = popularity_share if remaining else 0.0
            if rng.random() < share:
                row = -1
                while row < 0 or row in rows:
                    row = int(
                        row_M[min(np.searchsorted(total_M, rng.random() * total_M[-1], side="right"), len(row_M) - 1)]
                    )
            else:
                row = int(rng.integers(published))
                while row in rows:
                    row = int(rng.integers(published))
            mass = mass_of.get(row, 0.0) if request.text else float(self._renown_I[row])
            propensities.append((share * mass / left if remaining else 0.0) + (1 - share) / (published - k))
            rows.append(row)
            if mass:
                left -= mass
                remaining -= 1
        return rows, propensities

    def _matches(self, request: WorldRequest) -> NDArray[np.int64]:
        """Published items whose title holds a typed word, in the order of the catalogue."""
        published = self._published(request.time_ms)
        found = [self._titled[word] for word in words(request.text) if word in self._titled]
        row_M = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        return row_M[row_M < published]

    def click_counts(self, events: pl.DataFrame) -> NDArray[np.int64]:
        """Clicks on each item, (I,): what `popular_slate` goes by."""
        clicked = events.filter(pl.col("action") == "click")["item_id"].to_list()
        return np.bincount([self._item_row[item_id] for item_id in clicked], minlength=self.items.height)

    def random_slate(self, request: WorldRequest, size: int) -> list[str]:
        """Published items, each equally likely; the same for the same request."""
        rng = np.random.default_rng([self.seed, 6, key64(request.request_id)])
        published = self._published(request.time_ms)
        return self._ids(rng.choice(published, min(size, published), replace=False))

    def popular_slate(self, request: WorldRequest, size: int, click_I: NDArray[np.int64]) -> list[str]:
        """The most clicked of the published items; for a search of those whose title holds a typed word, then of all.

        Ties go to what was published last.
        """
        published = self._published(request.time_ms)
        matched_I = np.zeros(published, np.bool_)
        if request.text:
            matched_I[self._matches(request)] = True
        order_I = np.lexsort((-np.arange(published), -click_I[:published], ~matched_I))
        return self._ids(order_I[:size])

    def oracle_slate(self, request: WorldRequest, size: int) -> list[str]:
        """The published items of highest true value, best first: no slate of that size has a higher reward."""
        value_I = self.value(request, np.arange(self._published(request.time_ms)))
        return self._ids(np.argsort(-value_I, kind="stable")[:size])

    def _ids(self, row_K: NDArray[np.int64]) -> list[str]:
        return self.items["item_id"].gather(row_K).to_list()

    def _rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        strangers = [item_id for item_id in item_ids if item_id not in self._item_row]
        if strangers:
            raise ValueError(f"{len(strangers)} of {len(item_ids)} items are not of this world, first {strangers[0]!r}")
        if len(set(item_ids)) < len(item_ids):
            raise ValueError(f"a slate of {len(item_ids)} items holds only {len(set(item_ids))} different ones")
        return np.array([self._item_row[item_id] for item_id in item_ids], np.int64)


def _postings(texts: Sequence[set[str]], count: int) -> dict[str, NDArray[np.int64]]:
    """Word to the rows that hold it."""
    rows: dict[str, list[int]] = {}
    for row in range(count):
        for word in texts[row]:
            rows.setdefault(word, []).append(row)
    return {word: np.array(held, np.int64) for word, held in rows.items()}


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logit))
