"""Files and folders that this program writes: nothing is opened, replaced or removed through a
link.

`open(path, mode, opener=open_plain)` is how a file is opened that stays and grows; `write_whole`
and `replace_whole` put a finished one in the place of an earlier one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2


def open_plain(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file, made if `flags` say so, and return its descriptor.

    Raises OSError for a link, for what is no file (a pipe is not waited for) and, to write, for a
    file that has a second name.
    """
    kept = flags & ~os.O_TRUNC  # nothing is lost before it is known what it is
    try:
        descriptor = os.open(path, kept | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "a link, which is not followed", str(path)) from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        if flags & (os.O_WRONLY | os.O_RDWR) and found.st_nlink > 1:
            raise OSError(errno.EMLINK, "a file with a second name elsewhere", str(path))
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_plain(path: Path) -> bool:
    """Tell a regular file from a link and from everything else."""
    return path.is_file() and not path.is_symlink()


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (path from `folder`, entry) of everything below it, links and what they lead to told
    apart: a link is not entered.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        yield entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", inner) for name, inner in walk(Path(entry.path)))


def remove(path: Path) -> None:
    """Take away a file, a link or a whole folder, never what a link leads to; there may be
    nothing.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` so that a reader finds the old content or all of the new one; `durable`: even
    after a power cut.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.unlink(missing_ok=True)
    with beside.open(
        "x", encoding="utf-8"
    ) as file:  # new: a link that is there meanwhile is an error
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(beside, path)


def rename_whole(part: Path, final: Path) -> None:
    """Publish a finished folder under its final name; everything in it is on disk before the name
    appears.
    """
    _fsync_all(part)
    os.rename(part, final)
    _fsync(final.parent)


def replace_whole(part: Path, final: Path) -> None:
    """Publish a finished folder in the place of an earlier one of its kind, if there is one.

    A kill at any moment leaves a whole folder of that name; on a disk that cannot swap two names,
    one that `recover` finds. Files that only the earlier one holds are somebody's own: it is then
    kept as `replaced-<name>`.
    """
    _fsync_all(part)
    earlier = part
    if not os.path.lexists(final):
        os.rename(part, final)
    elif not _exchange(part, final):
        earlier = _earlier(final)
        os.rename(final, earlier)
        os.rename(part, final)
    _fsync(final.parent)
    if earlier.is_symlink() or not earlier.is_dir() or _names(earlier) <= _names(final):
        remove(earlier)
    else:
        earlier.rename(_free_name(final.with_name(f"replaced-{final.name}")))


def recover(final: Path) -> None:
    """End a `replace_whole` of `final` that was killed between its two renamings."""
    earlier = _earlier(final)
    if os.path.lexists(final):
        remove(earlier)
    elif earlier.is_dir():
        earlier.rename(final)


def set_aside(path: Path) -> Path:
    """Rename `path` to `replaced-<name>`, or to the next such name that is free, and return it."""
    kept = _free_name(path.with_name(f"replaced-{path.name}"))
    path.rename(kept)
    return kept


def part_beside(final: Path) -> Path:
    """Return a free name for `final` while it is being written: a folder of that name may be
    somebody else's.
    """
    part, number = final.with_name(f".{final.name}.part"), 2
    while os.path.lexists(part):
        part, number = final.with_name(f".{final.name}-{number}.part"), number + 1
    return part


def _earlier(final: Path) -> Path:
    return final.with_name(f".{final.name}.earlier")


def _free_name(wanted: Path) -> Path:
    name, number = wanted, 2
    while os.path.lexists(name):
        name, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return name


def _names(folder: Path) -> set[str]:
    return {name for name, _ in walk(folder)}


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return (
        rename is not None
        and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0
    )


def _fsync_all(folder: Path) -> None:
    for name, entry in walk(folder):
        if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False):
            _fsync(folder / name)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
