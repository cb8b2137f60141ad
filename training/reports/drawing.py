"""How the reports' figures are drawn: SVG that takes its colours and its font from the page, so that light and dark
both read.

Matplotlib cannot name a colour that is decided later. Each colour here is a placeholder that `svg` replaces with a CSS
variable of the page.
"""

import io
import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import cycle
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.reports.figures import Curve

INK, MUTED, GRID = "#010101", "#010102", "#010103"
SERIES = ("#010111", "#010112", "#010113", "#010114")
REFERENCE = "#010104"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    REFERENCE: "--reference",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.titlesize": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 1,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
}
styled = mpl.rc_context(_STYLE)
_WIDTH, HEIGHT = 5.6, 3.3


def standing_alone(drawn: str, *, title: str) -> str:
    """A figure as a file of its own, which brings the page's colours and font, light or dark as the reader has it."""
    sheet = (files("training") / "templates" / "page.css").read_text()
    opening, rest = drawn.split(">", 1)
    return f"{opening}><title>{escape(title)}</title><style>{sheet[: sheet.index('* {')]}</style>{rest}"


def figure_of(*, rows: int = 1, columns: int = 1, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH, height), facecolor="none")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_facecolor("none")
    return figure, list(panels.flat)


def draw_bars(axes: Axes, values: Sequence[tuple[str, float]], colours: Sequence[str]) -> None:
    rows = range(len(values))
    axes.barh(rows, [value for _, value in values], color=colours, height=0.62)
    for row, (_, value) in zip(rows, values, strict=True):
        axes.annotate(
            short(value), (max(value, 0), row), xytext=(5, 0), textcoords="offset points", va="center", color=INK
        )
    axes.set_yticks(rows, [name for name, _ in values], color=INK)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.margins(x=0.14)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")


def draw_lines(axes: Axes, curves: Sequence[Curve]) -> None:
    colours = cycle(SERIES)
    for curve in curves:
        if curve.label == "true":
            axes.plot(curve.x, curve.y, color=REFERENCE, linestyle=(0, (4, 3)), label=curve.label)
        else:
            axes.plot(curve.x, curve.y, color=next(colours), marker="o", label=curve.label)
    figure = axes.figure
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, borderaxespad=0)


def spaced(name: str) -> str:
    """ "cycle1" as a person writes it."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", name).replace("_", " ")


def short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def svg(figure: Figure, name: str) -> str:
    """Inline SVG: no prolog, no ids that two figures would share, colours and font of the page."""
    written = io.StringIO()
    nothing: dict[str, Any] = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    referred = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r'\s+id="([^"]+)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()
