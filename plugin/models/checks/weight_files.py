"""Files that hold a model's weights: model.safetensors, or the shards that an index names.

transformers would read more from a folder: an adapter next to the weights, which it applies; shards
of another kind; a file that config.json chooses; any file that an index names, pickles and other
folders included. We therefore load from a folder that holds the checked files alone.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.utils import cached_file

from ...base.errors import model_error
from ...config.model_files import WEIGHTS, WEIGHTS_INDEX, shard_names


def weight_files(name: str) -> dict[str, Path]:
    """Return the weight files of a model folder or hub id by name, downloaded if missing here.

    Raises JobError (exit 4) if there are no safetensors weights or the index names other files,
    OSError if the hub does not answer.
    """

    def find(file: str) -> Path | None:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    if single := find(WEIGHTS):
        return {WEIGHTS: single}
    if not (index := find(WEIGHTS_INDEX)):
        raise model_error("model_name", "safetensors weights", f"{name}, which has none")
    files = {shard: find(shard) for shard in shard_names(index, name)}
    if missing := [shard for shard, file in files.items() if file is None]:
        raise model_error(
            "model_name",
            "every file of the weights",
            f"{name}: {missing[0]} missing",
            "Download it again.",
        )
    return {WEIGHTS_INDEX: index} | {shard: file for shard, file in files.items() if file}


@contextmanager
def weights_alone(name: str) -> Generator[Path]:
    """Yield a temporary folder with links to the model's weight files and nothing else.

    Raises as `weight_files` does.
    """
    with TemporaryDirectory(prefix="weights-") as made:
        folder = Path(made)
        for file, path in weight_files(name).items():
            (folder / file).symlink_to(path.absolute())
        yield folder
