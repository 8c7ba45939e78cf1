"""Store of tokenised documents: flat arrays with offsets.

N tokens of all documents, S documents. A million documents cost little more than their tokens. On
disk the store is four .npy files, memory-mapped by every rank, and one file of row ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Document:
    """One training example of T tokens."""

    ids: NDArray[np.int32]  # [T]
    supervised: NDArray[np.bool_]  # [T]
    prompt: int  # tokens before the last answer, where generation would start
    index: int


@dataclass(frozen=True)
class Documents:
    """The documents of one split."""

    ids: NDArray[np.int32]  # [N]
    supervised: NDArray[np.bool_]  # [N]
    offsets: NDArray[np.int64]  # [S + 1]
    prompts: NDArray[np.int64]  # [S] tokens before the last answer
    rows: tuple[str, ...]  # [S] row ids such as `train.jsonl:7`

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> Document:
        start, end = self.offsets[index], self.offsets[index + 1]
        return Document(
            self.ids[start:end], self.supervised[start:end], int(self.prompts[index]), index
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each document, [S]."""
        return np.diff(self.offsets)

    def save(self, folder: Path) -> None:
        """Write the store to a new folder."""
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", self.ids)
        np.save(folder / "supervised.npy", self.supervised)
        np.save(folder / "offsets.npy", self.offsets)
        np.save(folder / "prompts.npy", self.prompts)
        (folder / "rows.txt").write_text("".join(f"{row}\n" for row in self.rows), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Documents:
        """Map the store of a folder, read-only."""
        arrays = (
            np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("ids", "supervised", "offsets", "prompts")
        )
        return Documents(
            *arrays, rows=tuple((folder / "rows.txt").read_text(encoding="utf-8").splitlines())
        )


class Builder:
    """Collects documents; an append costs amortised constant time, `build` copies once."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._supervised: list[NDArray[np.bool_]] = []
        self._prompts: list[int] = []
        self._rows: list[str] = []

    def add(
        self, ids: NDArray[np.int32], supervised: NDArray[np.bool_], prompt: int, row: str
    ) -> None:
        """Append a document that comes from `row`."""
        self._ids.append(ids)
        self._supervised.append(supervised)
        self._prompts.append(prompt)
        self._rows.append(" ".join(row.splitlines()))

    def build(self) -> Documents:
        """Return the documents added so far."""
        sizes: Sequence[int] = [ids.size for ids in self._ids]
        return Documents(
            np.concatenate([np.zeros(0, np.int32), *self._ids]),
            np.concatenate([np.zeros(0, bool), *self._supervised]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.array(self._prompts, dtype=np.int64),
            tuple(self._rows),
        )
