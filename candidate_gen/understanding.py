"""What a typed query is understood as: what to search for, what besides, among which items, and what it is about.

Everything here follows from the text, the steps that are switched on, and what was learned when the generation was
built, so that a logged query is understood again as it was.

Shape letters: I items, Q queries, V values of an attribute.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from candidate_gen.conditions import Conditions
from candidate_gen.features import FeatureTable
from candidate_gen.intents import AttributeIntents, Meant, Sample
from candidate_gen.items import Items
from candidate_gen.query_log import QueryLog
from candidate_gen.spelling import SPELLING_FILES, Spelling
from candidate_gen.synonyms import Others, mined, stated, variants
from candidate_gen.text import words
from index.measures import measured
from index.strings import StringColumn

Step = Literal["off", "auto", "suggest"]
"""Left out; done; told without being done."""
MOST_TYPED = 64
"""Words of a query that are understood; a longer one is searched for as it is."""
_FILE, _SYNONYMS = "understanding.json", "synonyms.txt"
_KNOWN_TO = 3
"""People who typed a word, and took what they found, before it counts as a word."""
_TOLD = 3
_SURE = 0.02
"""Least probability of a category that is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What may be done to a query."""

    spelling: Step = "auto"
    synonyms: Step = "auto"
    """Those of a file."""
    expansion: Step = "auto"
    """What people who took the same items typed."""
    filters: Step = "auto"
    intent: Step = "auto"
    pin_unexpanded: bool = False
    """Other words are searched for only where those typed match less than a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """A query as it is understood."""

    text: str
    """What is searched for."""
    corrected: str = ""
    """The text as it is spelt right; empty where it was, or where nobody looked."""
    expanded: tuple[tuple[str, float], ...] = ()
    """Other texts that mean the same, with what a match of each is worth; best first."""
    filter: str = ""
    """Condition that the query states; empty for none."""
    dropped_filter: str = ""
    """The same where nothing would be left."""
    intent: tuple[tuple[str, float], ...] = ()
    """The likeliest categories with their probabilities."""
    creators: tuple[tuple[str, float], ...] = ()
    """The likeliest creators (brands) with theirs."""
    searched: tuple[tuple[str, float], ...] = ()
    """Of `expanded`, what is searched for too."""
    meant: tuple[Meant, ...] = field(default=(), compare=False, repr=False)
    """Categories and creators, where something is to be made of them."""
    is_filtered: bool = False
    """Whether only items that meet `filter` are to be shown."""
    pin_unexpanded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Understanding:
    """What was learned of a catalogue and of those who search it."""

    spelling: Spelling
    stated: Others
    mined: Others
    conditions: Conditions
    categories: AttributeIntents
    creators: AttributeIntents
    rules: Sequence[str]
    """The lines of the file that `stated` is made of."""
    fingerprint: str = ""
    """Of what is stored; empty where nothing is."""

    @classmethod
    def of(
        cls,
        items: Items,
        log: QueryLog,
        table: FeatureTable,
        *,
        rules: Sequence[str] = (),
    ) -> "Understanding":
        """
        Args:
            rules: lines as `synonyms.stated` reads them.

        Raises:
            ValueError: naming the line of a rule that cannot be read.
        """
        declared = {feature.name: feature.vocabulary for feature in table.item_columns if feature.vocabulary}
        text_I = _every(items.searchable)
        word_of_I = [words(measured(text)) for text in text_I]
        split_Q = [words(text) for text in log.text_Q]
        typed = _typed(items, log, split_Q)
        titled = ((split, row, 1.0) for row, split in enumerate(word_of_I))
        return cls(
            spelling=Spelling.of(map(words, text_I), typed=_known(log, split_Q)),
            stated=stated(rules),
            mined=mined(log),
            conditions=Conditions.of(items, declared, word_of_I),
            categories=AttributeIntents.of(items, "category", [*typed, *titled]),
            creators=AttributeIntents.of(items, "creator", [*typed, *_named(items, "creator")]),
            rules=tuple(rules),
        )

    def understand(self, text: str, steps: Steps) -> Understood:
        """What a query is understood as; see `Understood`. Of what is only to be told, nothing else depends."""
        if not text.strip() or len(text.split()) > MOST_TYPED:
            return Understood(text=text)
        rest, condition = (text, "") if steps.filters == "off" else self.conditions.extracted(text)
        searched = rest if steps.filters == "auto" else text
        corrected = searched if steps.spelling == "off" else self.spelling.corrected(searched)
        is_corrected = corrected != searched
        searched = corrected if steps.spelling == "auto" else searched
        split = words(measured(searched))
        by_step = [
            (variants(split, others), step)
            for others, step in ((self.stated, steps.synonyms), (self.mined, steps.expansion))
            if step != "off"
        ]
        of = () if steps.intent == "off" else (self.categories, self.creators)
        meant = {each.attribute: each.meant(split) for each in of}
        return Understood(
            text=searched,
            corrected=corrected if is_corrected else "",
            expanded=_best(found for found, _ in by_step),
            searched=_best(found for found, step in by_step if step == "auto"),
            filter=condition,
            is_filtered=bool(condition) and steps.filters == "auto",
            intent=self.categories.likeliest(meant.get("category"), _TOLD, least=_SURE),
            creators=self.creators.likeliest(meant.get("creator"), _TOLD, least=_SURE),
            meant=tuple(each for each in meant.values() if each is not None and steps.intent == "auto"),
            pin_unexpanded=steps.pin_unexpanded,
        )

    def without_filter(self, text: str, steps: Steps) -> Understood:
        """The same where a condition that the query states leaves nothing, and is therefore dropped."""
        dropped = self.conditions.extracted(text).filter
        return replace(self.understand(text, replace(steps, filters="off")), dropped_filter=dropped)

    def save(self, folder: Path) -> "Understanding":
        """Write what `load` reads, and return the same with its fingerprint."""
        self.spelling.save(folder)
        (folder / _SYNONYMS).write_text("".join(f"{line.rstrip()}\n" for line in self.rules))
        told = {
            "stated": self.stated,
            "mined": self.mined,
            "numbers": list(self.conditions.numbers),
            "values": self.conditions.value_of,
            "categories": self.categories.stored,
            "creators": self.creators.stored,
        }
        (folder / _FILE).write_text(json.dumps(told, sort_keys=True))
        return replace(self, fingerprint=_fingerprint(folder))

    @classmethod
    def load(cls, folder: Path) -> "Understanding | None":
        """What `save` wrote; None for a generation that has none.

        Raises:
            ValueError: written by a version that understood queries otherwise.
        """
        if not (folder / _FILE).exists():
            return None
        told: dict[str, Any] = json.loads((folder / _FILE).read_text())
        if "creators" not in told:
            raise ValueError(f"{folder / _FILE} knows of no creators: build a generation with this version")
        return cls(
            spelling=Spelling.load(folder),
            stated=_pairs(told["stated"]),
            mined=_pairs(told["mined"]),
            conditions=Conditions(told["numbers"], {phrase: tuple(each) for phrase, each in told["values"].items()}),
            categories=AttributeIntents.load("category", told["categories"]),
            creators=AttributeIntents.load("creator", told["creators"]),
            rules=synonyms_of(folder),
            fingerprint=_fingerprint(folder),
        )


