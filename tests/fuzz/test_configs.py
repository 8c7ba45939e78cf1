"""Fields of a config.json are refused, or the model is made, trained, saved and loaded again."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.configs import SMALL, configs
from fuzz.promise import check_problems, kept, limited
from helpers.support import try_out_here
from helpers.tiny import new_model
from hypothesis import event, given
from hypothesis import strategies as st

from plugin.assembly.corpus import prepare_corpus
from plugin.assembly.model import make_model
from plugin.base.errors import Problem
from plugin.config.methods import methods_of
from plugin.config.params import Params
from plugin.data.tokenizer import train_tokenizer
from plugin.models.load import load_model
from plugin.models.tokenizer import load_tokenizer
from plugin.parent.train import check_inputs
from plugin.run.folder import RunFolder

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.filterwarnings("ignore"),
]  # what a library says meanwhile is no refusal


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> Path:
    """Make a folder with a small model of each family.

    Each model is checked once, because the first check imports many modules.
    """
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["Why is the sky blue?"], 280)
    for family, fields in SMALL.items():
        file = folder / f"{family}.json"
        file.write_text(json.dumps({"model_type": family, **fields}), encoding="utf-8")
        new_model(str(file), tokenizer).save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
        good = job(family, pairs_file) | {"model_name": str(folder / family)}
        assert not try_out_here(Params.model_validate(good), 1)["problems"]
    return folder


def job(family: str, data: Path) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dataset_name": str(data),
        "max_length": 24,
        "train_steps": 2,
        "batch_size": 2,
    }
    return values | {"training_method": methods_of(family)[0], "train_device": "cpu"}


@given(config=configs(), scratch=st.booleans())
def test_configuration_is_refused_or_trains_and_loads(
    models: Path, pairs_file: Path, config: tuple[str, dict[str, Any]], scratch: bool
) -> None:
    family, fields = config
    with tempfile.TemporaryDirectory() as name:
        values = job(family, pairs_file) | {"run_dir": f"{name}/run"}
        if scratch:
            file = Path(name) / "config.json"
            values["model_config"] = str(file)
        else:
            folder = Path(shutil.copytree(models / family, Path(name) / "model"))
            file = folder / "config.json"
            fields = {**json.loads(file.read_text(encoding="utf-8")), **fields}
            values["model_name"] = str(folder)
        file.write_text(json.dumps(fields), encoding="utf-8")
        try_config(Params.model_validate(values), Path(name) / "saved")
        assert torch.is_grad_enabled(), "a setting of torch was left behind"


def try_config(params: Params, saved: Path) -> None:
    """Look at the job as the parent does, check it, and make the model if both accept it."""
    if kept(lambda: check_inputs(params, RunFolder(Path(params.run_dir)), ())) is None:
        return
    with limited():
        answer = try_out_here(params, 1)
    problems = [Problem(**problem) for problem in answer["problems"]]
    check_problems(problems)
    if problems:
        event(f"refused: {problems[0].field}: {problems[0].expected[:40]}")
        return
    event("accepted")
    with limited():
        prepared = prepare_corpus(params, lambda line: None)
        model = make_model(params, prepared.tokenizer, torch.float32)
        model.save_pretrained(saved)
        prepared.tokenizer.save_pretrained(saved)
        same(model, load_model(str(saved)), load_tokenizer(str(saved)))


def same(made: Any, loaded: Any, tokenizer: Any) -> None:
    """Assert that a model gives the same logits after reloading."""
    ids = torch.tensor([tokenizer("a b")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(
            made(input_ids=ids).logits, loaded(input_ids=ids).logits, equal_nan=True
        )
