"""Files and folders that this program writes.

Nothing is opened, replaced or removed through a link. `open(path, mode, opener=open_plain)` opens
a file that stays and grows; `write_whole` and `whole_folder` put a complete one in its place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Version = tuple[int, int, int]  # inode, time of change in ns, bytes
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2


def open_plain(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file, created if `flags` say so, and return its descriptor.

    Raises OSError for a link, for anything but a file (without waiting for a pipe) and, to write,
    for a file with a second name.
    """
    kept = flags & ~os.O_TRUNC  # nothing is lost before its kind is known
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


def read_end(path: Path, most: int) -> tuple[bytes, int]:
    """Return the last `most` bytes of a file, and where they begin. Raises OSError."""
    with open(path, "rb", opener=open_plain) as file:
        start = max(0, os.fstat(file.fileno()).st_size - most)
        file.seek(start)
        return file.read(most), start


def take_lock(path: Path) -> int | None:
    """Open and lock a file, and return its descriptor; None while another process has the lock.

    The lock is free again when every process that has the descriptor is gone. Raises OSError.
    """
    descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def version(path: str | Path) -> Version:
    """Return what tells two states of a file apart. Raises OSError."""
    found = os.lstat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def is_plain(path: Path) -> bool:
    """Tell whether a path is a regular file and no link."""
    return path.is_file() and not path.is_symlink()


def is_encodable(text: str) -> bool:
    """Tell whether files and system calls accept a text; JSON and file names may hold others."""
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (path from `folder`, entry) of everything below it; links are not followed."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        yield entry.name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", inner) for name, inner in walk(Path(entry.path)))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one; never the target of a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _part(final: Path, number: int = 0) -> Path:
    """Return the temporary name of `final` while it is being written; see `final_name`."""
    return final.with_name(f".{final.name}.{number}.part" if number else f".{final.name}.part")


def _free_part(final: Path) -> Path:
    """Return a temporary name that nobody has taken: a folder of that name may be a user's."""
    number = 0
    while os.path.lexists(part := _part(final, number)):
        number += 1
    return part


@contextmanager
def _removed_on_failure(part: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the failure itself is the one to report
            remove(part)
        raise


def final_name(name: str) -> str:
    """Return the name that a file or folder gets once it is complete; empty for a final name."""
    found = re.fullmatch(r"\.(.+?)(?:\.\d+)?\.part", name)
    return found[1] if found else ""


def write_whole(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write `content` so that a reader finds the complete old or the complete new content.

    `durable`: even after a power cut.
    """
    part = _part(path, os.getpid())
    part.unlink(missing_ok=True)
    with _removed_on_failure(part):
        with part.open("xb") as file:  # a link that appears meanwhile is an error
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)


@contextmanager
def whole_folder(final: Path, *, replaces: bool = False) -> Generator[Path]:
    """Yield a new folder to write into; it gets the name `final` once everything is on the disk.

    After a failure neither is there. `replaces`: an earlier folder `final` of the same kind gives
    way. A kill at any moment then leaves a complete folder of that name; on a disk that cannot swap
    two names, one that `recover` finds. Files that only the earlier one holds belong to somebody:
    it is then kept as `replaced-<name>`.
    """
    part = _free_part(final)
    with _removed_on_failure(part):
        part.mkdir(parents=True)
        yield part
        _fsync_all(part)
        if not replaces:
            os.rename(part, final)
            _fsync(final.parent)
    if replaces:  # afterwards `part` may hold files of a user, which are kept even on a failure
        _replace(part, final)


def _replace(part: Path, final: Path) -> None:
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
    """Finish a replacement of the folder `final` that was killed between its two renamings."""
    earlier = _earlier(final)
    if os.path.lexists(final):
        remove(earlier)
    elif earlier.is_dir():
        earlier.rename(final)


def remove_whole(folder: Path) -> None:
    """Remove a folder under a temporary name: half removed, it must not look complete."""
    part = _free_part(folder)
    folder.rename(part)
    shutil.rmtree(part)


def set_aside(path: Path) -> Path:
    """Rename `path` to `replaced-<name>`, or to the next such name that is free, and return it."""
    kept = _free_name(path.with_name(f"replaced-{path.name}"))
    path.rename(kept)
    return kept


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
