"""Debug bundle of a step that is not finite: its rows, noise, losses and batches, in
`debug-step-<step>-rank-<rank>/`.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..base.files import remove, set_aside, whole_folder
from ..data.documents import Documents
from ..run.folder import RunFolder, to_json
from ..run.owned import not_ours
from ..training.loop import NonFinite


def row_of(documents: Documents | None, index: int) -> str:
    """Return the row id of a document; the number of a streamed one, whose rows are not kept."""
    return documents.rows[index] if documents else str(index)


def write_bundle(
    folder: RunFolder, error: NonFinite, documents: Documents | None, rank: int
) -> tuple[Path, list[str]]:
    """Batches as safetensors, and `step.json` with row id, t, mask ratio and loss of every
    document, the broken ones first.

    Returns the folder and the rows whose loss is not finite.
    """
    final = folder / f"debug-step-{error.step}-rank-{rank}"
    if final.is_dir() and next(
        not_ours(final), None
    ):  # a run that went on may break at the same step again
        set_aside(final)
    else:
        remove(final)
    with whole_folder(final) as part:
        told: list[dict[str, Any]] = []
        for number, micro_batch in enumerate(error.micro_batches):
            batch = micro_batch.batch.to(torch.device("cpu"))
            held = {one.name: getattr(batch, one.name) for one in fields(batch)}
            if batch.copies:
                held |= {one.name: getattr(batch.copies, one.name) for one in fields(batch.copies)}
            tensors = {
                name: value.contiguous()
                for name, value in held.items()
                if isinstance(value, torch.Tensor)
            }
            save_file(tensors, part / f"batch-{number}.safetensors")
            losses = error.losses[number] if number < len(error.losses) else []
            for place, (index, one) in enumerate(
                zip(micro_batch.documents, micro_batch.corruptions, strict=True)
            ):
                told.append(
                    {
                        "document": index,
                        "row": row_of(documents, index),
                        "batch": number,
                        "t": one.levels.mean_t,
                        "mask_ratio": one.masked.size / max(1, one.noisy.size),
                        "loss": losses[place] if place < len(losses) else None,
                    }
                )
        told.sort(key=_is_finite)
        content = {"step": error.step, "error": error.problems[0].as_json(), "documents": told}
        (part / "step.json").write_text(
            json.dumps(json.loads(to_json(content)), indent=1) + "\n", encoding="utf-8"
        )
    return final, [one["row"] for one in told if one["loss"] is not None and not _is_finite(one)]


def _is_finite(document: dict[str, Any]) -> bool:
    return document["loss"] is not None and math.isfinite(document["loss"])
