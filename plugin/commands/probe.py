"""Probe of a trained encoder on a downstream task: `main.py probe MODEL --data F`."""

from __future__ import annotations

from ..base.quiet import quiet_loading  # isort: skip  # before anything that imports torch

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..base.errors import (
    JobError,
    Problem,
    guarded,
    json_line,
    model_error,
    one_line,
    renamed_field,
)
from ..base.files import whole_folder
from ..base.redact import guard_streams
from ..config.families import FAMILIES
from ..evaluation.classify import Finetuning, classify, majority
from ..evaluation.features import Encoder, latency, load_encoder
from ..evaluation.retrieve import retrieve
from ..evaluation.rows import Column, ProbePairs, columns_of, read_pairs
from ..inference.model import find_model
from ..models.backbones import positions
from ..models.configuration import load_config
from ..models.load import load_model
from ..models.lora import ADAPTER_CONFIG
from ..models.publish import write_encoder
from ..models.published import REGISTRY
from ..models.tokenizer import load_tokenizer
from .new_folder import refuse_used_folder
from .probe_arguments import probe_options

Say = Callable[[str], None]


def main(argv: Sequence[str]) -> int:
    guard_streams()
    quiet_loading()
    return guarded(lambda: _probe(probe_options(argv)))


def _probe(options: argparse.Namespace) -> int:
    say = partial(print, file=sys.stderr, flush=True)
    if options.export:
        refuse_used_folder("export", options.export)
    with renamed_field("dataset_name", "data"):
        task = options.task or _task_of(options)
        examples = _examples(options, task)
    say(f"data: {len(examples.train)} rows to fit on, {len(examples.held_out)} held out")
    with TemporaryDirectory(prefix="probe-") as made:
        folder = options.export or Path(made) / "encoder"
        with renamed_field("model_name", "model"), renamed_field("tokenizer_name", "model"):
            length = _export(options.model, folder, options.max_length)
        result = _measure(options, task, examples, folder, length, say)
    result["export"] = str(options.export) if options.export else None
    print(json_line(result) if options.json else "\n".join(_lines(result)))
    return 0


def _task_of(options: argparse.Namespace) -> str:
    """Choose the task by the columns of the data. Raises JobError (exit 2)."""
    columns = columns_of(options.data)
    if options.label_field in columns:
        return "classify"
    if {options.query_field, options.document_field} <= set(columns) and not options.finetune:
        return "retrieve"
    pair = f"{options.query_field} and {options.document_field}"
    expected = f"a column {options.label_field}, or columns {pair}"
    fix = "Name the columns by label_field, query_field and document_field."
    raise JobError(Problem("data", expected, ", ".join(map(str, columns))[:200] or "none", fix))


def _examples(options: argparse.Namespace, task: str) -> ProbePairs:
    """Read the task's two columns. What is held out is split by text, or by document."""
    how = {"share": options.eval_share, "seed": options.seed}
    if task == "classify":
        text = Column(option="text_field", name=options.text_field)
        label = Column(option="label_field", name=options.label_field, kind="label")
        return read_pairs(options.data, (text, label), key=0, **how)
    query = Column(option="query_field", name=options.query_field)
    document = Column(option="document_field", name=options.document_field)
    return read_pairs(options.data, (query, document), key=1, **how)


def _export(name: str, folder: Path, max_length: int) -> int:
    """Write the encoder of a model into a new folder. Return the length of text that it takes.

    Raises JobError (exit 4).
    """
    path = find_model(name)
    if (Path(path) / ADAPTER_CONFIG).is_file() and not (Path(path) / "config.json").is_file():
        fix = "Fuse it first: main.py fuse."
        raise model_error("model", "a full model", f"{name}, an adapter", fix)
    config = load_config(path)
    if config.model_type in REGISTRY:
        able = ", ".join(family for family in FAMILIES if family not in REGISTRY)
        got = f"{name}, a {config.model_type} model, which AutoModel loads only by running its code"
        raise model_error("model", f"an encoder that AutoModel loads ({able})", got)
    tokenizer = load_tokenizer(path, family=FAMILIES[config.model_type])
    model = load_model(path)
    if folder.is_dir():
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as part:
        write_encoder(part, model, tokenizer)
    return min(max_length, positions(model))


def _measure(
    options: argparse.Namespace,
    task: str,
    examples: ProbePairs,
    folder: Path,
    max_length: int,
    say: Say,
) -> dict[str, Any]:
    """Return the figures of the exported encoder, and of a random one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_encoder(folder, device, max_length)
    finetuning = (
        Finetuning(epochs=options.epochs, learning_rate=options.learning_rate, seed=options.seed)
        if options.finetune
        else None
    )

    def score(one: Encoder) -> dict[str, Any]:
        if task == "classify":
            return classify(one, examples, finetuning)
        return retrieve(one, examples.held_out)

    column = 1 if task == "retrieve" else 0
    times = latency(encoder, [pair[column] for pair in examples.held_out])
    # Made before the encoder is fine-tuned, and measured in the same way.
    random = encoder.randomised(options.seed) if options.baseline == "random" else None
    say(f"{task}: {options.model}")
    result: dict[str, Any] = {
        "model": options.model,
        "task": task,
        "features": "finetuned" if finetuning else "frozen",
        "rows": {"fit": len(examples.train), "held_out": len(examples.held_out)},
        "split": "own" if examples.own_split else options.eval_share,
        "max_length": max_length,
        **score(encoder),
    }
    if task == "classify":
        result["majority"] = majority(examples)
    if random:
        say(f"{task}: the same architecture with random weights")
        result["random_encoder"] = score(random)
    return result | {"latency": times, "device": str(device)}


def _lines(result: dict[str, Any]) -> list[str]:
    """Return the report for a terminal."""
    names = [name for name in ("accuracy", "recall_at_1", "recall_at_10", "mrr") if name in result]
    lines = [f"{result['task']}  {one_line(result['model'])}, {result['features']} features"]
    for title, found in (("model", result), ("random weights", result.get("random_encoder"))):
        if found:
            low, high = found["ci95"]
            figures = ", ".join(f"{name} {found[name]:.3f}" for name in names)
            lines.append(f"{title:<15} {figures}; {names[0]} in [{low:.3f}, {high:.3f}] (95 %)")
    if "majority" in result:
        lines.append(f"{'majority':<15} accuracy {result['majority']:.3f}")
    for size, found in result["latency"].items():
        speed = f"{found['ms_per_document']:g} ms a document, {found['documents_per_s']:g} a second"
        lines.append(f"{f'batch {size}':<15} {speed} on {result['device']}")
    if result["export"]:
        lines.append(f"{'encoder':<15} {one_line(result['export'])}")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
