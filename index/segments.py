"""Words of scripts that are written without blanks, through ICU's dictionaries."""

from icu4py.breakers import WordBreaker

_LAST_WITH_BLANKS = "\u0dff"
"""Scripts up to Sinhala part words by blanks. Of those after it most do not, and where they do ICU says the same."""


def segmented(text: str) -> str:
    """The text with blanks between its words, where it holds a script that has none, such as Chinese, Japanese, Thai or
    Khmer; unchanged otherwise. Twice is like once."""
    if text.isascii() or max(text) <= _LAST_WITH_BLANKS:
        return text
    return " ".join(word for word in WordBreaker(text.encode("utf-8", "replace").decode(), "en") if not word.isspace())
