"""Imported first by the worker, before the seconds torch takes: a hung or crashed process shows
where it stood.

SIGUSR1 prints the Python stacks of all threads, and so does a fatal signal (SIGSEGV, SIGABRT, ...).
Both are written in C straight to the log, so a rank that is blocked inside a library answers too.
"""

from __future__ import annotations

import faulthandler
import signal

LOG = 2  # the descriptor of stderr: the parent points it to log.txt

faulthandler.enable(LOG)
faulthandler.register(signal.SIGUSR1, LOG, all_threads=True)
