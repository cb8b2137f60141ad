"""Text to hashed tokens: the same function for titles offline and for queries online."""

import re
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words without accents, in order."""
    return _WORD.findall(plain(text))


def plain(text: str) -> str:
    """In lower case and without accents."""
    if text.isascii():  # to the same effect, and most are
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(mark for mark in decomposed if not unicodedata.combining(mark)).casefold()


def token_ids(texts: Sequence[str], *, length: int, size: int) -> NDArray[np.int32]:
    """The first `length` words of each text as rows of an embedding table of `size` rows; 0 is padding."""
    ids_BT = np.zeros((len(texts), length), np.int32)
    for row_T, text in zip(ids_BT, texts, strict=True):
        tokens = [1 + zlib.crc32(word.encode()) % (size - 1) for word in words(text)[:length]]
        row_T[: len(tokens)] = tokens
    return ids_BT
