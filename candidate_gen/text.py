"""Text to hashed tokens: the same function for titles offline and for queries online."""

import re
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.segments import segmented

_WORD = re.compile(r"\w+")
_ACCENTS = re.compile("[\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670]+")
"""Marks that are left out by those who type: of Latin, Greek and Cyrillic letters, Hebrew points, Arabic vowels."""


def words(text: str) -> list[str]:
    """Lower-case words without accents, in order; also of scripts without blanks, see `segmented`."""
    return _parted(segmented(plain(text)))


def typed(text: str) -> str:
    """The words as far as they were typed with something between them: of scripts without blanks, whole phrases.

    What a text begins with is typed like what it begins with, which is not so of `words`: the first letters of a phrase
    may be other words than the phrase.
    """
    return " ".join(_parted(plain(text)))


def plain(text: str) -> str:
    """In lower case and without the marks that people leave out."""
    if text.isascii():  # to the same effect, and most are
        return text.lower()
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()
    return unicodedata.normalize("NFC", bare)


def _parted(text: str) -> list[str]:
    if text.isascii():
        return _WORD.findall(text)
    return "".join(letter if letter == "_" or letter.isalnum() or _is_mark(letter) else " " for letter in text).split()


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"


def token_ids(texts: Sequence[str], *, length: int, size: int) -> NDArray[np.int32]:
    """The first `length` words of each text as rows of an embedding table of `size` rows; 0 is padding."""
    ids_BT = np.zeros((len(texts), length), np.int32)
    for row_T, text in zip(ids_BT, texts, strict=True):
        tokens = [1 + zlib.crc32(word.encode()) % (size - 1) for word in words(text)[:length]]
        row_T[: len(tokens)] = tokens
    return ids_BT
