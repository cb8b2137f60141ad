"""Draws docs/flow.svg, how data flows: `python -m docs.flow` writes it; `make pictures` does the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PICTURE = Path(__file__).with_name("flow.svg")
WIDTH, HEIGHT, BAND, LINE = 960, 390, 164, 16
REQUEST_Y, CYCLE_Y, BUS_Y = 100, 288, 196
"""Middles of the two rows of boxes, and of the line on which a generation reaches the stages."""
STYLE = """
    .box { fill: #ffffff; stroke: #c3cbd6; }
    .made { fill: #e9f1fc; stroke: #2166c4; }
    .file { fill: #fdf1e6; stroke: #d9650b; }
    .band { fill: #f4f6f9; }
    .name { fill: #17202c; font-size: 16px; font-weight: 600; text-anchor: middle; }
    .what { fill: #5b6675; font-size: 12.5px; text-anchor: middle; }
    .type { fill: #5b6675; font-size: 12.5px; text-anchor: middle; font-style: italic; }
    .side { fill: #5b6675; font-size: 13px; }
    .line { stroke: #5b6675; stroke-width: 1.5; fill: none; }
    .head { fill: #5b6675; }
    @media (prefers-color-scheme: dark) {
      .box { fill: #18202a; stroke: #4a5868; }
      .made { fill: #17283f; stroke: #6aa9ff; }
      .file { fill: #33241a; stroke: #ff9d52; }
      .band { fill: #121922; }
      .name { fill: #e8edf3; }
      .what, .type, .side { fill: #9aa7b6; }
      .line { stroke: #9aa7b6; }
      .head { fill: #9aa7b6; }
    }
"""
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
TOLD = (
    "A request goes through retrieve, filter, score and select to a slate. The slate is logged with its exact "
    "probability. Log and outcomes become examples; training makes a generation, which passes gates and serves the "
    "next request."
)


@dataclass(frozen=True, slots=True)
class Box:
    """A stage or a file, in its row."""

    kind: str
    x: int
    width: int
    name: str
    what: tuple[str, ...]

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    @property
    def end(self) -> int:
        return self.x + self.width


REQUEST = (
    Box("box", 24, 92, "request", ("user, text",)),
    Box("box", 176, 128, "retrieve", ("towers, BM25, ...",)),
    Box("box", 384, 96, "filter", ("a mask",)),
    Box("box", 540, 112, "score", ("P(action)",)),
    Box("box", 714, 100, "select", ("draws a slate",)),
    Box("made", 868, 72, "slate", ()),
)
MADE = ("Query", "Candidates", "", "Scored", "Slate")
"""What goes from each box of a request to the next."""
CYCLE = (
    Box("file", 784, 156, "impression log", ("exact propensities,", "features, outcomes")),
    Box("box", 596, 128, "examples", ("point in time",)),
    Box("box", 424, 112, "train", ("towers, ranker",)),
    Box("box", 252, 112, "gates", ("or nothing",)),
    Box("file", 24, 168, "generation", ("towers, index, ranker,", "policy, catalogue")),
)


def drawn() -> str:
    """The picture, in the colours of whoever looks at it."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t d"'
        f' font-family="{FONTS}">',
        '  <title id="t">How data flows through Cascade</title>',
        f'  <desc id="d">{TOLD}</desc>',
        f"  <style>{STYLE}  </style>",
        '  <defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"'
        ' orient="auto-start-reverse"><path class="head" d="M0 0 L10 5 L0 10 z"/></marker></defs>',
        _band(8, 34, "a request, some milliseconds: serving runs it, replay runs the same code again"),
        _band(216, 366, "a cycle, every night: each arrow is a file that is written once and never changed"),
        *(line for box in REQUEST for line in _box(box, REQUEST_Y)),
        *(line for box in CYCLE for line in _box(box, CYCLE_Y)),
        *(
            _text("type", (before.end + after.x) // 2, REQUEST_Y - 38, made)
            for before, after, made in zip(REQUEST, REQUEST[1:], MADE, strict=False)
            if made
        ),
        f'  <g class="line" marker-end="url(#arrow)">{"".join(_arrows())}</g>',
        f'  <path class="line" d="M{REQUEST[1].middle} {BUS_Y} H{REQUEST[4].middle}"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _band(y: int, text_y: int, text: str) -> str:
    band = f'  <rect class="band" x="8" y="{y}" width="{WIDTH - 16}" height="{BAND}" rx="12"/>'
    return f"{band}\n{_text('side', 24, text_y, text)}"


def _text(kind: str, x: int, y: int, text: str) -> str:
    return f'  <text class="{kind}" x="{x}" y="{y}">{text}</text>'


def _box(box: Box, y: int) -> Iterator[str]:
    """A box around its name and what stands below it, all around `y`."""
    height = _half(box) * 2
    yield f'  <rect class="{box.kind}" x="{box.x}" y="{y - height // 2}" width="{box.width}" height="{height}" rx="8"/>'
    top = y + 6 - len(box.what) * LINE // 2 - (2 if box.what else 0)
    yield _text("name", box.middle, top, box.name)
    for n, line in enumerate(box.what):
        yield _text("what", box.middle, top + 19 + LINE * n, line)


def _half(box: Box) -> int:
    """Of a box's height."""
    return 36 if len(box.what) > 1 else 30


def _arrows() -> Iterator[str]:
    for before, after in pairwise(REQUEST):
        yield f'<path d="M{before.end} {REQUEST_Y} H{after.x - 2}"/>'
    for before, after in pairwise(CYCLE):
        yield f'<path d="M{before.x} {CYCLE_Y} H{after.end + 2}"/>'
    slate, log, generation = REQUEST[-1], CYCLE[0], CYCLE[-1]
    yield f'<path d="M{slate.middle} {REQUEST_Y + 30} V{CYCLE_Y - _half(log) - 2}"/>'
    first = REQUEST[1]
    yield (f'<path d="M{generation.middle} {CYCLE_Y - _half(generation)} V{BUS_Y} H{first.middle} V{REQUEST_Y + 32}"/>')
    for stage in REQUEST[2:5]:
        yield f'<path d="M{stage.middle} {BUS_Y} V{REQUEST_Y + 32}"/>'


if __name__ == "__main__":
    PICTURE.write_text(drawn())
