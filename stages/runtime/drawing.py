"""matplotlib as it ships: no setting of the user's reaches a picture, and no text is read as a formula."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # takes a second to import, and few of those that import this module draw
    from matplotlib.figure import Figure

DPI = 200  # shown at half of that: sharp on a fine screen


@contextmanager
def figure(path: Path, width: float, height: float, style: Mapping[str, Any] | None = None) -> Iterator[Figure]:
    """An empty figure of width × height inches, saved as PNG on the way out, its folder made.

    `style` goes on top of matplotlib's default rcParams. A user's matplotlibrc and MPLBACKEND do not count here, and
    nothing here changes what they are for the rest of the process: pyplot and its global state are not used.
    """
    matplotlib = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**(style or {}), "text.parse_math": False})  # a `$` in a prompt is a dollar sign
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=DPI)


def import_matplotlib() -> ModuleType:
    """matplotlib, also where MPLBACKEND names what is not installed here, as in a command that a notebook starts."""
    if "matplotlib" not in sys.modules and (named := os.environ.pop("MPLBACKEND", "")):
        import matplotlib

        os.environ["MPLBACKEND"] = named
        with suppress(ValueError):  # else pyplot stays as the user wants it
            matplotlib.rcParams["backend"] = named
    import matplotlib

    return matplotlib
