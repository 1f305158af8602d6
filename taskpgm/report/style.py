"""Colours and type of the figures, in a light and a dark theme; and how a figure becomes a PNG."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

DPI = 160
WIDTH = 10.2  # inches, the page's text width
LABEL, SMALL = 7.6, 6.8  # points
FONT = "DejaVu Sans"  # the one that comes with matplotlib: the same everywhere
LONGEST = 34  # characters of a name that are shown
# matplotlib's tab20: the ten strong colours, then the ten pale ones. Both themes use it.
FAMILIES = (
    "#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #7f7f7f #bcbd22 #17becf "
    "#aec7e8 #ffbb78 #98df8a #ff9896 #c5b0d5 #c49c94 #f7b6d2 #c7c7c7 #dbdb8d #9edae5"
).split()


@dataclass(frozen=True)
class Theme:
    """Colours of one theme; the page's CSS has the same ones."""

    name: str
    paper: str
    ink: str
    muted: str
    line: str
    diverging: tuple[str, ...]  # from hurts, over zero, to helps
    sequential: tuple[str, ...]  # from least to most alike
    mixtures: tuple[str, ...]  # baselines take the greys at the end
    baselines: tuple[str, ...]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2127",
    muted="#67707b",
    line="#dfe3e8",
    diverging=("#7a1c2e", "#c2505a", "#eab3a9", "#f8f7f5", "#a5c8e4", "#3f83bd", "#123f73"),
    sequential=("#fbfaf5", "#d6e6dc", "#93c6c4", "#4395ab", "#235f86", "#152d52"),
    mixtures=("#1f6fb2", "#d1652a", "#2a8c6a", "#8a5bb5", "#b8425f", "#7d7a1e"),
    baselines=("#8b939d", "#b9a27c", "#5d6670", "#a58fa0", "#7fa3a0", "#c2b6ad"),
)
DARK = Theme(
    name="dark",
    paper="#14181d",
    ink="#e4e7eb",
    muted="#98a2ad",
    line="#2c333b",
    diverging=("#ffb3a1", "#e2695f", "#7c2f38", "#20252b", "#234d75", "#4c93d0", "#b7dcff"),
    sequential=("#1a2027", "#1f3c50", "#2b6480", "#4694a3", "#8cc7bd", "#eef7e6"),
    mixtures=("#5aa7e6", "#f0935c", "#55c09a", "#b893e0", "#ea7d97", "#c1bd54"),
    baselines=("#8f98a3", "#bfa97f", "#c3cad2", "#a791a6", "#86aba8", "#7a7069"),
)
THEMES = (LIGHT, DARK)


def family_colours(families: Sequence[str], theme: Theme) -> dict[str, str]:
    """A colour for each family; from the twenty-first on they repeat."""
    named = [family for family in families if family]
    colours = {family: FAMILIES[i % len(FAMILIES)] for i, family in enumerate(named)}
    return {family: colours.get(family, theme.line) for family in families}


def mixture_colours(names: Sequence[str], ours: Sequence[str], theme: Theme) -> dict[str, str]:
    """Clear colours for TaskPGM's mixtures, quiet ones for the others; the same in every figure."""
    colours, counts = {}, [0, 0]
    for name in names:
        palette = theme.mixtures if name in ours else theme.baselines
        which = int(name in ours)
        colours[name] = palette[counts[which] % len(palette)]
        counts[which] += 1
    return colours


def colormap(colours: Sequence[str]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("taskpgm", list(colours), N=512)


@contextmanager
def figure(width: float, height: float, theme: Theme) -> Iterator[Any]:
    """A figure (inches) in the theme, without pyplot's global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "font.family": FONT,
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "figure.facecolor": theme.paper,
        "grid.color": theme.line,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "text.parse_math": False,  # a dollar in a name is a dollar
    }
    with matplotlib.rc_context(settings):  # pyright: ignore[reportArgumentType]
        drawn = Figure(figsize=(width, height))
        FigureCanvasAgg(drawn)
        yield drawn


def png(drawn: Any) -> bytes:
    """The figure as PNG bytes, the same bytes each time."""
    from PIL import Image

    drawn.set_dpi(DPI)
    drawn.canvas.draw()
    pixels = Image.fromarray(np.asarray(drawn.canvas.buffer_rgba())[..., :3])
    buffer = io.BytesIO()
    pixels.save(buffer, format="png", dpi=(DPI, DPI))
    return buffer.getvalue()


def text_inches(texts: Sequence[str], size: float) -> float:
    """Width of the widest of the texts at a size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    measure, font = TextToPath(), FontProperties(family=FONT, size=size)
    widths = [measure.get_text_width_height_descent(text, font, False)[0] for text in texts]
    return max(widths, default=0.0) / 72


def shortened(name: str, most: int = LONGEST) -> str:
    """A name as a figure can show it: cut, and with a mark for what the font does not have."""
    known = _characters()
    drawn = "".join(c if ord(c) in known else "\N{REPLACEMENT CHARACTER}" for c in name)
    return drawn if len(drawn) <= most else drawn[: most - 1] + "…"


@cache
def _characters() -> frozenset[int]:
    """What the figures' font has a shape for."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())
