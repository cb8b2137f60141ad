"""Titles that match words, by BM25, through tantivy.

Shape letters: I items, K results.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import tantivy
from numpy.typing import NDArray

from index.types import Hits

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
}
"""Languages whose words can be reduced to stems."""
MOST_WORDS = 64
"""Distinct words of a query that are looked up; what follows them is not read."""

_FACTS = "lexical.json"
_LOCKS = (".tantivy-meta.lock", ".tantivy-writer.lock")
_HEAP_BYTES = 4_000_000_000
"""The most tantivy grants a writer thread. Taken as it fills; below it all titles make one segment."""


class LexicalIndex:
    """An immutable index of titles whose row i is item i.

    A title in which the query's distinct words w occur tf_w times scores

        sum_w ln(1 + (I - I_w + 0.5) / (I_w + 0.5)) * 2.2 * tf_w / (tf_w + 1.2 * (0.25 + 0.75 * length / mean_length))

    where I_w of I titles hold w: BM25 as in Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009,
    with k1 = 1.2 and b = 0.75; tantivy rounds lengths above 40 words. Words are runs of letters and digits,
    lower-case, without accents, stemmed. Equal scores come in the order of rows (up to some twenty million
    titles, which one segment holds).
    """

    def __init__(self, index: tantivy.Index, language: str) -> None:
        self.language = language
        self._words = _analyzer(language)
        self._schema = index.schema
        self._searcher = index.searcher()

    @classmethod
    def build(cls, folder: Path, titles: Sequence[str], *, language: str = "en") -> Self:
        """Write an index of the titles into a new or empty folder and open it.

        Everything but the names of files is determined by the arguments: one thread writes one segment.

        Raises:
            ValueError: an unknown language, or a folder that holds something.
        """
        if language not in LANGUAGES:
            raise ValueError(f"language is {language!r}, it must be one of {', '.join(LANGUAGES)}")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, a lexical index needs a folder of its own")
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("title", tokenizer_name="title", index_option="freq")
        builder.add_unsigned_field("row", fast=True)
        index = tantivy.Index(builder.build(), path=str(folder), reuse=False)
        index.register_tokenizer("title", _analyzer(language))
        writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        for row, title in enumerate(titles):
            document = tantivy.Document()
            document.add_text("title", _utf8(title))
            document.add_unsigned("row", row)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        (folder / _FACTS).write_text(json.dumps({"language": language, "count": len(titles)}) + "\n")
        for path in list(folder.iterdir()):
            if path.name in _LOCKS:
                path.unlink()
            else:
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
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{facts} does not describe a lexical index: {error!r}") from error
        if language not in LANGUAGES:
            raise ValueError(f"{facts} says language {language!r}, it must be one of {', '.join(LANGUAGES)}")
        # tantivy takes a lock in the folder it opens. Links in a folder of our own leave a generation untouched;
        # all files are mapped on opening, so the links may go; a thread of tantivy's may still be putting its lock
        # there.
        with TemporaryDirectory(prefix="lexical-", ignore_cleanup_errors=True) as links:
            for path in folder.iterdir():
                if path.name not in _LOCKS:
                    (Path(links) / path.name).symlink_to(path.resolve())
            try:
                index = tantivy.Index.open(links)
                index.config_reader(reload_policy="Manual")
                opened = cls(index, language)
            except ValueError as error:
                raise ValueError(f"{folder} is not a tantivy index: {str(error).splitlines()[0]}") from error
        if len(opened) != count:
            raise ValueError(f"{folder} holds {len(opened)} titles, {_FACTS} says {count}")
        return opened

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def search(self, text: str, k: int, allowed_I: NDArray[np.bool_] | None = None) -> Hits:
        """The k titles that match the text best; any text has an answer, if only an empty one.

        Nothing in the text is an operator. Of more than `MOST_WORDS` distinct words the first are used.

        Args:
            allowed_I: rows that may be returned.

        Raises:
            ValueError: a mask of another length, or a negative k.
        """
        if k < 0:
            raise ValueError(f"k is {k}, it must not be negative")
        if allowed_I is not None and (allowed_I.shape != (len(self),) or allowed_I.dtype != np.bool_):
            raise ValueError(f"a mask of {allowed_I.dtype} {allowed_I.shape} for {len(self)} rows")
        words = list(dict.fromkeys(self._words.analyze(_utf8(text))))[:MOST_WORDS]
        if not words or k == 0 or not len(self):
            return Hits(np.empty(0, np.int64), np.empty(0, np.float32))
        terms = [tantivy.Query.term_query(self._schema, "title", word, "freq") for word in words]
        query = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        limit = k = min(k, len(self))
        while True:
            found = self._searcher.search(query, limit=limit, count=False).hits
            row_K = np.array(self._searcher.fast_field_values("row", [at for _, at in found]), np.int64)
            score_K = np.array([score for score, _ in found], np.float32)
            if allowed_I is not None:
                allowed_K = allowed_I[row_K]
                row_K, score_K = row_K[allowed_K], score_K[allowed_K]
            if len(row_K) >= k or len(found) < limit or limit == len(self):
                return Hits(row_K[:k], score_K[:k])
            limit = min(8 * limit, len(self))


def _analyzer(language: str) -> tantivy.TextAnalyzer:
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer(LANGUAGES[language]))
        .build()
    )


def _utf8(text: str) -> str:
    """The text with halves of surrogate pairs, which UTF-8 cannot hold, replaced."""
    return text.encode("utf-8", "replace").decode()
