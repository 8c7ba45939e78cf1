"""Check of a folder that a command is to write, and room for it."""

from __future__ import annotations

from pathlib import Path

from ..base.errors import JobError, Problem


def refuse_used_folder(field: str, out: Path) -> None:
    """Refuse a link, a file, or a folder that holds something. Raises JobError (exit 2)."""
    if out.is_symlink():
        got = f"{out}, which is a link to {out.readlink()}"
        fix = "Name the folder itself, or another one."
        raise JobError(Problem(field, "a new or empty folder", got, fix))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        got, fix = f"{out}, which holds something", "Choose another folder."
        raise JobError(Problem(field, "a new or empty folder", got, fix))


def make_room(out: Path) -> None:
    """Make the folder's parents and remove its empty self, so that it can appear whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        out.rmdir()
