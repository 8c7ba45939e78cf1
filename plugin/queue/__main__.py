"""Program of a queue's worker: `python -m plugin.queue ROOT LOCK`, started by whoever adds a job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Leave the starter and work until no job is left.

    The starter waits for the first of the two processes alone; nobody has to wait for the second.
    """
    if os.fork():
        return 0
    from .worker import work

    return work(Path(argv[0]), int(argv[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
