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
    if text.isascii():
        return _WORD.findall(text.lower())
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()
    spaced = segmented(unicodedata.normalize("NFC", plain))
    if spaced.isascii():
        return _WORD.findall(spaced)
    kept = "".join(letter if letter == "_" or letter.isalnum() or _is_mark(letter) else " " for letter in spaced)
    return kept.split()


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter)[0] == "M"


def token_ids(texts: Sequence[str], *, length: int, size: int) -> NDArray[np.int32]:
    """The first `length` words of each text as rows of an embedding table of `size` rows; 0 is padding."""
    ids_BT = np.zeros((len(texts), length), np.int32)
    for row_T, text in zip(ids_BT, texts, strict=True):
        tokens = [1 + zlib.crc32(word.encode()) % (size - 1) for word in words(text)[:length]]
        row_T[: len(tokens)] = tokens
    return ids_BT
