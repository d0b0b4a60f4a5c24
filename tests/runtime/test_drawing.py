"""A picture is the same whatever the user's matplotlib is set to, and leaves those settings as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from stages.runtime import drawing

HOSTILE = {
    "text.usetex": True, "figure.facecolor": "red", "savefig.bbox": "tight", "savefig.transparent": True,
    "axes.titlesize": 30, "figure.autolayout": True,
}  # fmt: skip


def draw(path: Path, title: str = "a title") -> np.ndarray:
    with drawing.figure(path, 3, 2) as drawn:
        ax = drawn.subplots()
        ax.plot([0, 1], [1, 0])
        ax.set_title(title)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA"))


def test_a_users_settings_do_not_reach_the_picture_nor_change(tmp_path: Path) -> None:
    plain = draw(tmp_path / "a" / "plain.png")
    assert plain.shape == (400, 600, 4) and plain.min(axis=(0, 1))[3] == 255
    with matplotlib.rc_context(HOSTILE):
        np.testing.assert_array_equal(draw(tmp_path / "hostile.png"), plain)
        assert {key: matplotlib.rcParams[key] for key in HOSTILE} == HOSTILE
        assert matplotlib.rcParams["text.parse_math"] is True


def test_a_dollar_sign_is_no_formula(tmp_path: Path) -> None:
    """`$\\x$` is no formula that matplotlib knows, and `$x$` one that it would show without the signs."""
    draw(tmp_path / "broken.png", r"earn $\x$ or $$")
    with drawing.figure(tmp_path / "x.png", 3, 2) as drawn:
        title = drawn.subplots().set_title("$x$ for $1")
        assert not title.get_parse_math()
    assert (draw(tmp_path / "with.png", "$x$") != draw(tmp_path / "without.png", "x")).any()


def test_a_backend_that_is_not_there_does_not_matter(tmp_path: Path) -> None:
    """MPLBACKEND as a notebook leaves it to the commands it starts, and a matplotlibrc beside it."""
    rc = tmp_path / "matplotlibrc"
    rc.write_text("text.usetex: true\nfigure.facecolor: red\n")
    code = (
        "import sys, pathlib\nfrom stages.runtime import drawing\n"
        "with drawing.figure(pathlib.Path(sys.argv[1]), 3, 2) as drawn:\n"
        "    ax = drawn.subplots()\n    ax.plot([0, 1], [1, 0])\n    ax.set_title('a title')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    plain = draw(tmp_path / "plain.png")
    for backend in ("module://matplotlib_inline.backend_inline", "nonsense"):
        file = tmp_path / "there.png"
        environment = {**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(rc)}
        command = [sys.executable, "-c", code, str(file)]
        root = Path(__file__).resolve().parents[2]
        ran = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), plain)
