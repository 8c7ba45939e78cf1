"""task.yaml: only keys that the host knows, with values that parse back to the parameters."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from helpers.support import ROOT

from plugin.config.params import SCHEMA
from plugin.config.parse import parse
from plugin.config.task import NAME, OWNER, _float, _parameter, gallery_entry, task_yaml
from plugin.hosts.task import task_values

TASK: dict[str, Any] = yaml.safe_load((ROOT / "task.yaml").read_text(encoding="utf-8"))
JOB = {"dataset_name": "data.jsonl", "model_name": "model"}
PARAMETER_KEYS = {
    "type",
    "default",
    "min",
    "max",
    "step",
    "options",
    "ui_widget",
    "title",
    "required",
}
TYPES = {"integer": int, "float": float, "bool": bool, "enum": str, "string": str}
WIDGETS = {
    "slider",
    "range",
    "switch",
    "radio",
    "password",
    "select",
    "lab_model_select",
    "lab_dataset_select",
}


def test_only_keys_that_the_host_knows() -> None:
    assert set(TASK) <= {"name", "resources", "setup", "run", "envs", "parameters", "sweeps"}
    assert set(TASK["sweeps"]) == {"sweep_config", "sweep_metric", "lower_is_better"}
    for name, field in TASK["parameters"].items():
        assert set(field) <= PARAMETER_KEYS, name
        assert field.get("ui_widget", "select") in WIDGETS
    assert "{{secret" not in json.dumps(TASK), "an undefined secret keeps a task from starting"


@pytest.mark.parametrize("name", TASK["parameters"])
def test_a_default_has_the_type_it_declares(name: str) -> None:
    field = TASK["parameters"][name]
    assert type(field["default"]) is TYPES[field["type"]]
    assert field["type"] != "enum" or field["default"] in field["options"]
    for bound in ("min", "max"):
        assert bound not in field or isinstance(field[bound], int | float)


def test_the_gallery_entry_leads_to_the_publishers_task() -> None:
    (entry,) = json.loads(gallery_entry("some-one"))
    assert entry["github_repo_url"] == f"https://github.com/some-one/{NAME}"
    assert (ROOT / entry["github_repo_dir"] / "task.yaml").is_file()
    assert TASK["name"] == NAME
    assert all(isinstance(entry[key], str) and entry[key] for key in ("title", "description"))
    assert set(entry) == {"title", "description", "github_repo_url", "github_repo_dir", "metadata"}
    (committed,) = json.loads((ROOT / "gallery.json").read_text(encoding="utf-8"))
    assert committed == {**entry, "github_repo_url": f"https://github.com/{OWNER}/{NAME}"}
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}", OWNER), "a name that GitHub gives"


def test_the_form_reads_every_float_as_a_float() -> None:
    assert all(isinstance(rate, float) for rate in TASK["sweeps"]["sweep_config"]["learning_rate"])
    dumper = yaml.SafeDumper("")
    for value in (2e-5, 1.5e-7, 0.1, 1e22, 3.0):
        node = _float(dumper, value)
        assert yaml.safe_load(node.value) == value
        assert isinstance(yaml.safe_load(node.value), float)


def test_defaults_as_values_or_as_their_schema_change_nothing() -> None:
    plain = {name: field["default"] for name, field in TASK["parameters"].items()}
    for sent in (plain, TASK["parameters"]):
        values = {**task_values({**sent, "experiment_name": "alpha"}), **JOB}
        assert parse(values, unknown="note") == parse(JOB)


def test_bounds_are_those_of_the_parameters() -> None:
    assert _parameter("warmup_ratio")["min"] == SCHEMA["warmup_ratio"]["minimum"] == 0
    assert _parameter("batch_size") == {
        "type": "integer",
        "min": 1,
        "max": 16384,
        "default": 4,
        "title": "Batch size",
    }


def test_task_of_a_job_has_its_values() -> None:
    text = task_yaml({"learning_rate": 3e-4, "dataset_name": "d: #x\n<b>", "seed": 7})
    given = yaml.safe_load(text)["parameters"]
    assert given["learning_rate"]["default"] == 3e-4
    assert given["dataset_name"]["default"] == "d: #x\n<b>"
    assert given["seed"]["default"] == 7
    assert "GENERATED" not in text
    assert "GENERATED" in task_yaml()
