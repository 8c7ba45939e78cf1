"""Data sets of the hub, streamed by `datasets`; what goes wrong there is one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal, cast

from ..base.errors import JobError, data_error, first_line
from .readers import FIELD

Split = Literal["train", "eval"]

_EVAL_SPLITS = ("validation", "valid", "dev", "test", "eval")


def hub_split(name: str, config: str | None, split: Split) -> str | None:
    """What the data set calls this split; None when it has no eval split.

    Raises JobError (exit 3).
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        # `datasets` looks at the network before its own cache, whatever DownloadConfig says.
        fix = "Allow downloads, or give a local file or folder."
        raise data_error(
            FIELD, "a local file or folder, as downloads are off", f"the hub id {name}", fix
        )
    splits = load_hub(name, config)
    if split == "eval":
        return next((one for one in _EVAL_SPLITS if one in splits), None)
    if "train" not in splits:
        raise data_error(FIELD, f"a split 'train' in {name}", f"the splits {', '.join(splits)}")
    return "train"


def hub_rows(name: str, config: str | None, split: Split) -> Iterator[dict[str, Any]]:
    """The rows of this split. Raises JobError (exit 3)."""
    found = hub_split(name, config, split)
    try:
        yield from load_hub(name, config)[found] if found else ()
    except _failures() as error:
        raise _hub_error(name, error) from error


@lru_cache(maxsize=16)
def load_hub(name: str, config: str | None) -> dict[str, Iterable[dict[str, Any]]]:
    """The splits of a hub data set, streamed; never with code from its repository, which `datasets`
    5 cannot run.
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
    """What `datasets` lets through: its own errors, httpx's and Python's have no common base below
    Exception.
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
    fix = "Check the name, the network and access rights, or give a local file."
    return data_error(
        FIELD,
        f"a hub data set {name} that can be loaded",
        f"{type(error).__name__}: {first_line(error)}",
        fix,
    )
