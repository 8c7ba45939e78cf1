"""Settings in which runs differ, and whether their evaluation losses compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..base.files import open_plain
from ..config.methods import METHODS
from ..config.params import SCHEMA
from ..run.folder import RunFolder
from .runs import Run

ByRun = dict[str, Any]  # label -> value
_OF_ITS_FOLDER = {"run_dir", "resume", "machine_rank"}  # these say where a run is, not what it is
# What the evaluated documents are made of, in addition to the data itself.
_DOCUMENTS = [
    "dataset_name",
    "training_stage",
    "text_field",
    "text_rows",
    "instruction_template",
    "input_template",
    "output_template",
    "max_length",
    "truncation",
    "train_turns",
    "mask_prompt_loss",
    "insert_eos",
]
_HELD_OUT = ("eval_share", "seed")  # they choose rows, where the data has no eval split of its own
# What an evaluation's noise and loss depend on; it sets the times and the seed itself.
_OBJECTIVE = [
    "training_method",
    "objective",
    "noise_schedule",
    "mask_count",
    "t_min",
    "t_max",
    "mask_rate",
    "mlm_replace",
    "loss_norm",
    "loss_weight_type",
    "eos_policy",
    "eos_block_length",
]
_OF_MLM = {"mask_rate", "mlm_replace"}
_OF_A_CALL = {"truncation", "padding"}  # parts of a tokenizer.json that each call sets anew


def differing(runs: Sequence[Run]) -> dict[str, ByRun]:
    """Return {name: {label: value}} of every setting that is not the same in all runs.

    Parameters come first, in the order of the form; then data and environment.
    """
    known = {run.label: {**run.params, **_surroundings(run)} for run in runs}
    names = dict.fromkeys([*SCHEMA, *(name for values in known.values() for name in values)])
    rows = {
        name: {label: values.get(name) for label, values in known.items()}
        for name in names
        if name not in _OF_ITS_FOLDER
    }
    return {name: row for name, row in rows.items() if len(_distinct(row.values())) > 1}


def _distinct(values: Iterable[Any]) -> set[str]:
    return {json.dumps(value, sort_keys=True, default=str) for value in values}


def _surroundings(run: Run) -> dict[str, Any]:
    """Return data and environment of a run, by names that no parameter has."""
    environment, result = run.file.environment, run.file.result
    found: dict[str, Any] = {"data.digest": environment.data or None}
    for split, rows in ((result and result.truncation) or {}).items():
        found[f"data.{split}.rows"] = rows.rows
        found[f"data.{split}.documents"] = rows.documents
        found[f"data.{split}.truncated"] = rows.truncated
    found["resumed_from"] = environment.resumed_from
    found["environment.devices"] = ", ".join(environment.devices) or None
    found["environment.processes"] = environment.processes
    found["environment.git"] = environment.git
    return found | {f"environment.{name}": one for name, one in environment.versions.items()}


@dataclass(frozen=True)
class Comparability:
    """Verdict on comparing the evaluation losses of runs. None: the run folders do not say."""

    held_out: bool | None  # on the same documents
    objective: bool  # with the same objective
    reasons: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.held_out is True and self.objective

    def as_json(self) -> dict[str, Any]:
        return {
            "held_out": self.held_out,
            "objective": self.objective,
            "reasons": list(self.reasons),
        }


def comparability(runs: Sequence[Run]) -> Comparability:
    """Tell whether the evaluation losses of these runs, each of which has one, compare."""
    data = _reasons(runs, {"data": [run.file.environment.data for run in runs]})
    data += _reasons(runs, _values(runs, _DOCUMENTS if data else _DOCUMENTS[1:]))
    data += _reasons(runs, {"documents": [run.history.last("eval/documents") for run in runs]})
    tokenizers = [_tokenizer(run) for run in runs]
    if all(tokenizers):
        data += _reasons(runs, {"tokenizer": tokenizers})
    drawn = _reasons(runs, _values(runs, _HELD_OUT))
    objective = _reasons(runs, _objectives(runs))
    notes = [f"evaluated on different held-out data ({one}): losses do not compare" for one in data]
    if drawn and not data:
        notes += [
            f"held-out rows are drawn by {one}: losses compare only if the data has its own eval split"
            for one in drawn
        ]
    notes += [
        f"evaluated with a different objective ({one}): losses do not compare" for one in objective
    ]
    held_out = False if data else None if drawn else True
    return Comparability(held_out, not objective, tuple(notes))


def objective_difference(runs: Sequence[Run]) -> str:
    """Return a note on the settings that keep training losses from comparing; empty without any."""
    found = _reasons(runs, _objectives(runs))
    settings = (
        found[0] if len({run.params["training_method"] for run in runs}) > 1 else "; ".join(found)
    )
    return (
        f"trained with a different objective ({settings}): training losses do not compare"
        if found
        else ""
    )


def sampler_differences(runs: Sequence[Run]) -> list[str]:
    """Return a note for each sampler setting with which `evaluate` scored a task differently."""
    found: dict[str, list[str]] = {}
    for task in dict.fromkeys(task for run in runs for task in run.evaluation.get("results", ())):
        samplers = [_sampler(run, task) for run in runs]
        scored = [run for run, sampler in zip(runs, samplers, strict=True) if sampler]
        names = dict.fromkeys(name for sampler in samplers for name in sampler)
        rows = {name: [one.get(name) for one in samplers if one] for name in names}
        for reason in _reasons(scored, rows):
            found.setdefault(reason, []).append(task)
    return [f"{', '.join(tasks)}: scored with another {one}" for one, tasks in found.items()]


def _sampler(run: Run, task: str) -> Mapping[str, Any]:
    """Return the settings that a task was scored with; an older file has those of all tasks."""
    if task not in run.evaluation.get("results", ()):
        return {}
    try:
        sampler = run.evaluation["tasks"][task]["sampler"]
    except (LookupError, TypeError):
        sampler = run.evaluation.get("sampler")
    return cast("dict[str, Any]", sampler) if isinstance(sampler, dict) else {}


def _values(runs: Sequence[Run], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [run.params[name] for run in runs] for name in names}


def _objectives(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings of each run's objective; None where one has no effect on it."""
    return {name: [_in_effect(run.params, name) for run in runs] for name in _OBJECTIVE}


