"""Where the ranks of a run meet: a store that rank 0 serves on a port its parent had bound.

Choosing a free port and letting torch bind it seconds later would leave time for another job to take it. So the parent binds it
(to the loopback, on one machine), rank 0 inherits the open socket and serves on it, and every rank, rank 0 too, is a client: what
torch's own launcher does with its agent. Without that socket (accelerate launch) torch meets in its usual way.
"""

from __future__ import annotations

import os

from torch.distributed import TCPStore

from .follow import LISTEN_FD


def serve_store() -> TCPStore | None:
    """Begin to serve on the inherited port, if this rank has one. The caller keeps what this returns until the run has ended."""
    descriptor = os.environ.get(LISTEN_FD)
    if descriptor is None:
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=int(descriptor))
