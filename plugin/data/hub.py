"""Datasets of the Hugging Face hub, streamed by the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, cast

from ..base.errors import JobError, data_error, first_line
from .files.columns import FIELD
from .files.folder import Split

_EVAL_SPLITS = ("validation", "valid", "dev", "test", "eval")


def hub_split(name: str, config: str | None, split: Split) -> str | None:
    """Return the dataset's own name for this split; None if it has no eval split.

    Raises JobError (exit 3).
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        # `datasets` looks at the network before its own cache, whatever DownloadConfig says.
        expected, got = "a local file or folder, as downloads are off", f"the hub id {name}"
        raise data_error(FIELD, expected, got, "Allow downloads, or give a local file or folder.")
    splits = load_hub(name, config)
    if split == "eval":
        return next((known for known in _EVAL_SPLITS if known in splits), None)
    if "train" not in splits:
        raise data_error(FIELD, f"a split 'train' in {name}", f"the splits {', '.join(splits)}")
    return "train"


def hub_rows(name: str, config: str | None, split: Split) -> Iterator[dict[str, Any]]:
    """Yield the rows of this split. Raises JobError (exit 3)."""
    found = hub_split(name, config, split)
    try:
        yield from load_hub(name, config)[found] if found else ()
    except _failures() as error:
        raise _hub_error(name, error) from error


@lru_cache(maxsize=16)
def load_hub(name: str, config: str | None) -> dict[str, Iterable[dict[str, Any]]]:
    """Open the splits of a hub dataset as streams. Raises JobError (exit 3).

    Code of the dataset's repository never runs: `datasets` 5 cannot run it.
    """
    try:
        import datasets
    except ImportError as error:
        raise _hub_error(name, error) from error
    try:
        splits = datasets.load_dataset(name, config, streaming=True)
        return {
            str(split): cast("Iterable[dict[str, Any]]", rows) for split, rows in splits.items()
        }
    except _failures() as error:
        raise _hub_error(name, error) from error


def _failures() -> tuple[type[Exception], ...]:
    """List the exceptions that `datasets` lets through.

    Its own errors, httpx's and Python's have no common base below Exception.
    """
    import httpx
    from datasets.exceptions import DatasetsError

    return (
        DatasetsError,
        httpx.HTTPError,
        OSError,
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
    )


def _hub_error(name: str, error: Exception) -> JobError:
    expected = f"a hub dataset {name} that can be loaded"
    got = f"{type(error).__name__}: {first_line(error)}"
    fix = "Check the name, the network and access rights, or give a local file."
    return data_error(FIELD, expected, got, fix)
