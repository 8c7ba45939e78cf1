"""Pictures by matplotlib, which is imported for nothing else."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import JobError, Problem
from .files import write_whole


def require_matplotlib() -> None:
    """Raise JobError (exit 2) where matplotlib, which only pictures need, is not installed."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        fix = "Install it (pip install matplotlib, or requirements-dev.txt), or leave out --png."
        raise JobError(Problem("png", "matplotlib", "no such package", fix)) from error


@contextmanager
def picture(path: Path, **how: Any) -> Generator[tuple[Any, Any]]:
    """Yield (figure, axes) as `pyplot.subplots(**how)` makes them, and write them as a PNG.

    Raises JobError (exit 2) where matplotlib is missing or the file cannot be written.
    """
    require_matplotlib()
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(layout="constrained", **how)
    try:
        yield figure, axes
        _save(figure, path)
    finally:
        pyplot.close(figure)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # of a name
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=120, format="png")
        write_whole(path, drawn.getvalue())
    except (OSError, ValueError) as error:
        raise JobError(Problem("png", "a PNG file that can be written", str(error))) from error
