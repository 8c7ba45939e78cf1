"""The plugin-era form in the real rjsf: every field arrives as the parameter that it names.

form/scenes.cjs plays the user, in jsdom; `make contract` installs what it needs. Everything that it
submits goes through the host's own input file.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ROOT, child_env, patience

from plugin.base.errors import JobError
from plugin.config.params import SCHEMA
from plugin.config.parse import ADVANCED, Parsed, parse
from plugin.hosts.plugin_era.job import form_values, read_job

from .drivers import CONTRACT

pytestmark = pytest.mark.contract

FORM = CONTRACT / "form"
INDEX: dict[str, Any] = json.loads((ROOT / "index.json").read_text(encoding="utf-8"))
FIELDS: dict[str, dict[str, Any]] = INDEX["parameters"]
LIMIT_S = 120
CHOSEN = {
    "model_name": "org/model",
    "dataset_name": "toy_ds",
}  # by the host's own fields, before the form
# Typed values where the default plus one is invalid.
TYPED = {
    "gpu_ids": "0,1",
    "num_train_epochs": "1.5",
    "learning_rate": "3e-5",
    "warmup_ratio": "0.05",
    "resp_cutoff_ratio": "0.5",
    "block_size": "8",
    "loss_weight_type": "uniform",
    "lora_dropout": "0.105",
    "adaptor_name": "my.adapter_2",
    ADVANCED: "t_min: 0.1\neos_policy: single",
}
# Values that another plugin's form left in an edited template: an alias of a parameter of ours, and
# names of its own.
LEAKED = {"lora_rank": "7", "max_steps": "3", "their_switch": "true"}

Values = dict[str, Any]


def another(name: str) -> object:
    """Return another value of the field than its default, as a user types, chooses or ticks it."""
    field = FIELDS[name]
    if "enum" in field:
        return next(option for option in field["enum"] if option != field["default"])
    if field["type"] == "boolean":
        return not field["default"]
    return TYPED[name] if name in TYPED else str(field["default"] + field.get("multipleOf", 1))


CHANGES = {name: another(name) for name in FIELDS}


@pytest.fixture(scope="module")
def scenes() -> dict[str, Any]:
    """Return the submission of each scene."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    modules = FORM / "node_modules"
    assert modules.is_dir(), "run `make contract`, which installs rjsf"
    script = ROOT / "tests" / "contract" / "form" / "scenes.cjs"
    env = child_env({"NODE_PATH": str(modules)})
    given = json.dumps({"index": INDEX, "values": CHANGES, "leaked": LEAKED})
    done = subprocess.run(
        [node, str(script)],
        input=given,
        env=env,
        capture_output=True,
        text=True,
        timeout=patience(LIMIT_S),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def door(folder: Path, submitted: Mapping[str, Any], chosen: Mapping[str, str] = CHOSEN) -> Parsed:
    """Read the host's input file with these values as a job."""
    output = folder / "experiments" / "probe" / "tensorboards" / "mine"
    host = {
        "template_name": "mine",
        "type": "LoRA",
        "sweep_config": "{}",
        "run_sweeps": False,
        "job_id": 1,
    }
    host |= {"output_dir": str(output), "adaptor_output_dir": str(folder / "adaptors" / "mine")}
    content = {
        "experiment": {"name": "probe", "id": "probe", "config": {}},
        "config": {**host, **chosen, **submitted},
    }
    path = folder / "input.json"
    path.write_text(json.dumps(content))
    values, ignored = form_values(read_job(str(path)))
    parsed = parse(values, unknown="note")
    return replace(parsed, notes=(*ignored, *parsed.notes))


def shown(parsed: Parsed) -> Values:
    return parsed.params.as_json()


def test_untouched(scenes: dict[str, Any], tmp_path: Path) -> None:
    """A new template saved immediately sends the declared defaults, with their types."""
    submitted: Values = scenes["untouched"]
    assert submitted == {
        **{name: kind["default"] for name, kind in SCHEMA.items() if kind["form"]},
        ADVANCED: "",
    }
    parsed = door(tmp_path, submitted)
    assert shown(parsed) == {
        **{name: kind["default"] for name, kind in SCHEMA.items()},
        **CHOSEN,
        "run_dir": str(tmp_path / "jobs/1/run"),
    }
    assert parsed.notes == ()
    with pytest.raises(JobError) as caught:
        door(tmp_path, submitted, {})
    assert {problem.field for problem in caught.value.problems} == set(CHOSEN)


def test_every_option_can_be_chosen(scenes: dict[str, Any], tmp_path: Path) -> None:
    enums = {name: field["enum"] for name, field in FIELDS.items() if "enum" in field}
    assert {name: list(options) for name, options in scenes["chosen"].items()} == enums
    for name, options in scenes["chosen"].items():
        for option, submitted in options.items():
            assert submitted == {**scenes["untouched"], name: option}
            if option != "tpu":
                assert shown(door(tmp_path, submitted))[name] == option
            else:
                with pytest.raises(JobError, match=rf"{name}: .*{option}.*not built yet"):
                    door(tmp_path, submitted)


def test_every_field_can_be_changed(scenes: dict[str, Any], tmp_path: Path) -> None:
    submitted: Values = scenes["changed"]
    assert [name for name in FIELDS if submitted[name] == FIELDS[name]["default"]] == []
    expected = shown(parse({**CHOSEN, **CHANGES, "run_dir": str(tmp_path / "jobs/1/run")}))
    assert shown(door(tmp_path, submitted)) == expected
    for name in SCHEMA.keys() & FIELDS.keys():
        assert expected[name] != SCHEMA[name]["default"]
    assert (expected["t_min"], expected["eos_policy"]) == (0.1, "single")


@pytest.mark.parametrize("spelling", ["words", "boxes"])
@pytest.mark.parametrize("values", ["defaults", "changes"])
def test_editing_changes_nothing(
    scenes: dict[str, Any], tmp_path: Path, values: str, spelling: str
) -> None:
    """A template opened and saved twice sends strings, and the same parameters."""
    before = door(tmp_path, scenes["untouched" if values == "defaults" else "changed"])
    edited = scenes["edited"][f"{values} as {spelling}"]
    for submitted in (edited["once"], edited["again"]):
        assert submitted.keys() == FIELDS.keys() | LEAKED.keys()
        assert {type(value) for value in submitted.values()} == {str}
        after = door(tmp_path, submitted)
        assert after.params == before.params
        assert {note.partition(":")[0] for note in set(after.notes) - set(before.notes)} == set(
            LEAKED
        ), "each is told"


def test_a_cleared_number_is_its_default(scenes: dict[str, Any], tmp_path: Path) -> None:
    numbers = {name for name, field in FIELDS.items() if field["type"] in ("integer", "number")}
    assert scenes["cleared"].keys() == FIELDS.keys() - numbers, "the form drops what is empty"
    assert shown(door(tmp_path, scenes["cleared"])) == shown(door(tmp_path, scenes["untouched"]))


def test_the_form_library_reports_no_errors(scenes: dict[str, Any]) -> None:
    assert scenes["complaints"] == []


def test_the_lock_names_no_registry() -> None:
    """Users install from the registry that they have configured."""
    lock = json.loads(
        (ROOT / "tests" / "contract" / "form" / "package-lock.json").read_text(encoding="utf-8")
    )
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert len(packages) > 50
    assert [
        name
        for name, package in packages.items()
        if "resolved" in package or "integrity" not in package
    ] == []
