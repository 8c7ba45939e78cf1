"""Debug bundle of a step that is not finite: rows, times, mask ratios, losses and batches."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults.forks import Forks
from helpers.support import ERROR
from helpers.tiny import in_order, random_documents, rules
from safetensors.torch import load_file

from plugin.base.errors import Problem
from plugin.batch import Batch
from plugin.data.packing import Layout
from plugin.objectives.block import Blocks
from plugin.run.folder import RunFolder
from plugin.training.loop import NonFinite
from plugin.training.step import build_step
from plugin.worker.debug_bundle import write_bundle


def test_a_poisoned_row_is_named_and_its_batch_can_be_loaded(
    forks: Forks, tiny_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    job = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--batch_size",
        4,
        "--train_steps",
        9,
    )
    broken = forks.run(tmp_path / "run", *job, "--save_steps", 4, fault="step:nan:6:0")
    bundle = broken.folder / "debug-step-6-rank-0"
    first = (bundle / "step.json").read_bytes()
    again = forks.run(
        broken.folder, *job, "--save_steps", 4, "--resume", "true", fault="step:nan:6:0"
    )
    for scene in (broken, again):
        (line,) = [line for line in scene.err.splitlines() if ERROR.match(line)]
        assert scene.code == scene.result["code"] == 6
        assert line.startswith("error[6]: loss: expected a finite loss and gradient, got loss nan")
        assert str(bundle) in scene.err
    assert (bundle / "step.json").read_bytes() == first, (
        "the run that went on broke at the same document, and said so"
    )

    content = json.loads(first)
    documents = content["documents"]
    assert (content["step"], len(documents)) == (6, 4)
    assert [one["loss"] for one in documents].count("nan") == 1
    worst = documents[0]
    assert worst["loss"] == "nan", "the broken one comes first"
    assert f"document {worst['document']} (t {worst['t']:.4f}" in line
    assert f"row {worst['row']}" in broken.err
    assert len(json.loads((broken.folder / "metrics.json").read_text())) > 0
    rows = pairs_file.read_text().splitlines()
    for one in documents:
        name, number = one["row"].rsplit(":", 1)
        assert Path(name).name == pairs_file.name
        assert 1 <= int(number) <= len(rows)
        assert 0 < one["t"] < 1
        assert 0 <= one["mask_ratio"] <= 1
    assert all(math.isfinite(one["loss"]) for one in documents[1:])

    tensors = load_file(bundle / "batch-0.safetensors")
    batch = Batch(
        **tensors, longest=int((tensors["cu_seqlens"][1:] - tensors["cu_seqlens"][:-1]).max())
    )
    (poisoned,) = batch.weight.isnan().nonzero().flatten().tolist()
    place = int(batch.document[batch.masked[poisoned]])
    masked = int((batch.document[batch.masked] == place).sum())
    tokens = int(batch.cu_seqlens[place + 1] - batch.cu_seqlens[place])
    assert worst["mask_ratio"] == pytest.approx(masked / tokens)
    assert not (broken.folder / "checkpoint-6").exists()


def test_rows_with_noisy_copies_are_saved_with_them(tmp_path: Path) -> None:
    documents = random_documents(3)
    how = replace(rules(), noising=Blocks(size=4))
    step = build_step(in_order(documents), documents, how, batch_size=3, layout=Layout(packed=True))
    problem = Problem("loss", "a finite loss and gradient", "nan")
    error = NonFinite(problem, 5, step.micro_batches, [[1.0, math.nan, 2.0]])
    bundle, rows = write_bundle(RunFolder(tmp_path), error, documents, 0)
    (batch,) = (one.batch for one in step.micro_batches)
    assert rows == [documents.rows[step.micro_batches[0].documents[1]]]
    saved = load_file(bundle / "batch-0.safetensors")
    assert batch.copies
    assert torch.equal(saved["ids"], batch.ids)
    for name in ("copy", "limit", "source"):
        assert torch.equal(saved[name], getattr(batch.copies, name))
