"""Growth of cost with the number of documents, their length, their packing, the vocabulary.

`make scaling` (under four minutes on two cores) draws benches/results/scaling.png. Tokens are
random, lengths Alpaca's, weights random; times are CPU time, so that a busy machine changes them
little. The last line is one JSON object.
"""

from __future__ import annotations

import os

# Threads that wait must sleep: spinning is CPU time too; see throughput.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from meter import resident, return_free_memory, spent_by  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from shapes import CPU, Shape, draw_lengths  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import PretrainedConfig  # noqa: E402
from work import PAD, RULES, make_step  # noqa: E402

from plugin.base import quiet  # noqa: E402, F401  # before anything that imports torch
from plugin.data.documents import Builder, Documents  # noqa: E402
from plugin.data.packing import Layout  # noqa: E402
from plugin.data.steps import pass_order, step_slots  # noqa: E402
from plugin.models.attention import Segments, loop  # noqa: E402
from plugin.models.backbones import unwrapped  # noqa: E402
from plugin.models.diffusion import DiffusionModel  # noqa: E402
from plugin.models.head import Rows, masked_sums  # noqa: E402
from plugin.models.load import build_model  # noqa: E402
from plugin.training.step import Step, build_step  # noqa: E402

BATCH = 32  # documents of a step
MASKED, WIDTH = 512, 256  # tokens that the head predicts, and their width
MB = 1e6

Records = list[dict[str, Any]]


def by_documents(sizes: Sequence[int]) -> Records:
    """Measure building and loading the store, the order of a pass, and building a step.

    The store is built once a run, the order once a pass.
    """
    return [_of_documents(size) for size in sizes]


def _of_documents(size: int) -> dict[str, Any]:
    lengths, prompts = draw_lengths("alpaca", size, seed=0)
    ends = np.cumsum(lengths)
    ids = np.random.default_rng(0).integers(8, 50_000, ends[-1], dtype=np.int32)
    supervised = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths) >= np.repeat(
        prompts, lengths
    )

    def build() -> Documents:
        builder = Builder()
        for row, (end, length, prompt) in enumerate(
            zip(ends.tolist(), lengths.tolist(), prompts.tolist(), strict=True)
        ):
            builder.add(
                ids[end - length : end],
                supervised[end - length : end],
                prompt,
                f"train.jsonl:{row + 1}",
            )
        return builder.build()

    with tempfile.TemporaryDirectory() as folder:
        kept: list[Documents] = []
        building = spent_by(lambda: kept.append(build()))
        saving = spent_by(lambda: kept.pop().save(Path(folder) / "store"))
        return_free_memory()
        before = resident()
        loading = spent_by(lambda: kept.append(Documents.load(Path(folder) / "store")))
        held = resident() - before
        pass_order.cache_clear()
        ordering = spent_by(lambda: pass_order(size, 0, 0))
        steps = [spent_by(lambda step=step: _build_step(kept[0], step)).cpu for step in range(40)]
    return {
        "documents": size,
        "build_s": round(building.cpu, 4),
        "save_s": round(saving.cpu, 4),
        "load_s": round(loading.cpu, 4),
        "loaded_mb": round(held / MB, 2),
        "pass_order_s": round(ordering.cpu, 5),
        "step_ms": round(1000 * statistics.median(steps), 3),
    }


def _build_step(documents: Documents, step: int) -> None:
    build_step(
        step_slots(len(documents), BATCH, step, seed=0),
        documents,
        RULES,
        batch_size=BATCH,
        layout=Layout(packed=True),
    )


def by_length(shapes: Sequence[Shape], lengths: Sequence[int]) -> Records:
    """Measure forward and backward over as many tokens as the longest document has.

    They are cut into documents of one length.
    """
    return [_of_length(shape, length, max(lengths)) for shape in shapes for length in lengths]


