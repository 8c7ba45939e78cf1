"""Results of a run in the host's folders: links during the run, complete folders at its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ...base.files import whole_folder


def show_link(link: Path, target: Path, say: Callable[[str], None]) -> None:
    """Make `link` a link to the folder `target`, in place of an earlier link.

    Anything else of that name stays, and is logged. Nothing is written through a folder that is
    itself a link: its target may be anybody's.
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
    """Return `wanted`, with `-job<id>` if the name is taken: results are never overwritten."""
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
    """Publish the files of `folder` as `target` too: as hard links, or copies on another disk.

    A link stays a link.
    """
    with whole_folder(target) as part:  # the host may have made an empty `target`
        shutil.copytree(
            folder, part, symlinks=True, copy_function=_link_or_copy, dirs_exist_ok=True
        )


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a disk without hard links
        shutil.copy2(source, target)
