"""The parent's checks of a model: a missing path, a family of another method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.base.errors import JobError
from plugin.config.model_files import check_architecture, check_method, refuse_missing_path
from plugin.config.params import Params
from plugin.config.parse import parse


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a run in `mine/one`, and a model of a hub owner."""
    for name in ("mine/one", "org/model"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine" / "one" / "run.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "./x",
        "/no/where",
        "~/nowhere",
        "a/b/c",
        "runs/x",
        "mine/two",
        "other/fused",
        "other/checkpoint-20",
        "mine/one/fused",
        "model.gguf",
        "org/m.safetensors",
        "a b",
    ],
)
def test_a_path_that_is_not_there_is_refused_without_a_hub(name: str) -> None:
    with pytest.raises(
        JobError,
        match=r"model: expected a folder that exists, or a hub id, got .*, which is not there",
    ):
        refuse_missing_path("model", name)


@pytest.mark.parametrize(
    "name", ["org/other", "bert-base-uncased", "Qwen/Qwen2.5-0.5B", "mine/one", "./org/model"]
)
def test_hub_ids_and_folders_that_are_there_pass(name: str) -> None:
    refuse_missing_path("model", name)


def job(**values: object) -> Params:
    return parse({"dataset_name": "d", **values}).params


def test_a_configuration_of_another_method_is_refused(here: Path) -> None:
    path = here / "org" / "model" / "config.json"
    for content, fits in (
        ({"model_type": "llada"}, True),
        ({"model_type": "Dream"}, False),
        ({}, True),
        ([], True),
    ):
        path.write_text(json.dumps(content))
        for source in ({"model_name": "org/model"}, {"model_config": str(path)}):
            if fits:
                check_method(job(training_method="llada", **source))
                continue
            with pytest.raises(
                JobError, match="training_method: expected dream for a DreamModel, got llada"
            ) as caught:
                check_method(job(training_method="llada", **source))
            assert caught.value.code == 2


WORKING = "Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM, SDARForCausalLM"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model_type": "mistral"}, f"{WORKING}, got {{}}, a mistral model."),
        ({"model_type": "qwen3_next"}, f"{WORKING}, got {{}}, a qwen3_next model."),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096},
            f"full attention in every layer, got {{}}: sliding_attention. Blocks need it; {WORKING}"
            " without sliding windows or linear layers work.",
        ),
        (
            {"model_type": "llama", "layer_types": ["full_attention", "linear_attention"]},
            "full attention in every layer, got {}: linear_attention.",
        ),
    ],
)
def test_causal_models_that_no_block_fits_are_refused_by_name(
    content: dict[str, object], says: str, here: Path
) -> None:
    path = here / "org" / "model" / "config.json"
    path.write_text(json.dumps(content))
    for field, name in (("model_name", "org/model"), ("model_config", str(path))):
        with pytest.raises(JobError) as caught:
            check_method(job(training_method="llada", **{field: name}))
        (problem,) = caught.value.problems
        assert (problem.code, problem.field) == (4, field)
        assert says.format(name) in problem.line


@pytest.mark.parametrize(
    "fields",
    [
        {"use_sliding_window": False, "sliding_window": 4096},
        {"use_sliding_window": True, "sliding_window": None},
        {
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 2,
            "num_hidden_layers": 2,
        },
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ],
)
def test_a_window_that_no_layer_has_is_none(fields: dict[str, object], here: Path) -> None:
    content = {"model_type": "qwen2", **fields}
    (here / "org" / "model" / "config.json").write_text(json.dumps(content))
    check_method(job(training_method="llada", model_name="org/model"))


def test_the_hosts_word_counts_for_a_hub_id_alone() -> None:
    with pytest.raises(
        JobError, match="training_method: expected llada for a LLaDAModelLM, got bert"
    ):
        check_architecture(job(model_name="GSAI-ML/LLaDA-8B-Base"), "LLaDAModelLM")
    check_architecture(job(model_name="GSAI-ML/LLaDA-8B-Base"), "SomethingElse")
    check_architecture(job(model_name="org/model"), "LLaDAModelLM")
