"""Form of a run: its groups, the state of its fields, and that its job is the one of the words."""

from __future__ import annotations

import json
from pathlib import Path

from faults.forks import Forks
from helpers.support import TINY_CONFIG, pairs, wait_until, write_rows

from plugin.config.params import SCHEMA
from plugin.config.parse import draft
from plugin.queue.folder import Queue
from plugin.run.folder import RunFolder
from plugin.studio.fields_view import Shown, as_widget, grouped, states
from plugin.studio.templates import changed_values


def filled(**values: object) -> dict[str, object]:
    """Return the values of a form, as its widgets hold them."""
    return {
        name: as_widget(name, values.get(name, kind["default"])) for name, kind in SCHEMA.items()
    }


def shown(*, asked: bool = False, **values: object) -> dict[str, Shown]:
    form = filled(**values)
    return states(draft(form), form, asked=asked)


def test_every_parameter_is_in_one_group_model_and_data_first() -> None:
    names = [name for names in grouped().values() for name in names]
    assert sorted(names) == sorted(SCHEMA)
    assert names[:2] == ["model_name", "dataset_name"]


def test_an_untouched_form_has_no_change_and_no_problem() -> None:
    assert not [name for name, one in shown().items() if one.changed or one.problem]
    assert changed_values(draft(filled()), filled()) == {}


def test_empty_fields_are_problems_once_a_check_was_asked_for() -> None:
    found = shown(asked=True)
    assert {name for name, one in found.items() if one.problem} == {"model_name", "dataset_name"}


def test_problems_of_all_fields_are_shown_at_once() -> None:
    found = shown(batch_size="many", learning_rate="2", t_min="0.9", t_max="0.5")
    assert {name for name, one in found.items() if one.problem} == {
        *("batch_size", "learning_rate", "t_min")
    }
    assert found["batch_size"].problem.startswith(
        "expected an integer >= 1 and <= 16384, got 'many'"
    )
    assert found["t_max"] == Shown(changed=True)


def test_fields_of_another_method_have_a_reason() -> None:
    of_bert, of_dream = shown(), shown(training_method="dream")
    assert of_bert["loss_weight_type"].reason.startswith("belongs to training_method dream;")
    assert of_dream["loss_weight_type"].reason == ""


def test_the_forms_job_equals_that_of_the_same_words(forks: Forks, tmp_path: Path) -> None:
    """run.json's params are the same, byte for byte, but for the run's folder."""
    model = tmp_path / "config.json"
    model.write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    data = write_rows(tmp_path / "d.jsonl", pairs())
    words = {
        "model_config": str(model),
        "dataset_name": str(data),
        "train_steps": "2",
        "train_device": "cpu",
        "max_length": "32",
        "learning_rate": "1e-3",
        "fuse_model": "false",
    }
    scene = forks.run(tmp_path / "words", *(f"--{k}={v}" for k, v in words.items()))
    assert scene.code == 0, scene.err
    form, queue = filled(**words), Queue(tmp_path / "root")
    queue.add(changed_values(draft(form), form))
    wait_until(lambda: queue.jobs()[0].ended, "the queued job has ended", deadline_s=120)
    (job,) = queue.jobs()
    assert (job.state, job.error) == ("done", "")
    one, other = (RunFolder(Path(path)).read_run().params for path in (scene.folder, job.run_dir))
    assert json.dumps(one | {"run_dir": ""}) == json.dumps(other | {"run_dir": ""})
