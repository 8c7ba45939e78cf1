"""Layout of a trained model for serving engines: `main.py export MODEL --format sdar --out DIR`."""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PretrainedConfig

from ..assembly.verify import TOKENS, Reloaded, compare_reloaded, rendered_prompt
from ..base.errors import Code, JobError, Problem, guarded, json_line, one_line, renamed_field
from ..base.files import whole_folder
from ..base.redact import guard_streams
from ..config.families import FAMILIES
from ..inference.model import find_model
from ..models.checks.weight_files import weight_files
from ..models.configuration import attention_pattern, block_facts, load_config
from ..models.decoders.sdar import sdar_config, warning_of_mask
from ..models.diffusion import logits_of
from ..models.load import load_model
from ..models.publish import (
    copy_generation_settings,
    public_name,
    write_card,
    write_model,
)
from ..models.tokenizer import check_pair, load_tokenizer
from ..run.facts import read_facts
from .export_arguments import export_options
from .new_folder import make_room, refuse_used_folder

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _export(export_options(argv)))


def _export(options: argparse.Namespace) -> int:
    with renamed_field("model_name", "model"), renamed_field("tokenizer_name", "model"):
        path = find_model(options.model)
        out = options.out.expanduser()
        refuse_used_folder("out", out)
        config = load_config(path)
        refuse_other_models(config, path)
        found = _write(path, config, out)
    warning = warning_of_mask(config.mask_token_id)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        content = {"path": str(out), "max_logit_difference": found.max_logit_difference}
        print(json_line(content | {"warning": warning}))
    else:
        print(f"sdar model  {one_line(str(out))}")
    return 0


def refuse_other_models(config: PretrainedConfig, name: str) -> None:
    """Refuse a model that engines would serve as another one, with every reason.

    Raises JobError (exit 4) naming model.
    """
    wrong: list[tuple[str, str, str]] = []
    if config.model_type not in ("qwen3", "sdar"):
        fix = "Engines load block diffusion on Qwen3's layers alone."
        wrong.append(("a Qwen3 model", FAMILIES[config.model_type].architecture, fix))
    if attention_pattern(config) != "block":
        fix = "Train it with training_method block."
        wrong.append(("a model that is denoised block by block", attention_pattern(config), fix))
    elif block := block_facts(config):
        if block.clean_context != "block":
            fix = "SDAR's clean blocks see themselves in full; train with clean_context block."
            wrong.append(("clean_context block", block.clean_context, fix))
        if block.shift:
            fix = "A state of SDAR predicts its own token; train with block_shift false."
            wrong.append(("block_shift false", "true", fix))
        if getattr(config, "mask_token_id", None) is None:
            wrong.append(("mask_token_id in config.json", "none", ""))
    if wrong:
        raise JobError(
            *(
                Problem("model", expected, f"{name}: {got}", fix, Code.MODEL)
                for expected, got, fix in wrong
            )
        )


def _write(path: str, config: PretrainedConfig, out: Path) -> Reloaded:
    """Write the layout, completely or not at all, once a fresh process has found its logits."""
    tokenizer = load_tokenizer(path, family=FAMILIES[config.model_type])
    check_pair(config, tokenizer, 0)
    dtype = weights_dtype(path)
    ids = torch.arange(min(TOKENS, len(tokenizer)))[None]
    logits = logits_of(load_model(path, dtype=dtype), ids)
    facts, prompt = read_facts(Path(path)), rendered_prompt(tokenizer)
    make_room(out)
    with whole_folder(out) as part:
        model = load_model(path, dtype=dtype, config=sdar_config(config))
        write_model(part, model, tokenizer, facts, base=path)
        copy_generation_settings(part, path)
        found = compare_reloaded(part, ids, logits, prompt, dtype)
        if not found.prompt:
            expected, got = "the model's prompt layout after reloading", "another one"
            raise JobError(Problem("model", expected, got, code=Code.INTERNAL))
        table = {
            "exported from": public_name(path),
            "block size": config.block_size,
            "largest logit difference after reloading": f"{found.max_logit_difference:.2e}",
        }
        write_card(
            part, {"name": out.name, "method": facts.method or "", "table": table, "metrics": {}}
        )
    return found


def weights_dtype(path: str) -> torch.dtype:
    """Return the dtype that a model's weights are saved in."""
    files = [file for file in weight_files(path).values() if file.suffix == ".safetensors"]
    with safe_open(files[0], framework="pt") as opened:
        kind = opened.get_slice(next(iter(opened.keys()))).get_dtype()
    return _DTYPES.get(kind, torch.float32)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