def synonyms_of(folder: Path) -> list[str]:
    """The rules about synonyms that a stored understanding was made with; none where there is none."""
    path = folder / _SYNONYMS
    return path.read_text().splitlines() if path.exists() else []


def _known(log: QueryLog, split_Q: Sequence[Sequence[str]]) -> dict[str, int]:
    """Words that several people typed and found something by, and how many."""
    people: dict[str, int] = {}
    for split, count, taken in zip(split_Q, log.row_Q["people"].tolist(), log.taken().tolist(), strict=True):
        for word in set(split) if taken else ():
            people[word] = people.get(word, 0) + min(count, taken)
    return {word: count for word, count in people.items() if count >= _KNOWN_TO}


def _typed(items: Items, log: QueryLog, split_Q: Sequence[Sequence[str]]) -> list[Sample]:
    """Queries with the items that were taken, and by how many."""
    row_T = items.ids.rows(log.taken_C["item_key"])
    taken = zip(log.taken_C.tolist(), row_T.tolist(), strict=True)
    return [(split_Q[query], row, float(people)) for (query, _, people), row in taken if row >= 0]


def _named(items: Items, attribute: str) -> list[Sample]:
    """Names of an attribute's values, each with an item that has it, and how many have."""
    column = items.attributes.get(attribute)
    if column is None:
        return []
    key_V, row_V, count_V = np.unique(np.asarray(column), return_index=True, return_counts=True)
    named = zip(items.texts_of(key_V), row_V.tolist(), count_V.tolist(), strict=True)
    return [(words(measured(name)), row, float(count)) for name, row, count in named]


def _best(found: Iterable[Sequence[tuple[str, float]]]) -> tuple[tuple[str, float], ...]:
    worth: dict[str, float] = {}
    for each in found:
        for text, value in each:
            worth[text] = max(worth.get(text, 0.0), value)
    return tuple(sorted(worth.items(), key=lambda each: (-each[1], each[0]))[:_TOLD])


def _every(column: StringColumn) -> list[str]:
    return column.take(np.arange(len(column)))


def _pairs(stored: Mapping[str, Sequence[tuple[str, float]]]) -> Others:
    return {phrase: tuple((other, worth) for other, worth in others) for phrase, others in stored.items()}


def _fingerprint(folder: Path) -> str:
    digest = sha256()
    for name in (_FILE, _SYNONYMS, *SPELLING_FILES):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]
