"""Results of a run where a host looks for them: links while it runs, folders that appear whole when
it is done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ...base.files import part_beside, remove


def show_link(link: Path, target: Path, say: Callable[[str], None]) -> None:
    """Make `link` lead to the folder `target`; a link that was there is replaced, anything else is
    left alone, and said.

    Nothing is put into a folder that is itself a link: it may be anybody's.
    """
    if link.parent.is_symlink():
        say(f"{link} could not be made a link to {target}: {link.parent} is a link itself")
        return
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
    """`wanted`, or with `-job<id>` where something has that name already: results are never
    overwritten.
    """
    name, number = wanted, 1
    while os.path.lexists(name) and not _is_empty_folder(name):
        name = wanted.with_name(f"{wanted.name}-job{job_id}" + (f"-{number}" if number > 1 else ""))
        number += 1
    if name != wanted:
        say(f"{wanted.name}: the name is taken; this one is {name.name}")
    return name


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def shelve(folder: Path, target: Path) -> None:
    """The files of `folder` also as `target`, which appears whole: hard links, or copies on another
    disk. A link stays one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(target)
    try:
        shutil.copytree(folder, part, symlinks=True, copy_function=_link_or_copy)
        if _is_empty_folder(target):
            target.rmdir()  # an empty one that the host made
        os.rename(part, target)
    finally:
        remove(part)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)
