"""What the generated pages are written with: tables, inline code, prose."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown; bars in them are escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """Inline code; nothing where there is no text."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Text on one line in which only backticks mean something: what looks like a tag is none."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if n % 2 else part.replace("<", "\\<") for n, part in enumerate(parts))
