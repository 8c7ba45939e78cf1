"""Silence for the hints and progress bars of libraries, which would drown our own lines.

Every torch program imports this first: bitsandbytes warns while it is imported, and accelerate
imports it.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from types import TracebackType

from .environment import require
from .process import ROOT

require(ROOT)  # before an import of a missing or old package fails with a traceback
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
for name in ("bitsandbytes", "torch", "torchao", "accelerate"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)


def _on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End a program without a traceback after Ctrl-C, also during its seconds of imports."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _on_error


def quiet_loading() -> None:
    """Switch off the bars that transformers draws while it loads weights."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