def _of_length(shape: Shape, length: int, tokens: int) -> dict[str, Any]:
    torch.manual_seed(0)
    module = DiffusionModel(build_model(shape.config()), PAD, "loop")
    lengths = np.full(tokens // length, length)
    step = make_step(shape.vocabulary, lengths, np.ones_like(lengths), seed=0)

    spent = spent_by(partial(_train, module, step)).cpu
    attention = _attention_seconds(unwrapped(module.model).config, step)
    return {
        "shape": shape.name,
        "length": length,
        "ms_per_1k_tokens": round(1e6 * spent / step.tokens, 2),
        "attention_share": round(attention / spent, 4),
    }


def _train(module: DiffusionModel, step: Step) -> None:
    for micro_batch in step.micro_batches:
        (module(micro_batch.batch).weighted.sum() / step.count).backward()


def _attention_seconds(config: PretrainedConfig, step: Step) -> float:
    """Return the CPU seconds of attention alone in all layers, over the documents of the step.

    They count forward and backward.
    """
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    kinds = (
        config.layer_types
        if config.model_type == "modernbert"
        else ["full_attention"] * config.num_hidden_layers
    )
    seconds = 0.0
    for kind, layers in Counter(kinds).items():
        reach = config.sliding_window if kind == "sliding_attention" else None
        for micro_batch in step.micro_batches:
            segments = Segments.of(micro_batch.batch, "loop")
            query, key, value = (
                torch.randn(1, heads, micro_batch.batch.ids.numel(), width, requires_grad=True)
                for _ in range(3)
            )
            work = partial(_attend, query, key, value, segments, reach)
            seconds += layers * spent_by(work).cpu
    return seconds


def _attend(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, reach: int | None
) -> None:
    mixed = loop(query, key, value, segments, reach, query.shape[-1] ** -0.5)
    mixed.backward(torch.ones_like(mixed))


def by_packing(shape: Shape, counts: Sequence[int]) -> Records:
    """Measure forward and backward of one micro-batch of n packed documents of Alpaca's lengths."""
    torch.manual_seed(0)
    module = DiffusionModel(build_model(shape.config()), PAD, "loop")
    records = []
    for count in counts:
        step = make_step(shape.vocabulary, *draw_lengths("alpaca", count, seed=0), seed=0)
        spent = spent_by(partial(_train, module, step)).cpu
        records.append(
            {
                "packed_documents": count,
                "tokens": step.tokens,
                "ms_per_1k_tokens": round(1e6 * spent / step.tokens, 2),
            }
        )
    return records


def by_vocabulary(sizes: Sequence[int]) -> Records:
    """Measure head and loss of 512 masked tokens, forward and backward.

    They are fused as in training, and with plain logits. Memory is the peak beyond weights and
    their gradient, which both ways have.
    """
    return [_of_vocabulary(size) for size in sizes]


def _of_vocabulary(size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, size, bias=False)
    states, target = (
        torch.randn(MASKED, WIDTH, requires_grad=True),
        torch.randint(0, size, (MASKED,)),
    )
    rows = Rows(target, torch.ones(MASKED), torch.arange(MASKED) // 32, MASKED // 32)

    def fused() -> None:
        masked_sums(states, head, rows).weighted.sum().backward()

    def plain() -> None:
        F.cross_entropy(head(states), target, reduction="sum").backward()

    record: dict[str, Any] = {"vocabulary": size}
    for name, work in (("fused", fused), ("plain", plain)):
        spent, grown = [], []
        for _ in range(
            3
        ):  # the first makes the workspaces of matrix products, and counts for neither
            head.weight.grad = states.grad = None
            return_free_memory()
            before = resident()
            spent.append(spent_by(work))
            grown.append(spent[-1].peak - before - 4 * size * WIDTH)
        record[f"{name}_ms"] = round(1000 * statistics.median(one.cpu for one in spent[1:]), 2)
        record[f"{name}_mb"] = round(max(0, *grown[1:]) / MB, 1)
    return record


def table(title: str, records: Records) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in records[0]:
        shown.add_column(name, justify="right")
    for record in records:
        shown.add_row(
            *(f"{value:,}" if isinstance(value, int) else str(value) for value in record.values())
        )
    return shown


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--picture", type=Path, help="draw the panels into this PNG")
    parser.add_argument("--save", type=Path, help="write the JSON there too, with the command")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="every path with few of everything: proves the code, not a figure",
    )
    options = parser.parse_args(argv)
    began, small = time.perf_counter(), options.rehearse
    shapes = [shape.narrow() if small else shape.without_head() for shape in CPU[:2]]
    found = {
        "documents": by_documents((100, 200) if small else (1_000, 10_000, 100_000, 1_000_000)),
        "lengths": by_length(shapes, (32, 64) if small else (128, 512, 1024, 2048, 4096, 8192)),
        "packing": by_packing(shapes[0], (2, 4) if small else (8, 32, 128, 340)),
        "vocabulary": by_vocabulary(
            (256, 512) if small else (1_024, 4_096, 16_384, 50_368, 126_464, 152_064)
        ),
    }
    console = Console(width=150)
    titles = (
        "Documents: CPU time and memory",
        "Length of a document: forward + backward",
        "Documents of a micro-batch: forward + backward",
        "Vocabulary: head and loss, 512 tokens",
    )
    for title, records in zip(titles, found.values(), strict=True):
        console.print(table(title, records))
    if options.picture:
        from picture import draw  # only the picture needs matplotlib

        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(found, options.picture)
    first, last = (found["documents"][at]["step_ms"] for at in (0, -1))
    summary = {
        **found,
        "step_growth": round(
            last / first, 3
        ),  # of building a step, from the fewest documents to the most
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python benches/scaling.py", *argv])
        options.save.write_text(
            json.dumps({"command": command, **summary}, indent=1) + "\n", encoding="utf-8"
        )
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
