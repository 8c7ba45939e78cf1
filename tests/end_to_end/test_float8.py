"""Runs with float8 through both programs, with the real torchao, on a CPU's own float8 products.

The check of the device is the one part replaced: in the product it refuses every CPU.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import run_main
from safetensors.torch import load_file

from plugin.models.linear.float8 import check_torchao

pytestmark = pytest.mark.float8

ALLOW = """\
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class Allow(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "plugin.assembly.precision":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def load_and_allow(module):
            load(module)
            module.choose_float8 = lambda params, *_: module.Choice(params.float8, "allowed here")

        spec.loader.exec_module = load_and_allow
        return spec


sys.meta_path.insert(0, Allow())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    check_torchao()
    import torchao  # pyright: ignore[reportMissingImports]

    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(ALLOW)
    return {"PYTHONPATH": os.pathsep.join([str(site), str(Path(torchao.__file__).parent.parent)])}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        key: value
        for file in sorted(checkpoint.glob("*.safetensors"))
        for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("lora", ["false", "true"])
def test_float8_run_publishes_and_resumes_to_the_bit(
    lora: str, tiny_bert: Path, pairs_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    job: dict[str, Any] = {
        "model_name": tiny_bert,
        "dataset_name": pairs_file,
        "dtype": "bfloat16",
        "float8": "true",
        "lora": lora,
        "max_length": 64,
        "train_steps": 4,
        "save_steps": 2,
        "eval_steps": 2,  # a best evaluation saves too, and would take the place of checkpoint-2
        "learning_rate": 1e-3,
        "warmup_ratio": 0,
    }
    words = [word for name, value in job.items() for word in (f"--{name}", value)]
    run, copy = tmp_path / "run", tmp_path / "copy"
    done = run_main("train", *words, "--run_dir", run, env=environment, timeout_s=180)
    assert done.returncode == 0, done.stderr
    log = (run / "log.txt").read_text()
    assert "float8: allowed here" in log
    assert "linear layers train in float8; evaluation, samples and the saved model" in log
    result = json.loads((run / "run.json").read_text())["result"]
    assert result["eval_loss"] < result["eval_loss_first"]
    # Logits of plain products: a full run's weights are float32, those of LoRA's base bfloat16.
    assert result["fuse"]["max_logit_difference"] < (0.1 if lora == "true" else 1e-5)
    if lora == "true":
        return

    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoint-4")
    again = run_main(
        "train", *words, "--resume", "true", "--run_dir", copy, env=environment, timeout_s=180
    )
    assert again.returncode == 0, again.stderr
    first, resumed, before = (
        weights(path)
        for path in (run / "checkpoint-4", copy / "checkpoint-4", run / "checkpoint-2")
    )
    assert first.keys() == resumed.keys() == before.keys()
    assert not [key for key in first if not torch.equal(first[key], resumed[key])]
    assert [key for key in first if not torch.equal(first[key], before[key])]
