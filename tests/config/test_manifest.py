"""Generated files: a form that the host accepts, whose values parse back to the parameters."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.support import ROOT
from jsonschema import Draft202012Validator

from plugin.config import manifest
from plugin.config.families import ARCHITECTURES
from plugin.config.manifest import add_arguments, index_json, parameter_table, rendered
from plugin.config.params import SCHEMA, Params
from plugin.config.parse import parse

INDEX: dict[str, Any] = json.loads((ROOT / "index.json").read_text(encoding="utf-8"))
FORM = {"type": "object", "properties": INDEX["parameters"]}
DEFAULTS = {name: field["default"] for name, field in INDEX["parameters"].items()}
JOB = {
    "dataset_name": "data.jsonl",
    "model_name": "model",
}  # the host sends these in addition to the form's values


def host_schema() -> Draft202012Validator:
    schema = json.loads(
        (Path(__file__).parent / "host_manifest.schema.json").read_text(encoding="utf-8")
    )
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def from_form(values: dict[str, object]) -> Params:
    return parse({**JOB, **values}, unknown="note").params


def cells(row: str) -> list[str]:
    """Split a Markdown table row into cells; an escaped pipe is text."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


# --- the host's format


def test_the_manifest_is_one_the_host_reads() -> None:
    assert [error.message for error in host_schema().iter_errors(INDEX)] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "loader"}, "'trainer' was expected"),
        ({"version": "1.0"}, "does not match"),
        ({"model_architectures": []}, "non-empty"),
        ({"train_type": "LoRA"}, "should not be valid under"),
        ({"setup-script": ""}, "does not match"),
        (
            {"parameters": {"x": {"title": "X", "type": "string"}}},
            "'default' is a required property",
        ),
        (
            {
                "parameters_ui": {
                    "x": {"ui:widget": "AutoCompleteWidget", "ui:options": {"multiple": True}}
                }
            },
            "False was expected",
        ),
        (
            {"parameters_ui": {"x": {"ui:widget": "AutoCompleteWidget"}}},
            "'ui:options' is a required property",
        ),
    ],
)
def test_the_host_schema_refuses_what_the_host_would(change: dict[str, object], words: str) -> None:
    messages = [error.message for error in host_schema().iter_errors({**INDEX, **change})]
    assert len(messages) == 1
    assert words in messages[0]


def test_a_missing_key_is_refused() -> None:
    for key in (
        "name",
        "uniqueId",
        "type",
        "version",
        "setup-script",
        "model_architectures",
        "supported_hardware_architectures",
    ):
        assert list(
            host_schema().iter_errors({name: value for name, value in INDEX.items() if name != key})
        )


def test_an_enum_under_the_default_select_could_not_be_changed() -> None:
    for name, field in INDEX["parameters"].items():
        if "enum" in field:
            widget = INDEX["parameters_ui"][name]
            assert widget["ui:widget"] == "radio" or widget == {
                "ui:widget": "AutoCompleteWidget",
                "ui:options": {"multiple": False},
            }
    assert set(INDEX["parameters_ui"]) <= set(INDEX["parameters"])


def test_the_files_it_names_are_here() -> None:
    assert all((ROOT / name).is_file() for name in [*INDEX["files"], INDEX["setup-script"]])
    assert tuple(INDEX["model_architectures"]) == ARCHITECTURES


# --- values there and back


def test_the_defaults_satisfy_the_forms_own_schema() -> None:
    validator = Draft202012Validator(FORM)
    Draft202012Validator.check_schema(FORM)
    assert [error.message for error in validator.iter_errors(DEFAULTS)] == []


def test_the_defaults_submitted_as_they_are_change_nothing() -> None:
    assert from_form(DEFAULTS) == parse(JOB).params


