"""Place of a studio: its root folder, the runs in it by their names, and its own files there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..base.files import is_plain

OWN = ".studio"  # folder of the studio's lock and address


@dataclass(frozen=True)
class Place:
    """A root folder of runs."""

    root: Path  # absolute

    @property
    def own(self) -> Path:
        return self.root / OWN

    @property
    def templates(self) -> Path:
        """Return the folder of named parameters: YAML files that `train --config` takes."""
        return self.root / "templates"

    def run_dir(self, name: str) -> Path | None:
        """Return the folder of the run that a page names, relative to the root.

        None for a name that leaves the root, by dots or by a link, or that holds no plain run.json.
        """
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            return None
        folder = self.root.joinpath(*parts)
        try:
            inside = os.path.realpath(folder).startswith(os.path.realpath(self.root) + os.sep)
            return folder if inside and is_plain(folder / "run.json") else None
        except (OSError, UnicodeEncodeError):  # a name that no disk takes
            return None
