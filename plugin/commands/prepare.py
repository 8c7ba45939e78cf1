"""Corpus preparation: `main.py prepare --config F --out DIR`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..base.errors import guarded, json_line
from ..base.quiet import quiet_loading
from ..base.redact import guard_streams, redact
from ..config.config_file import read_config
from ..config.manifest import VERSION
from ..config.prepare_params import parse_prepare
from .prepare_arguments import prepare_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def main(argv: Sequence[str]) -> int:
    guard_streams()
    return guarded(lambda: _prepare(prepare_options(argv), argv))


def _prepare(options: argparse.Namespace, argv: Sequence[str]) -> int:
    # Each process of a pool imports this module; transformers, which most steps do without, takes
    # seconds.
    from ..corpus.prepare import Options, prepare
    from ..corpus.steps import Share

    params = parse_prepare(read_config(options.config) | options.typed)
    how = Options(
        processes=options.num_proc or os.cpu_count() or 1,
        share=Share(*options.task),
        stop_after=options.stop_after,
        verify=options.verify,
        version=VERSION,
        command=["main.py", "prepare", *map(redact, argv)],
    )
    say = partial(print, file=sys.stderr, flush=True)
    manifest = prepare(params, options.out, how, named_tokenizer, say)
    if options.json:
        print(json_line(_summary(str(options.out), manifest)))
    elif manifest:
        totals = manifest["totals"]
        print(f"{totals['documents']} documents, {totals['tokens']} tokens  {options.out}")
        print(f"report  {options.out / 'report.html'}")
    return 0


def named_tokenizer(name: str, field: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by its folder or hub id, with a mask token as training names it.

    Raises JobError (exit 4).
    """
    quiet_loading()
    from ..models.tokenizer import load_tokenizer

    say = partial(print, file=sys.stderr, flush=True)
    return load_tokenizer(name, field=field, names_mask=True, log=say)


def _summary(out: str, manifest: dict[str, Any] | None) -> dict[str, Any]:
    """Return what `--json` prints; a run that is not finished has no totals."""
    if manifest is None:
        return {"out": out, "finished": False}
    names = ("key", "totals", "split", "dedup", "tokenizer", "sources", "stages")
    return {"out": out, "finished": True, **{name: manifest[name] for name in names}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