def test_an_edited_form_sends_strings_and_means_the_same() -> None:
    as_text = {
        name: json.dumps(value) if not isinstance(value, str) else value
        for name, value in DEFAULTS.items()
    }
    assert all(isinstance(value, str) for value in as_text.values())
    assert from_form(as_text) == parse(JOB).params


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name in SCHEMA])
def test_one_field_as_a_string_is_the_value_it_spells(name: str) -> None:
    field = INDEX["parameters"][name]
    for value in [
        *field.get("enum", []),
        field["default"],
        field.get("minimum"),
        field.get("maximum"),
    ]:
        if value is not None and value != "tpu":
            spelled = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
            assert spelling(name, spelled) == spelling(name, value)


def spelling(name: str, value: object) -> object:
    """Return the result of a single field, whether or not it is built yet."""
    return Params.model_validate({name: value}).as_json()[name]


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name in SCHEMA])
def test_what_the_form_allows_the_parameters_allow(name: str) -> None:
    """The form's bounds are as tight or tighter: no value of it is refused as out of bounds."""
    field = INDEX["parameters"][name]
    for bound in ("minimum", "maximum"):
        if bound in field:
            assert spelling(name, field[bound]) == field[bound]
    if "exclusiveMinimum" in field:
        with pytest.raises(ValueError, match=name):
            spelling(name, field["exclusiveMinimum"])


def test_a_host_field_of_another_plugin_is_a_note() -> None:
    parsed = parse({**JOB, **DEFAULTS, "template_name": "mine", "type": "LoRA"}, unknown="note")
    named = [note.partition(":")[0] for note in parsed.notes]
    assert {"template_name", "type"} <= set(named)


# --- drift


def test_the_committed_files_are_the_rendered_ones() -> None:
    for path, text in rendered().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name}: run `python -m plugin.config.manifest`"
        )


def test_check_fails_on_drift_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / "info.md").write_text(
        f"before\n{manifest.TABLE_BEGIN}\nstale\n{manifest.TABLE_END}\nafter\n"
    )
    monkeypatch.setattr(manifest, "rendered", lambda: rendered(tmp_path))
    monkeypatch.setattr("sys.argv", ["manifest", "--check"])
    assert manifest.main() == 1
    assert (tmp_path / "index.json").read_text() == "{}"
    assert "index.json differs" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["manifest"])
    assert manifest.main() == 0
    assert json.loads((tmp_path / "index.json").read_text()) == index_json()
    info = (tmp_path / "info.md").read_text()
    assert info.startswith("before\n")
    assert info.endswith("\nafter\n")
    monkeypatch.setattr("sys.argv", ["manifest", "--check"])
    assert manifest.main() == 0


# --- the table and the command line


def test_info_md_has_one_row_a_parameter() -> None:
    info = (ROOT / "info.md").read_text(encoding="utf-8")
    table = info.partition(manifest.TABLE_BEGIN)[2].partition(manifest.TABLE_END)[0].strip()
    head, line, *rows = table.splitlines()
    assert len(cells(head)) == len(cells(line)) == 4
    assert [len(cells(row)) for row in rows] == [4] * len(rows), "a pipe inside a cell splits it"
    assert [cells(row)[0] for row in rows] == [f"`{name}`" for name in SCHEMA]


def test_a_row_says_default_values_and_meaning() -> None:
    rows = {cells(row)[0]: cells(row)[1:] for row in parameter_table().splitlines()[2:]}
    assert rows["`batch_size`"] == [
        "`4`",
        "an integer >= 1 and <= 16384",
        "Documents of a micro-batch on each device; pretrain: batch_size x max_length tokens.",
    ]
    assert rows["`mask_prompt_loss`"][:2] == ["`true`", "true or false"]
    assert rows["`num_proc`"][:2] == ["`auto`", "'auto' or an integer >= 1 and <= 1024"]
    assert "join several with | or +" in rows["`dataset_name`"][2]


def test_every_parameter_is_on_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    typed = parser.parse_args([word for name in SCHEMA for word in (f"--{name}", "text")])
    assert vars(typed) == dict.fromkeys(SCHEMA, "text")
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(["--lora"])) == {"lora": "true"}
    assert "an integer >= 1" in parser.format_help()
