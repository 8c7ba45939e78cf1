"""Templates of the form: what they hold, who may write them, and files that are no templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.run_folders import done, write_run

from plugin.base.errors import JobError
from plugin.config.config_file import read_config
from plugin.config.parse import draft, parse
from plugin.studio.place import Place
from plugin.studio.templates import (
    changed_values,
    delete_template,
    read_template,
    save_template,
    start_values,
    template_names,
)

VALUES = {
    "model_name": "a: b # c",
    "dataset_name": "d.jsonl",
    "learning_rate": "5e-5",
    "eval_strategy": "no",
    "lora": True,
    "instruction_template": "{{ q }}\nZeile zwei — ü",
    "batch_size": "4",
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_templates_hold_what_differs_and_train_takes_them(place: Place) -> None:
    save_template(place, "tiny", changed_values(draft(VALUES), VALUES))
    file = place.templates / "tiny.yaml"
    assert template_names(place) == ["tiny"]
    assert "batch_size" not in file.read_text(encoding="utf-8")
    assert parse(read_config(str(file))).params == parse(VALUES).params
    values, lines = start_values(place, template="tiny")
    assert (parse(values).params, lines) == (parse(VALUES).params, [])
    delete_template(place, "tiny")
    assert template_names(place) == []


def test_nothing_changed_is_nothing_written() -> None:
    default = {name: str(value) for name, value in draft({}).params.as_json().items()}
    assert changed_values(draft(default), default) == {}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a\0", "<b>"])
def test_names_of_other_files_are_refused(place: Place, name: str) -> None:
    for act in (
        lambda: read_template(place, name),
        lambda: save_template(place, name, {}),
        lambda: delete_template(place, name),
    ):
        with pytest.raises(JobError, match="template: expected letters"):
            act()


def test_files_edited_by_hand_are_taken_or_named(place: Place) -> None:
    place.templates.mkdir()
    for name, text in {
        "broken": "a: [1, 2\n",
        "list": "- 1\n",
        "odd": "lora: maybe\nbatch_size: many\ncolour: '<b>red</b>'\nlearning_rate: 1e-3\n",
        "nested": "lora_r: {a: 1}\n",
        "alias": "a: &a 1\nb: *a\n",
    }.items():
        (place.templates / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, word in {"broken": "readable", "list": "holds a list", "alias": "an alias"}.items():
        values, lines = start_values(place, template=name)
        assert not values
        assert word in lines[0]
    values, lines = start_values(place, template="odd")
    assert values == {"lora": "maybe", "batch_size": "many", "learning_rate": 1e-3}
    assert [line.partition(":")[0] for line in lines] == ["colour", "lora"]
    assert start_values(place, template="nested")[0] == {"lora_r": {"a": "1"}}


def test_links_are_no_templates(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("seed: 7\n", encoding="utf-8")
    place.templates.mkdir()
    (place.templates / "linked.yaml").symlink_to(outside)
    assert template_names(place) == []
    assert start_values(place, template="linked")[0] == {}
    save_template(place, "linked", {"seed": 8})
    assert outside.read_text(encoding="utf-8") == "seed: 7\n"
    far = Place(tmp_path / "root")
    far.root.mkdir()
    far.templates.symlink_to(place.templates)
    assert template_names(far) == []
    with pytest.raises(JobError, match="a link"):
        save_template(far, "x", {})


def test_a_run_is_repeated_in_a_new_folder_from_its_start(place: Place) -> None:
    write_run(place.root / "a", result=done(), seed=7, resume="true")
    values, lines = start_values(place, run="a")
    assert (values["seed"], lines) == (7, [])
    assert not {"run_dir", "resume"} & set(values)


@pytest.mark.parametrize("text", ["", '{"params": ', "[]", '{"params": {}, "result": 5}'])
def test_half_written_runs_are_a_line(place: Place, text: str) -> None:
    (place.root / "a").mkdir()
    (place.root / "a" / "run.json").write_text(text, encoding="utf-8")
    values, lines = start_values(place, run="a")
    assert not values
    assert len(lines) == 1


def test_runs_outside_of_the_root_are_a_line(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "far" / "run.json"
    outside.parent.mkdir()
    outside.write_text(json.dumps({"params": {"seed": 7}}), encoding="utf-8")
    inner = Place(tmp_path / "root")
    (inner.root / "a").mkdir(parents=True)
    (inner.root / "a" / "run.json").symlink_to(outside)
    for name in ("../far", "a", "missing"):
        values, lines = start_values(inner, run=name)
        assert (values, lines[0].partition(":")[0]) == ({}, "from")
