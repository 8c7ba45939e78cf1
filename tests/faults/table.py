"""`make faults`: every fault of the promises to users, injected for real, and its losses.

`make faults ROWS=kill` plays one group.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Set before anything imports torch or a hub client, and inherited by every child.
os.environ |= {
    **dict.fromkeys(
        (
            "HF_HUB_OFFLINE",
            "HF_DATASETS_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "OMP_NUM_THREADS",
            "NO_COLOR",
        ),
        "1",
    ),
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("PYTHONPATH", None)

from faults.forks import Forks
from faults.rows import Row, all_rows
from faults.stage import Stage, open_stage


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    rows = all_rows()
    groups = list(dict.fromkeys(row.group for row in rows))
    parser.add_argument(
        "groups", nargs="*", metavar="GROUP", help=f"of {', '.join(groups)}; all without one"
    )
    wanted = parser.parse_args(argv).groups
    if unknown := set(wanted) - set(groups):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    chosen = [row for row in rows if not wanted or row.group in wanted]
    tried = lost = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root, Forks() as forks:
        stage = open_stage(forks, Path(root))
        print(f"{'event':<42}{'phase':<24}{'promise':<76}result")
        waiting = sum(
            row.group == "hang" for row in chosen
        )  # they wait for the watchdog and need no core meanwhile
        with ThreadPoolExecutor(2 + waiting) as pool:
            for row, found in zip(
                chosen, pool.map(lambda row: _play(row, stage), chosen), strict=True
            ):
                tried += row.tries
                lost += bool(found)
                print(
                    f"{row.event:<42}{row.phase:<24}{row.promise:<76}{'LOST: ' + found if found else 'kept'}",
                    flush=True,
                )
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(json.dumps({"tried": tried, "survived": tried - lost, "lost": lost}))
    return int(lost > 0)


def _play(row: Row, stage: Stage) -> str:
    try:
        return row.play(stage)
    except (
        AssertionError,
        OSError,
        LookupError,
    ) as error:  # of this row alone: the others are played all the same
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
