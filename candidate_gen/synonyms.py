"""Words and phrases that may stand for others: as a file says, or as people who search show.

A file has one rule a line; what follows a # is a remark:

    sofa, couch, settee        any of them may stand for any other
    laptop => notebook         who types laptop is shown notebooks too, and not the other way round

Shape letters: Q queries, C pairs of a query and an item.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from candidate_gen.query_log import QueryLog
from candidate_gen.text import words

MOST_WORDS = 3
"""Of a phrase."""
_STATED, _MINED = 0.8, 0.5
"""What a match of another phrase is worth beside one of what was typed; of a mined one this times its share."""
_LEAST_TAKEN = 5
_LEAST_ITEMS = 2
_LEAST_SHARE = 0.5
_SURPRISE = math.log(1000)
_BUSIEST = 200
"""Queries of one item that are compared, those that led to it most often."""

Others = Mapping[str, tuple[tuple[str, float], ...]]
"""For a phrase, those that may stand for it with their worth, best first. Phrases are words with single blanks."""


def stated(lines: Iterable[str]) -> dict[str, tuple[tuple[str, float], ...]]:
    """What the lines of a file say.

    Raises:
        ValueError: naming the line.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for number, line in enumerate(lines, start=1):
        rule = line.partition("#")[0].strip()
        if not rule:
            continue
        left, arrow, right = rule.partition("=>")
        where = f"synonyms, line {number}: {line.strip()!r}"
        sides = [_phrases(side, where) for side in ((left, right) if arrow else (left,))]
        if not arrow and len(sides[0]) < 2:
            raise ValueError(f"{where} has one phrase; at least 2 are needed, or a =>")
        for phrase in sides[0]:
            found[phrase] |= {other: _STATED for other in sides[-1] if other != phrase}
    return _best_first(found)


def _phrases(side: str, where: str) -> list[str]:
    phrases = [words(each) for each in side.split(",")]
    if wrong := [each for each in phrases if not 1 <= len(each) <= MOST_WORDS]:
        raise ValueError(f"{where} has a phrase of {len(wrong[0])} words; allowed: 1 to {MOST_WORDS}")
    return [" ".join(each) for each in phrases]


def mined(log: QueryLog) -> dict[str, tuple[tuple[str, float], ...]]:
    """What queries say that lead to the same items.

    A query b may stand for a where half of what people took for a are items, at least 2, that people took for b as
    well, and that is no chance: with n takings for a, a share s of them among items that get a share e of all takings,
    n KL(s || e) >= ln 1000 (a Chernoff bound on the binomial tail). Both need 5 takings. Where it holds one way alone,
    as from narrow to broad, they stand for each other one way alone. Of the two what they begin and end with alike is
    left out, so that "red couch" and "red sofa" tell of all couches; where then nothing is left of one, the other only
    says more, and nothing is learned.
    """
    taken_C = log.taken_C[log.taken()[log.taken_C["query"]] >= _LEAST_TAKEN]
    split_Q = [words(text) for text in log.text_Q]
    of_item: dict[int, list[tuple[int, int]]] = defaultdict(list)
    of_query: dict[int, dict[int, int]] = defaultdict(dict)
    for query, item, people in taken_C.tolist():
        of_item[item].append((people, query))
        of_query[query][item] = people
    all_of = Counter({item: sum(people for people, _ in each) for item, each in of_item.items()})
    total = all_of.total()
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for query, taken in of_query.items():
        shared: dict[int, list[int]] = defaultdict(list)
        for item, people in taken.items():
            for _, other in sorted(of_item[item], reverse=True)[:_BUSIEST]:
                if other != query:
                    shared[other].append(people)
        for other, counts in shared.items():
            share = sum(counts) / sum(taken.values())
            expected = sum(all_of[item] for item in of_query[other]) / total
            differing = _differing(split_Q[query], split_Q[other])
            if len(counts) < _LEAST_ITEMS or share < _LEAST_SHARE or differing is None:
                continue
            if sum(taken.values()) * _divergence(share, expected) >= _SURPRISE:
                phrase, instead = differing
                found[phrase][instead] = max(found[phrase].get(instead, 0.0), _MINED * share)
    return _best_first(found)


def variants(split: Sequence[str], others: Others, *, most: int = 3) -> list[tuple[str, float]]:
    """A query's words with one phrase replaced, and what matches of that are worth; the best, each once."""
    found: dict[str, float] = {}
    for phrase, start, end in _runs(split):
        for other, worth in others.get(phrase, ()):
            text = " ".join([*split[:start], other, *split[end:]])
            found[text] = max(found.get(text, 0.0), worth)
    return sorted(found.items(), key=lambda each: (-each[1], each[0]))[:most]


def _runs(split: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    for start in range(len(split)):
        for end in range(start + 1, min(start + MOST_WORDS, len(split)) + 1):
            yield " ".join(split[start:end]), start, end


def _differing(one: Sequence[str], other: Sequence[str]) -> tuple[str, str] | None:
    """What is left of both without the words that they begin and end with alike."""
    most = min(len(one), len(other))
    start = next((at for at in range(most) if one[at] != other[at]), most)
    end = next((at for at in range(most - start) if one[-1 - at] != other[-1 - at]), most - start)
    left = one[start : len(one) - end], other[start : len(other) - end]
    if not all(1 <= len(each) <= MOST_WORDS for each in left):
        return None
    return " ".join(left[0]), " ".join(left[1])


def _divergence(share: float, expected: float) -> float:
    """Of a coin that shows `share` from one that shows `expected`; 0 where the share is smaller."""
    if share <= expected:
        return 0.0
    rest = (1 - share) * math.log((1 - share) / (1 - expected)) if share < 1 else 0.0
    return share * math.log(share / expected) + rest


def _best_first(found: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[tuple[str, float], ...]]:
    def order(each: tuple[str, float]) -> tuple[float, str]:
        return -each[1], each[0]

    return {phrase: tuple(sorted(others.items(), key=order)) for phrase, others in sorted(found.items()) if others}
