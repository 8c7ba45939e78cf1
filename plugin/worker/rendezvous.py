"""Meeting place of the ranks of a run.

The ranks of one machine meet in a file of a folder that only their user may open: whoever can write
there may join them, read what they send and answer in their place. Those of several machines meet
at a store that rank 0 serves on a port; torch has no password for it, so their network has to be
trusted (docs/several-machines.md). Without either (accelerate launch) torch meets in its usual way.

A port is bound by the parent and inherited by rank 0: choosing a free one and letting torch bind it
seconds later would leave time for another job to take it. Every rank, rank 0 too, is then a client,
as under torch's own launcher with its agent.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
)
from accelerate.utils import KwargsHandler

from ..base.errors import JobError, Problem
from ..base.process import LISTEN_FD, MEETING, PARENT_PID

# Ways in which accelerate may share a model. Sharding is ours (training/sharding.py);
# accelerate_env.py reads what a launcher asks for.
REPLICATED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

# Ranks may wait for hours while rank 0 reads the data. The parent's watchdog knows that from a
# hang; torch's time-out of ten minutes does not.
PATIENCE = timedelta(days=7)


def serve_store() -> dist.TCPStore | None:
    """Serve a store on the inherited port, if this rank has one.

    The caller keeps the returned store until the run has ended.
    """
    descriptor = os.environ.get(LISTEN_FD)
    if descriptor is None:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=int(descriptor)
    )


def join_ranks(precision: str, *, on_cpu: bool) -> Accelerator:
    """Meet the other ranks.

    Raises JobError (exit 2) when accelerate is configured to shard the model itself.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if meeting := os.environ.get(MEETING):
        store = dist.FileStore(meeting, ranks)
        store.set_timeout(PATIENCE)
        backend = "gloo" if on_cpu else "nccl"
        dist.init_process_group(
            backend, store=store, rank=int(os.environ["RANK"]), world_size=ranks, timeout=PATIENCE
        )
    # Gradients live in the buckets that DDP exchanges, so there is no second copy of them.
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if PARENT_PID in os.environ:
        handlers.append(InitProcessGroupKwargs(timeout=PATIENCE))
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=handlers)
    assert accelerator.num_processes == ranks, (
        f"accelerate runs {accelerator.num_processes} ranks instead of {ranks}"
    )
    if accelerator.distributed_type not in REPLICATED:
        got = f"{accelerator.distributed_type.value} from accelerate's configuration"
        fix = "Leave that configuration at DDP and set parallel zero2 or zero3."
        raise JobError(
            Problem(
                "parallel",
                "accelerate's plain DDP, because this program shards the model itself",
                got,
                fix,
            )
        )
    return accelerator
