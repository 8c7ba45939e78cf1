"""info.md, the page that users read in the app: its examples parse, its lists are complete."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from helpers.support import ROOT

from plugin.base.errors import Code
from plugin.config.params import SCHEMA, Params
from plugin.config.parse import ADVANCED, parse
from plugin.hosts.plugin_era.job import TlabJob, form_values

INFO = (ROOT / "info.md").read_text(encoding="utf-8")
FORM: dict[str, Any] = json.loads((ROOT / "index.json").read_text(encoding="utf-8"))["parameters"]
EXAMPLES = {
    "BERT chat": "bert_sft",
    "Dream with LoRA": "dream_lora",
    "LLaDA with QLoRA": "llada_qlora",
}


def section(title: str) -> str:
    """Return the text of a heading and of the headings below it."""
    head = re.search(rf"^(#+) {re.escape(title)}\n", INFO, re.MULTILINE)
    assert head, title
    return re.split(
        rf"^#{{1,{len(head[1])}}} ", INFO[head.end() :], maxsplit=1, flags=re.MULTILINE
    )[0]


def rows(title: str) -> list[list[str]]:
    """Return the cells of a section's table, without its header."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def example(title: str) -> list[tuple[str, str, str]]:
    return [(field, name.strip("`"), value.strip("`")) for field, name, value in rows(title)]


def sent(title: str) -> dict[str, Any]:
    """Return what the host sends: defaults, changes as text, the rest in Advanced."""
    models = re.findall(r"base model\s+`([^`]+)`", section(title))
    changed = {name: value for _, name, value in example(title)}
    lines = [f"{name}: {value}" for name, value in changed.items() if name not in FORM]
    own = {name: value for name, value in changed.items() if name in FORM}
    defaults = {name: field["default"] for name, field in FORM.items()}
    return {
        **defaults,
        **own,
        ADVANCED: "\n".join(lines),
        "model_name": models[0],
        "dataset_name": "toy_ds",
    }


def resolved(title: str, tmp_path: Any) -> Params:
    job = TlabJob("1", "t", "e", tmp_path, tmp_path / "out", tmp_path / "adaptor", "", sent(title))
    values, ignored = form_values(job)
    assert ignored == []
    parsed = parse(values, unknown="note")
    assert parsed.notes == (
        "train_steps: ignored, because num_train_epochs is "
        + f"{parsed.params.num_train_epochs:g}.",
    )
    return parsed.params


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_names_fields_as_the_form_shows_them(title: str) -> None:
    assert "### " + title in section("Three examples")
    assert len(example(title)) >= 5
    for field, name, _ in example(title):
        assert field == (FORM[name]["title"] if name in FORM else "Advanced")
        assert name in SCHEMA


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("BERT chat", ("bert", "answerdotai/ModernBERT-base", False, False, 48, 1, 1024, 10, 1e-4)),
        (
            "Dream with LoRA",
            ("dream", "Dream-org/Dream-v0-Instruct-7B", True, False, 8, 1, 2048, 3, 1e-4),
        ),
        (
            "LLaDA with QLoRA",
            ("llada", "GSAI-ML/LLaDA-8B-Instruct", True, True, 4, 2, 1024, 3, 1e-4),
        ),
    ],
)
def test_an_example_sent_by_the_form_is_the_job_it_describes(
    title: str, wanted: tuple[object, ...], tmp_path: Any
) -> None:
    job = resolved(title, tmp_path)
    model = (job.training_method, job.model_name, job.lora, job.load_in_4bit)
    length = (
        job.batch_size,
        job.gradient_accumulation_steps,
        job.max_length,
        job.num_train_epochs,
        job.learning_rate,
    )
    assert (*model, *length) == wanted


@pytest.mark.parametrize(("title", "recipe"), EXAMPLES.items())
def test_an_example_is_the_recipe_of_the_command_line(
    title: str, recipe: str, tmp_path: Any
) -> None:
    values = yaml.safe_load((ROOT / "examples" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    job, file = resolved(title, tmp_path).as_json(), parse(values).params.as_json()
    differs = {name for name in job if job[name] != file[name]}
    assert differs == {"dataset_name", "run_dir"}, "one data set there, a folder of the host's here"


def test_every_exit_code_is_explained() -> None:
    told = [int(code) for row in rows("When it fails") for code in row[0].split(",")]
    assert sorted(told) == sorted(int(code) for code in Code if code != Code.OK)


def test_every_name_in_the_text_is_a_parameter() -> None:
    """A parameter that was renamed must not live on in the prose."""
    before = INFO[: INFO.index("## Parameters")]
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", before))
    others = {"dllm_trainer_multi_gpu"}
    assert {"hang_timeout_s", "eval_steps", "num_proc"} <= named
    assert named - others <= set(SCHEMA)
