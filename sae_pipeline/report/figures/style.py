"""One quiet style for every figure, its colours, and the two ways out of matplotlib: SVG for pages, PNG for metadata.

Only matplotlib's object interface is used (`Figure`), never pyplot: figures are made inside worker processes.
"""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sae_pipeline.report.formatting import readable

INK, MUTED, RULE, PAPER, ACCENT = "#1f2430", "#6b7280", "#dfe3e8", "#fffffe", "#c2410c"
_DARK_BASICS = {INK: "#e6e8ec", MUTED: "#9aa3b0", RULE: "#343b46", PAPER: "#14171c", ACCENT: "#fb923c"}

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "lines.linewidth": 1.3,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "sae-pipeline",
}

_STOPS = 12
_N_LIGHT = ((0.0, "#86c9b7"), (0.35, "#3f9fb8"), (0.7, "#2a62a0"), (1.0, "#1b1f5e"))
_N_DARK = ((0.0, "#3c6f92"), (0.35, "#3fa3b5"), (0.7, "#7fd0b0"), (1.0, "#e4f5b0"))
_K_LIGHT = ((0.0, "#efb04e"), (0.4, "#e0703f"), (0.75, "#b0305c"), (1.0, "#5b1a56"))
_K_DARK = ((0.0, "#8f4a7c"), (0.4, "#d0566b"), (0.75, "#f08c55"), (1.0, "#ffdf90"))

MARKERS = ("o", "D", "s", "^", "v", "P", "X", "p")
_TIP = "tip|"
_PIXELS_PER_INCH = 112


def _blend(anchors: Sequence[tuple[float, str]]) -> tuple[str, ...]:
    """Interpolate `_STOPS` colours between anchors."""
    places = [place for place, _ in anchors]
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for _, colour in anchors])
    steps = np.linspace(0, 1, _STOPS)
    rgb = np.stack([np.interp(steps, places, channels[:, c]) for c in range(3)], axis=1).round().astype(int)
    return tuple("#{:02x}{:02x}{:02x}".format(*row) for row in rgb)


_PALETTES = {"n": (_blend(_N_LIGHT), _blend(_N_DARK)), "k": (_blend(_K_LIGHT), _blend(_K_DARK))}
_DARK = _DARK_BASICS | {light: dark for pair in _PALETTES.values() for light, dark in zip(*pair, strict=True)}


def sequence(values: Sequence[float], palette: str = "n") -> dict[float, str]:
    """A colour for each distinct value, in order: pale for the smallest, strong for the largest.

    `palette` is "n" (blues, latents) or "k" (reds, active latents). Both stay ordered for the colour-blind.
    """
    distinct = sorted({float(value) for value in values})
    stops = _PALETTES[palette][0]
    if len(distinct) == 1:
        return {distinct[0]: stops[-4]}
    return {value: stops[round(i * (_STOPS - 1) / (len(distinct) - 1))] for i, value in enumerate(distinct)}


def dark_variables() -> str:
    """CSS declarations that recolour every figure for a dark page; see `svg`."""
    return " ".join(f"{_variable(light)}: {dark};" for light, dark in _DARK.items())


def _variable(colour: str) -> str:
    return f"--fig-{colour[1:]}"


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style while a figure is made or saved."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float = 5.4, height: float = 3.6) -> Figure:
    """An empty figure of `width` × `height` inches; call inside `styled()`."""
    return Figure(figsize=(width, height), layout="constrained")


def message(text: str) -> Figure:
    """A figure that says why there is nothing to show."""
    with styled():
        figure = new_figure(5.4, 1.2)
        figure.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, wrap=True)
    return figure


_LADDERS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    tuple(np.arange(1, 10, 0.5)),
)
_ENOUGH_TICKS = 4


def log_axis(axes: Axes, which: str, *, ticks: Sequence[float] | None = None) -> None:
    """Make one axis logarithmic with plain labels, at `ticks` or at round numbers; call when its data are drawn."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    low, high = axis.get_view_interval()
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(list(ticks) if ticks is not None else _round_numbers(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))


def _round_numbers(low: float, high: float) -> list[float]:
    """The coarsest ladder of round numbers with enough ticks between `low` and `high`; evenly spaced on short spans."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for ladder in _LADDERS:
        found = [float(step * decade) for decade in decades for step in ladder if low <= step * decade <= high]
        if len(found) >= _ENOUGH_TICKS:
            return found
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


def plain_axis(axes: Axes, which: str) -> None:
    """Label a linear axis with `readable` numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float = 10.5) -> None:
    """Write (x, y, text, colour) labels to the right of line ends, moved apart vertically by `gap` points.

    Call when the limits of the axes are final and the figure has been laid out (`draw_without_rendering`).
    """
    if not ends:
        return
    per_point = axes.figure.dpi / 72.0
    pixels = axes.transData.transform([(x, y) for x, y, _, _ in ends]) / per_point
    moved = _spread(pixels[:, 1], gap)
    for (x, y, text, colour), at, shift in zip(ends, pixels[:, 1], moved, strict=True):
        axes.annotate(
            text, (x, y), xytext=(7, shift - at), textcoords="offset points", va="center", color=colour,
            fontsize=8, annotation_clip=False,
        )  # fmt: skip


def _spread(places: "np.ndarray[tuple[int], np.dtype[np.float64]]", gap: float) -> "list[float]":
    """Least-squares places at least `gap` apart, in the same order (pool adjacent violators)."""
    order = np.argsort(places, kind="stable")
    blocks: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        blocks.append((float(places[index]) - rank * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    level = [mean for mean, size in blocks for _ in range(size)]
    moved = [0.0] * len(places)
    for rank, index in enumerate(order):
        moved[int(index)] = level[rank] + rank * gap
    return moved


def tip(artist: Artist, text: str) -> None:
    """Give an artist a tooltip in the SVG."""
    artist.set_gid(_TIP + text)


def png_data_uri(figure: Figure, dpi: int = 110) -> str:
    """The figure as a `data:image/png;base64,…` URI, at most 100 kB: the resolution is lowered until it fits."""
    while True:
        buffer = io.BytesIO()
        with styled():
            figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if len(uri) <= 100_000 or dpi <= 10:
            return uri
        dpi = int(dpi * 0.8)


def svg(figure: Figure, name: str) -> str:
    """The figure as an inline `<svg>` element that follows the page: CSS variables for colours, only a largest width.

    `name` (letters, digits, `-`) prefixes its ids, so several figures fit on one page. The same figure gives the same
    text: no dates, no random ids.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    width = _PIXELS_PER_INCH * figure.get_figwidth()
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 style="max-width: {width:.0f}px">', text, count=1)
    text = re.sub(rf'<g id="{re.escape(_TIP)}([^"]*)">', r"<g><title>\1</title>", text)
    text = text.replace("xlink:href=", "href=")
    referenced = set(re.findall(r"#([A-Za-z_][\w.-]*)", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referenced else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub("|".join(_DARK), lambda m: f"var({_variable(m[0])}, {m[0]})", text)
    return re.sub(r"\n\s*\n+", "\n", text)