def _in_effect(params: Mapping[str, Any], name: str) -> Any:
    method = METHODS.get(str(params["training_method"]))
    mlm = params["objective"] == "mlm"
    owned = any(name in one.options for one in METHODS.values())
    if method and (name in method.ignored or (owned and name not in method.options)):
        return None
    if name in ("eos_policy", "eos_block_length") and params["training_stage"] != "sft":
        return None
    if name == "eos_block_length" and params["eos_policy"] != "block":
        return None
    if name in _OF_MLM and not mlm:
        return None
    if name in ("noise_schedule", "t_min", "t_max", "loss_weight_type") and mlm:
        return None
    if name == "loss_norm" and params[name] == "auto" and method:
        return "masked" if mlm else method.norm
    return params[name]


def _reasons(runs: Sequence[Run], values: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return `name: a has X, b and c have Y` of everything that is not the same in all runs."""
    found: list[str] = []
    for name, row in values.items():
        if len(_distinct(row)) < 2:
            continue
        groups: dict[str, list[str]] = {}
        for run, value in zip(runs, row, strict=True):
            groups.setdefault(_short(value), []).append(run.label)
        shown = ", ".join(f"{' and '.join(labels)} {value}" for value, labels in groups.items())
        found.append(f"{name}: {shown}")
    return found


def _short(value: Any) -> str:
    if value is None or value == "":
        return "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"


def _tokenizer(run: Run) -> str:
    """Return a digest of the tokenizer that a run saved with its model; empty if there is none."""
    folders = [run.folder / "fused", run.folder / "adapter"]
    for folder in (*folders, *reversed(RunFolder(run.folder).checkpoints())):
        try:
            with open(folder / "tokenizer.json", encoding="utf-8", opener=open_plain) as file:
                content = json.load(file)
            kept = {name: one for name, one in content.items() if name not in _OF_A_CALL}
        except (OSError, ValueError, RecursionError, AttributeError):
            continue
        return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
    return ""
