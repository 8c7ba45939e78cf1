"""Fusing an adapter trained earlier: `main.py fuse --adapter DIR --model_name BASE --out DIR`."""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..assembly.fuse import DTYPES, Card, Fused, Target, fuse_adapter
from ..assembly.verify import TOKENS
from ..base.errors import guarded, json_line, model_error, one_line
from ..base.redact import guard_streams
from ..config.families import FAMILIES
from ..config.model_files import refuse_missing_path
from ..models.configuration import load_config, set_causal
from ..models.digest import find_base
from ..models.load import load_model, table_rows
from ..models.lora import merged_model, with_adapter
from ..models.publish import public_name
from ..models.tokenizer import load_tokenizer
from ..run.facts import AdapterBase, read_facts
from ..run.folder import local_path
from .arguments import fuse_options
from .new_folder import refuse_used_folder


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _fuse(fuse_options(argv)))


def _fuse(options: argparse.Namespace) -> int:
    fused = _fuse_earlier(
        options.adapter.expanduser(),
        local_path(options.model_name),
        options.out.expanduser(),
        options.fuse_base,
    )
    path = one_line(str(fused.path))
    print(json_line(fused.result.content()) if options.json else f"fused model  {path}")
    return 0


def _fuse_earlier(adapter: Path, base: str, out: Path, fuse_base: str) -> Fused:
    refuse_missing_path("model_name", base)
    if not adapter.is_dir():
        raise model_error(
            "adapter", "an adapter's folder, or that of a run", f"{adapter}, which is not there"
        )
    adapter = adapter / "adapter" if (adapter / "adapter").is_dir() else adapter
    refuse_used_folder("out", out)
    facts = read_facts(adapter)
    recorded = facts.base or AdapterBase(name=base)
    family = FAMILIES[load_config(base).model_type]
    find_base(adapter, recorded, base)
    tokenizer = load_tokenizer(
        str(adapter if (adapter / "tokenizer_config.json").is_file() else base), family=family
    )
    dtype = DTYPES[recorded.dtype]
    # merged_model checks names and shapes before the adapter is put on the base as it was trained.
    merged_model(base, adapter, four_bit=False, dtype=dtype, embedding_rows=len(tokenizer))
    trained = load_model(base, dtype=dtype, four_bit=recorded.four_bit)
    set_causal(trained.config, facts.method)
    if len(tokenizer) > table_rows(trained):
        trained.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    live = with_adapter(trained, adapter)
    ids = torch.arange(min(TOKENS, len(tokenizer)))[None]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        out.rmdir()
    card = Card(
        out.name, {"base model": public_name(base), "adapter": public_name(str(adapter))}, {}
    )
    target = Target(
        out,
        base,
        tokenizer,
        facts.model_copy(update={"base": None}),
        card,
        live,
        ids,
    )
    return fuse_adapter(
        adapter, target, four_bit=recorded.four_bit, fuse_base=fuse_base, dtype=dtype
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
