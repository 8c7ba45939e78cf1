"""The files that a model's weights lie in: model.safetensors, or those that an index names.

transformers looks into a folder for more: an adapter beside the weights, which it puts onto them;
shards of another kind; a file that config.json chooses; whatever an index names, pickles and other
folders included. So it is shown a folder that holds the checked files alone.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.utils import cached_file

from ..base.errors import model_error
from ..config.model_files import WEIGHTS, WEIGHTS_INDEX, shard_names


def weight_files(name: str) -> dict[str, Path]:
    """Return the weight files of a model folder or hub id by their names, fetched where they are
    not here.

    Raises JobError (exit 4) without safetensors weights, or when the index names anything else;
    OSError when the hub does not answer.
    """

    def find(file: str) -> Path | None:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    if whole := find(WEIGHTS):
        return {WEIGHTS: whole}
    if not (index := find(WEIGHTS_INDEX)):
        raise model_error("model_name", "safetensors weights", f"{name}, which has none")
    files = {shard: find(shard) for shard in shard_names(index, name)}
    if missing := [shard for shard, file in files.items() if file is None]:
        raise model_error(
            "model_name",
            "every file of the weights",
            f"{name}: {missing[0]} missing",
            "Fetch it again.",
        )
    return {WEIGHTS_INDEX: index} | {shard: file for shard, file in files.items() if file}


@contextmanager
def weights_alone(name: str) -> Generator[Path]:
    """Lend a folder with links to the model's weight files and nothing else.

    Raises as `weight_files` does.
    """
    with TemporaryDirectory(prefix="weights-") as made:
        folder = Path(made)
        for file, path in weight_files(name).items():
            (folder / file).symlink_to(path.absolute())
        yield folder
