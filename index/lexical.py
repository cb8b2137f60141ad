"""Titles that match words, by BM25, through tantivy.

Shape letters: I items, K results, S segments.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Lock
from typing import Any, Self
from weakref import finalize

import numpy as np
import tantivy
from numpy.typing import NDArray

from index.masks import Mask
from index.measures import measured
from index.segments import segmented
from index.types import Hits

GRAMS = "grams"
LANGUAGES = {
    "ar": "arabic",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "hu": "hungarian",
    "it": "italian",
    "nl": "dutch",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    GRAMS: "",
}
"""Languages whose words can be reduced to stems; and none, where runs of letters stand in place of words."""
MOST_WORDS = 64
"""Distinct words of a query that are looked up; what follows them is not read."""
FIELD_END = "\x1f"
"""Stands between the fields of a text."""
MAX_BOOST = 100

_GRAM = 4
_FACTS = "lexical.json"
_META = "meta.json"
_LOCKS = (".tantivy-meta.lock", ".tantivy-writer.lock")
_HEAP_BYTES = 4_000_000_000
"""The most tantivy grants a writer thread. Taken as it fills; below it all titles make one segment."""
_MOST_TEXTS, _MOST_ROWS = 1024, 1 << 22
"""For which matches are kept, and of which they are in all; beyond it all are forgotten."""
_FULL = 1 << 17
"""Characters from which on a segment of added titles is never written again."""


class LexicalIndex:
    """An immutable index of titles, or of texts of several fields, whose row i is item i.

    A title in which the query's distinct words w occur tf_w times scores

        sum_w ln(1 + (I - I_w + 0.5) / (I_w + 0.5)) * 2.2 * tf_w / (tf_w + 1.2 * (0.25 + 0.75 * length / mean_length))

    where I_w of I titles hold w: BM25 as in Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009,
    with k1 = 1.2 and b = 0.75; tantivy rounds lengths above 40 words. Words are runs of letters and digits,
    lower-case, without accents, stemmed; numbers with units are read as `measured` writes them, and scripts without
    blanks are cut by `segmented`. A word of a field with boost b counts as b words, which is BM25 with weighted
    fields as in Robertson, Zaragoza and Taylor, "Simple BM25 Extension to Multiple Weighted Fields", 2004.

    Equal scores come in the order of rows, unless a build fills eight segments of 4 GB in memory each: tantivy merges
    those in an order of its own. An index that has grown answers to the last bit as one built of all its titles.

    Args:
        folder: what `build` wrote. It must stay there for as long as the index is to grow.
        boosts: of the fields in the order in which texts hold them, by name.
        prepare: what is done to every field, and to every query, before it is cut into words.
        shelf: where it grows, and what was added there; none so far where it is missing.
    """

    def __init__(
        self,
        folder: Path,
        language: str,
        boosts: Mapping[str, int],
        *,
        prepare: Callable[[str], str],
        shelf: "_Shelf | None" = None,
        added: Sequence["_Added"] = (),
    ) -> None:
        self.language = language
        self.boosts = dict(boosts)
        self._prepare = prepare
        self._folder = folder
        self._shelf = shelf
        self._added = tuple(added)
        self._matched: dict[tuple[bool, tuple[str, ...]], NDArray[np.int64]] = {}
        self._keeping = Lock()
        self._words = _analyzer(language)
        self._schema = _schema()
        self._searcher = (shelf or _Shelf(folder)).searcher(self._added)

    @classmethod
    def build(
        cls, folder: Path, titles: Sequence[str], *, language: str = "en", boosts: Mapping[str, int] | None = None
    ) -> Self:
        """Write an index of the titles into a new or empty folder and open it.

        Everything but the names of files is determined by the arguments: one thread writes one segment.

        Args:
            titles: fields with `FIELD_END` between them; those that are missing at the end are empty.
            boosts: whole numbers by name of the field; 0 for one that is not read. One field with boost 1 where not
                given.

        Raises:
            ValueError: an unknown language, a boost that is none, or a folder that holds something.
        """
        boosts = {"title": 1} if boosts is None else dict(boosts)
        check_boosts(boosts)
        if language not in LANGUAGES:
            raise ValueError(f"language is {language!r}, it must be one of {', '.join(LANGUAGES)}")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, a lexical index needs a folder of its own")
        _write(folder, _each_field(_prepared, titles), language=language, boosts=boosts)
        facts = {"language": language, "count": len(titles), "boosts": boosts, "prepared": True}
        (folder / _FACTS).write_text(json.dumps(facts) + "\n")
        for path in folder.iterdir():
            path.chmod(0o644)  # tantivy makes some of them its user's own; a server may be another user
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `build` wrote, memory-mapped. Writes nothing there, so the folder may be read-only.

        Raises:
            ValueError: a missing or unreadable file, or an index that is not the one its description tells of.
        """
        facts = folder / _FACTS
        try:
            stored = json.loads(facts.read_text())
            language, count = stored["language"], stored["count"]
            boosts = stored.get("boosts", {"title": 1})
            check_boosts(boosts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{facts} does not describe a lexical index: {error!r}") from error
        if language not in LANGUAGES:
            raise ValueError(f"{facts} says language {language!r}, it must be one of {', '.join(LANGUAGES)}")
        prepare = _prepared if stored.get("prepared") else _utf8  # those of before this was done
        opened = cls(folder, language, boosts, prepare=prepare)
        if len(opened) != count:
            raise ValueError(f"{folder} holds {len(opened)} titles, {_FACTS} says {count}")
        return opened

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def grown(self, titles: Sequence[str]) -> Self:
        """An index of these titles too, as its next rows; this one keeps answering as before.

        They become a segment together with the segments before it that are no larger, so that of N titles added one
        by one each is written at most log2(N) times, and log2(N) segments are searched besides the full ones. Their
        files lie in a temporary folder until the last index that reads them is gone.

        Raises:
            ValueError: the folder that was built is gone.
        """
        if not titles:
            return self
        kept, texts = list(self._added), _each_field(self._prepare, titles)
        while kept and kept[-1].size <= _size(texts) < _FULL:
            texts = [*kept.pop().texts, *texts]
        shelf = self._shelf or _Shelf(self._folder)
        first = len(self) + len(titles) - len(texts)
        kept.append(shelf.added(texts, first=first, language=self.language, boosts=self.boosts))
        return type(self)(self._folder, self.language, self.boosts, prepare=self._prepare, shelf=shelf, added=kept)

    def search(self, text: str, k: int, allowed: Mask | None = None) -> Hits:
        """The k titles that match the text best; any text has an answer, if only an empty one.

        Nothing in the text is an operator. Of more than `MOST_WORDS` distinct words the first are used.

        Args:
            allowed: rows that may be returned.

        Raises:
            ValueError: a mask of another length, or a negative k.
        """
        if k < 0:
            raise ValueError(f"k is {k}, it must not be negative")
        if allowed is not None and len(allowed) != len(self):
            raise ValueError(f"a mask of {len(allowed)} rows for an index of {len(self)}")
        words = self._words_of(text)
        count = len(self) if allowed is None else allowed.count
        k = min(k, count)
        if not words or not k:
            return Hits(np.empty(0, np.int64), np.empty(0, np.float32))
        query = self._query(words, tantivy.Occur.Should)
        # Were the allowed rows strewn evenly, this many would nearly always hold k of them.
        limit = k if count == len(self) else min(len(self), ceil(1.1 * k * len(self) / count) + 16)
        while True:
            found = self._searcher.search(query, limit=limit, count=False).hits
            row_K = np.array(self._searcher.fast_field_values("row", [at for _, at in found]), np.int64)
            score_K = np.array([score for score, _ in found], np.float32)
            if allowed is not None:
                allowed_K = allowed.allowed_I[row_K]
                row_K, score_K = row_K[allowed_K], score_K[allowed_K]
            if len(row_K) >= k or len(found) < limit or limit == len(self):
                return Hits(row_K[:k], score_K[:k])
            limit = min(8 * limit, len(self))

    def matches(self, text: str, *, every: bool) -> NDArray[np.int64]:
        """All rows that hold each of the text's words, or any of them, ascending. Words that no row holds do not count.

        Many rows take long, 0.3 microseconds each, so those of the latest texts are kept.

        Args:
            every: each; otherwise any.
        """
        words = [word for word in self._words_of(text) if self._searcher.doc_freq("title", word)]
        asked = every, tuple(words)
        row_M = self._matched.get(asked)
        if row_M is None:
            row_M = self._all_rows(words, every) if words else np.empty(0, np.int64)
            row_M.flags.writeable = False
            with self._keeping:
                kept = sum(map(len, self._matched.values()))
                if kept + len(row_M) > _MOST_ROWS or len(self._matched) >= _MOST_TEXTS:
                    self._matched.clear()
                self._matched[asked] = row_M
        return row_M

    def _all_rows(self, words: Sequence[str], every: bool) -> NDArray[np.int64]:
        query = self._query(words, tantivy.Occur.Must if every else tantivy.Occur.Should)
        count = self._searcher.search(query, limit=1, count=True).count  # type: ignore[attr-defined]  # not in its stubs
        found = self._searcher.search(query, limit=max(count, 1), count=False).hits  # the limit is set aside at once
        return np.sort(np.array(self._searcher.fast_field_values("row", [at for _, at in found]), np.int64))

    def _words_of(self, text: str) -> list[str]:
        return list(dict.fromkeys(self._words.analyze(self._prepare(text))))[:MOST_WORDS]

    def _query(self, words: Sequence[str], occur: tantivy.Occur) -> tantivy.Query:
        terms = [tantivy.Query.term_query(self._schema, "title", word, "freq") for word in words]
        return tantivy.Query.boolean_query([(occur, term) for term in terms])


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class _Added:
    """A segment of added titles."""

    texts: Sequence[str]
    size: int
    entry: Mapping[str, Any]
    """What tantivy's list of segments says of it."""


class _Shelf:
    """A temporary folder where tantivy opens a base, by links to its files, and what was added to it.

    tantivy takes a lock in the folder it opens, and of equal scores it prefers the segment that is listed first.
    Links in a folder of our own, beside a list of our own, leave a generation untouched. All files are mapped on
    opening, so that a searcher needs the folder no more.

    Raises:
        ValueError: a folder that is no tantivy index.
    """

    def __init__(self, base: Path) -> None:
        self._path = Path(mkdtemp(prefix="lexical-"))
        finalize(self, _remove, self._path)
        self._lock = Lock()
        try:
            for path in base.iterdir():
                if path.name not in (_META, *_LOCKS):
                    (self._path / path.name).symlink_to(path.resolve())
            self._meta = json.loads((base / _META).read_text())
            self._list(self._meta["segments"])
            self._index = tantivy.Index.open(str(self._path))
            self._index.config_reader(reload_policy="Manual")
            self._sort()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{base} is not a tantivy index: {str(error).splitlines()[0]}") from error

    def searcher(self, added: Sequence[_Added]) -> tantivy.Searcher:
        """Of the base and of what was added to it, in this order."""
        with self._lock:
            self._list([*self._meta["segments"], *(segment.entry for segment in added)])
            self._index.reload()
            return self._index.searcher()

    def added(self, texts: Sequence[str], *, first: int, language: str, boosts: Mapping[str, int]) -> _Added:
        """The texts, whose rows count from the first, as a segment; its files go when nothing holds it."""
        folder = Path(mkdtemp(dir=self._path))
        _write(folder, texts, first=first, language=language, boosts=boosts)
        (entry,) = json.loads((folder / _META).read_text())["segments"]
        stem = entry["segment_id"].replace("-", "")
        paths = [path.rename(self._path / path.name) for path in folder.glob(f"{stem}.*")]
        _remove(folder)
        segment = _Added(texts, _size(texts), entry)
        finalize(segment, _unlink, paths)
        return segment

    def _list(self, segments: Sequence[Mapping[str, Any]]) -> None:
        (self._path / _META).write_text(json.dumps({**self._meta, "segments": segments}))

    def _sort(self) -> None:
        """List the base's segments in the order of their rows; tantivy shuffles them where there are several."""
        segments, searcher = self._meta["segments"], self._index.searcher()
        first_S = searcher.fast_field_values("row", [tantivy.DocAddress(s, 0) for s in range(len(segments))])
        self._meta["segments"] = [segments[s] for s in np.argsort(np.array(first_S, np.int64))]


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    for _ in range(2):  # on opening, a thread of tantivy's puts a lock there; it may do so during the first time
        rmtree(folder, ignore_errors=True)


def _write(folder: Path, texts: Sequence[str], *, language: str, boosts: Mapping[str, int], first: int = 0) -> None:
    """A tantivy index of the texts, whose rows count from the first."""
    times_F = list(boosts.values())
    index = tantivy.Index(_schema(), path=str(folder), reuse=False)
    index.config_reader(reload_policy="Manual")  # no thread that locks the folder when what it holds has changed
    index.register_tokenizer("title", _analyzer(language))
    writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
    for row, text in enumerate(texts, start=first):
        document = tantivy.Document()
        for field, times in zip(text.split(FIELD_END), times_F, strict=False):
            for _ in range(times):
                document.add_text("title", field)
        document.add_unsigned("row", row)
        writer.add_document(document)
    writer.commit()
    writer.wait_merging_threads()
    for name in _LOCKS:
        (folder / name).unlink(missing_ok=True)


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("title", tokenizer_name="title", index_option="freq")
    builder.add_unsigned_field("row", fast=True)
    return builder.build()


def check_boosts(boosts: Mapping[str, int]) -> None:
    """
    Raises:
        ValueError: naming the field.
    """
    if not any(boosts.values()):
        raise ValueError(f"boosts are {dict(boosts)}; one of them must be above 0")
    for name, boost in boosts.items():
        if not (isinstance(boost, int) and 0 <= boost <= MAX_BOOST):
            raise ValueError(f"boosts[{name!r}] is {boost!r}; it must be a whole number from 0 to {MAX_BOOST}")


def joined(fields: Sequence[str | None]) -> str:
    """One text of several fields."""
    return FIELD_END.join((field or "").replace(FIELD_END, " ") for field in fields).rstrip(FIELD_END)


def _size(texts: Sequence[str]) -> int:
    """Characters, an empty text counting as one."""
    return len(texts) + sum(map(len, texts))


def _analyzer(language: str) -> tantivy.TextAnalyzer:
    if language == GRAMS:
        grams = tantivy.Tokenizer.ngram(_GRAM, _GRAM, prefix_only=False)
        builder = tantivy.TextAnalyzerBuilder(grams)
        return builder.filter(tantivy.Filter.lowercase()).filter(tantivy.Filter.ascii_fold()).build()
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer(LANGUAGES[language]))
        .build()
    )


def _each_field(prepare: Callable[[str], str], texts: Iterable[str]) -> list[str]:
    return [FIELD_END.join(map(prepare, text.split(FIELD_END))) for text in texts]


def _prepared(text: str) -> str:
    """Measures in one form, and words apart where their script has no blanks."""
    return segmented(measured(_utf8(text)))


def _utf8(text: str) -> str:
    """The text with halves of surrogate pairs, which UTF-8 cannot hold, replaced."""
    return text.encode("utf-8", "replace").decode()
