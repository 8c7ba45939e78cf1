"""One rank of a run: what it was asked for, and how it listens and reports."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from ..config.params import Params
from ..run.folder import RunFolder
from ..run.heartbeat import Heartbeat, heartbeat_path
from ..run.state import CheckpointState, read_state
from ..training.meters import resident_bytes
from .accelerate_env import take_launchers_choice
from .reporter import Reporter
from .stop import RequestListener


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Parameters, checkpoint and channels of a rank, before it loads anything."""

    params: Params
    folder: RunFolder
    checkpoint: Path | None  # to resume from
    resumed: CheckpointState | None
    number: int
    leads: bool  # its machine: there it reports, listens and prepares the data
    moment: str  # of the run's first start, which a chat template may write
    heartbeat: Heartbeat
    reporter: Reporter
    requests: RequestListener
    started: float  # time.perf_counter, seconds
    resident: int  # bytes of this process before it loads anything; 0 on a GPU

    @property
    def first(self) -> bool:
        """Return whether this rank saves and publishes."""
        return self.number == 0

    def with_launchers_choice(self) -> Rank:
        """Return this rank with the parameters that train: those of run.json, and a launcher's
        choice where they are auto.

        Raises JobError (exit 2).
        """
        params, line = take_launchers_choice(self.params, os.environ)
        if line:
            self.reporter.log(line)
        return replace(self, params=params)

    def between_rows(self) -> None:
        """Show a sign of life. Raises StopRequested."""
        self.heartbeat.beat("rows")
        self.requests.raise_if_stopped()


def this_rank(params: Params, folder: RunFolder, checkpoint: Path | None = None) -> Rank:
    """Return the rank that the environment names (RANK, LOCAL_RANK), its signals caught."""
    resumed = read_state(checkpoint) if checkpoint else None
    number = int(os.environ.get("RANK", "0"))
    leads = int(os.environ.get("LOCAL_RANK", "0")) == 0
    heartbeat = Heartbeat(heartbeat_path(folder.path, number))
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return Rank(
        params=params,
        folder=folder,
        checkpoint=checkpoint,
        resumed=resumed,
        number=number,
        leads=leads,
        moment=(resumed.moment if resumed else "") or now,
        heartbeat=heartbeat,
        reporter=Reporter(
            folder, heartbeat, speaks=leads, first_step=resumed.step if resumed else 0
        ),
        requests=RequestListener(folder, reads_files=leads),
        started=time.perf_counter(),
        resident=0 if torch.cuda.is_available() else resident_bytes(),
    )
