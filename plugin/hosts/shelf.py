"""Results of a run where a host looks for them: links while it runs, folders that appear whole when it is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def show_link(link: Path, target: Path, say: Callable[[str], None]) -> None:
    """Make `link` lead to the folder `target`; a link that was there is replaced, anything else is left alone, and said."""
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            if link.readlink() == target:
                return
            link.unlink()
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        say(f"{link} could not be made a link to {target}: {error.strerror}")


def free_name(wanted: Path, job_id: str, say: Callable[[str], None]) -> Path:
    """`wanted`, or with `-job<id>` where something has that name already: results are never overwritten."""
    name, number = wanted, 1
    while name.exists() and (not name.is_dir() or any(name.iterdir())):
        name = wanted.with_name(f"{wanted.name}-job{job_id}" + (f"-{number}" if number > 1 else ""))
        number += 1
    if name != wanted:
        say(f"{wanted.name}: the name is taken; this one is {name.name}")
    return name


def shelve(folder: Path, target: Path) -> None:
    """The files of `folder` also as `target`, which appears whole: hard links, or copies on another disk."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(folder, part, copy_function=_link_or_copy)
        if target.is_dir():
            target.rmdir()  # an empty one that the host made
        os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)
