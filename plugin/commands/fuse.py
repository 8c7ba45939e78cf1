"""Publication of an adapter trained earlier, or of a checkpoint: `main.py fuse ... --out DIR`."""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..assembly.fuse import DTYPES, Card, Fused, Target, fuse_adapter, publish
from ..assembly.verify import TOKENS
from ..base.errors import guarded, json_line, model_error, one_line, renamed_field
from ..base.redact import guard_streams
from ..config.families import FAMILIES
from ..config.model_files import refuse_missing_path
from ..models.checks.digest import find_base
from ..models.configuration import load_config, set_attention
from ..models.load import fit_to_tokenizer, load_model
from ..models.lora import ADAPTER_CONFIG, merged_model, with_adapter
from ..models.publish import public_name
from ..models.tokenizer import load_tokenizer
from ..run.facts import AdapterBase, read_facts
from ..run.folder import local_path
from .export import weights_dtype
from .fuse_arguments import fuse_options
from .new_folder import make_room, refuse_used_folder


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _fuse(fuse_options(argv)))


def _fuse(options: argparse.Namespace) -> int:
    out = options.out.expanduser()
    if options.checkpoint:
        fused = _publish_checkpoint(options.checkpoint.expanduser(), out)
    else:
        base = local_path(options.model_name)
        fused = _fuse_earlier(options.adapter.expanduser(), base, out, options.fuse_base)
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
    merged_model(base, adapter, four_bit=False, dtype=dtype, tokenizer=tokenizer)
    trained = load_model(base, dtype=dtype, four_bit=recorded.four_bit)
    set_attention(trained.config, facts.method, facts.block)
    fit_to_tokenizer(trained, tokenizer, mean_resizing=False)
    live = with_adapter(trained, adapter)
    ids = torch.arange(min(TOKENS, len(tokenizer)))[None]
    make_room(out)
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


def _publish_checkpoint(checkpoint: Path, out: Path) -> Fused:
    """Publish a full model's checkpoint as it stands, without optimizer and state of the run."""
    if not checkpoint.is_dir():
        raise model_error(
            "checkpoint", "a checkpoint's folder", f"{checkpoint}, which is not there"
        )
    if (checkpoint / ADAPTER_CONFIG).exists():
        fix = "Give it as --adapter, with its base as --model_name."
        raise model_error("checkpoint", "a full model", f"{checkpoint}, an adapter", fix)
    refuse_used_folder("out", out)
    name = str(checkpoint)
    with renamed_field("model_name", "checkpoint"), renamed_field("tokenizer_name", "checkpoint"):
        tokenizer = load_tokenizer(name, family=FAMILIES[load_config(name).model_type])
        model = load_model(name, dtype=weights_dtype(name))
    make_room(out)
    card = Card(out.name, {"checkpoint": public_name(name)}, {})
    ids = torch.arange(min(TOKENS, len(tokenizer)))[None]
    found = publish(model, Target(out, name, tokenizer, read_facts(checkpoint), card, model, ids))
    return Fused(out, {"trained": found.max_logit_difference}, "trained", found.template)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
