"""Imported first by every torch program: our own lines say what matters, and libraries' hints and
bars would drown them.

bitsandbytes warns while it is imported (and accelerate imports it), so this has to happen before
the other imports.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from types import TracebackType

from .environment import require
from .process import ROOT

require(ROOT)  # before a missing or old package ends an import with a traceback
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
for name in ("bitsandbytes", "torch", "torchao", "accelerate"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)


def _on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C ends a program, seconds of imports included, without a traceback; everything else is
    told as always.
    """
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _on_error


def quiet_loading() -> None:
    """Switch off the bars that transformers draws while it loads weights; needs transformers
    imported.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
