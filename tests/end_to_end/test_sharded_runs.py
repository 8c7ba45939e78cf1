"""Sharded runs of `main.py train` on two processes, compared with runs of one process.

A rank with half of the weights computes in another order, so numbers agree to rounding: losses and
gradient norms to 1e-5 relative (measured: 6e-7), weights to 1e-5 after six updates at a learning
rate of 3e-3 (measured: 1.4e-6).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from faults.forks import Forks
from helpers.scenes import LONGEST_S, Scene
from helpers.support import ROOT, pairs, patience, read_lines, run_main, start, write_rows
from safetensors.torch import load_file

from plugin.data.documents import Documents
from plugin.data.packing import partition
from plugin.data.steps import step_slots
from plugin.run.folder import RunFolder

STEPS, STEP = 6, 8  # documents of a step
TWO = ("--num_processes", 2, "--batch_size", 1, "--gradient_accumulation_steps", STEP // 2)
PACKED = (
    "--num_processes",
    2,
    "--batch_size",
    2,
    "--gradient_accumulation_steps",
    2,
    "--packing",
    "on",
    "--recompute",
    "full",
)

FSDP = ROOT / "examples" / "accelerate_fsdp.yaml"


@pytest.fixture(scope="module")
def scene(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, tiny_bert: Path
) -> Callable[[str], Scene]:
    root = tmp_path_factory.mktemp("sharded")
    long = [
        {"prompt": f"Count to {n}.", "response": " ".join(map(str, range(n)))}
        for n in (20, 24, 28, 32)
    ]
    rows = write_rows(
        root / "rows.jsonl", [*pairs(), *long]
    )  # dealt by tokens: a share with a long row has fewer
    clock = (
        "--train_steps",
        STEPS,
        "--logging_steps",
        1,
        "--learning_rate",
        "3e-3",
        "--train_device",
        "cpu",
    )
    job = (*clock, "--dataset_name", rows, "--max_length", 64, "--eos_policy", "single")
    scratch = ("--model_config", tiny_config)
    lora = ("--model_name", tiny_bert, "--lora", "true", "--lora_r", 4, "--lora_dropout", 0)
    four_bit = (*lora, "--load_in_4bit", "true")  # a LoRA run in every other respect
    kinds = {
        "one": (*scratch, "--batch_size", STEP),
        "fsdp2": (*scratch, *TWO, "--packing", "off", "--parallel", "fsdp2"),
        "zero2": (*scratch, *PACKED, "--parallel", "zero2"),
        "4-bit": (*four_bit, "--batch_size", STEP),
        "4-bit zero3": (*four_bit, *TWO, "--parallel", "zero3"),
        "4-bit ddp": (*four_bit, *TWO, "--parallel", "ddp"),
    }

    @cache  # run at a test's first call: pytest-xdist may give this module's tests to two processes
    def ended(name: str) -> Scene:
        done = forks.run(root / name, *job, *kinds[name])
        assert done.code == 0, done.err
        return done

    return ended


SPLITS = [("one", "fsdp2"), ("one", "zero2"), ("4-bit", "4-bit zero3"), ("4-bit", "4-bit ddp")]


@pytest.mark.parametrize(("one", "two"), SPLITS)
def test_two_ranks_give_the_trace_of_one(scene: Callable[[str], Scene], one: str, two: str) -> None:
    alone, split = scene(one), scene(two)
    for name in ("loss", "grad_norm", "eval/loss"):
        theirs, ours = (
            [line[name] for line in done.trace() if name in line] for done in (alone, split)
        )
        assert len(theirs) >= 4
        assert ours == pytest.approx(theirs, rel=1e-5), name
    assert theirs[-1] < theirs[0] - 1e-3, "the evaluation sees weights that move"
    assert split.json("run.json")["environment"]["processes"] == 2
    cut = not two.endswith("ddp")
    said = [
        line
        for line in (split.folder / "log.txt").read_text().splitlines()
        if line.startswith("parallel: ")
    ]
    assert said == [f"parallel: {'zero3' if two == 'fsdp2' else two.split()[-1]}; as chosen"]
    theirs, ours = (done.result["memory"] for done in (alone, split))
    for kind in ("weights", "gradients", "optimizer"):
        assert ours[kind] == pytest.approx(theirs[kind] / (2 if cut else 1), rel=0.01), (
            "this rank's share alone"
        )


@pytest.mark.parametrize(("one", "two"), SPLITS)
def test_saved_and_published_models_equal_those_of_one_process(
    scene: Callable[[str], Scene], one: str, two: str
) -> None:
    alone, split = scene(one), scene(two)
    checkpoint = f"checkpoint-{STEPS}"
    weights = "model" if one == "one" else "adapter_model"
    files = [
        f"{checkpoint}/{weights}.safetensors",
        f"{checkpoint}/optimizer.safetensors",
        "fused/model.safetensors",
    ]
    for file in files if one == "one" else [*files, "adapter/adapter_model.safetensors"]:
        theirs, ours = (load_file(done.folder / file) for done in (alone, split))
        assert theirs.keys() == ours.keys()
        assert max((theirs[name] - ours[name]).abs().max().item() for name in theirs) < 1e-5, file
    assert split.result["fuse"]["max_logit_difference"] < 1e-4
    assert not list(split.folder.rglob("*.part"))
    theirs, ours = (
        {
            str(path.relative_to(done.folder))
            for path in done.folder.rglob("*")
            if not path.is_dir() and path.parent.name != "tb"
        }
        for done in (alone, split)
    )
    assert {name for name in ours if "rank" not in name} == {
        name for name in theirs if "rank" not in name
    }


def test_accelerate_launch_with_fsdp_gives_an_equal_trace(
    scene: Callable[[str], Scene], tmp_path: Path
) -> None:
    """Run the example unchanged on one machine, as a cluster does, without our parent."""
    alone = scene("one")
    folder = tmp_path / "run"
    folder.mkdir()
    split = {
        "batch_size": 1,
        "gradient_accumulation_steps": STEP // 2,
        "fuse_model": False,
        "save_steps": STEPS,
    }
    params = alone.json("run.json")["params"] | split
    assert params["parallel"] == "auto"
    (folder / "run.json").write_text(json.dumps({"params": params}), encoding="utf-8")
    here = ("--num_machines", 1, "--num_processes", 2, "--main_process_port", 0)
    launch = (
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--config_file",
        FSDP,
        *here,
    )
    with start([*launch, "-m", "plugin.worker", folder], cwd=ROOT) as launcher:
        out, err = launcher.communicate(
            timeout=patience(4 * LONGEST_S)
        )  # several processes import at once
    assert launcher.returncode == 0, out + err
    together = Scene(folder, 0, out, err)
    for name in ("loss", "grad_norm", "eval/loss"):
        theirs, ours = (
            [line[name] for line in done.trace() if name in line] for done in (alone, together)
        )
        assert len(theirs) >= 4
        assert ours == pytest.approx(theirs, rel=1e-5), name
    said = [line for line in out.splitlines() if line.startswith(("accelerate: ", "parallel: "))]
    assert said[0].startswith(
        "accelerate: FSDP with fsdp_reshard_after_forward true is parallel zero3 here; "
    )
    assert said[1:] == ["parallel: zero3; as chosen"]
    record = RunFolder(folder).read_run()
    assert record.params == params
    assert record.result
    assert record.result.effective == {"parallel": "zero3"}


def test_the_ranks_had_different_numbers_of_micro_batches(scene: Callable[[str], Scene]) -> None:
    """Each has one document: idle micro-batches too gathered the sharded model."""
    documents = Documents.load(scene("fsdp2").folder / "data" / "train")
    lengths = documents.lengths.tolist()
    steps = [step_slots(len(documents), STEP, step, 42) for step in range(STEPS)]
    hands = [partition([lengths[slot.index] for slot in slots], 2) for slots in steps]
    assert any(len(one) != len(other) for one, other in hands)


@pytest.mark.parametrize("two", ["fsdp2", "4-bit zero3"])
def test_samples_are_those_of_one_process(scene: Callable[[str], Scene], two: str) -> None:
    """Compare the samples before the first step.

    Later, a last bit decides which of two equally likely words a model of six steps says.
    """
    alone, split = (
        read_lines(scene(name).folder / "samples.jsonl")
        for name in ("one" if two == "fsdp2" else "4-bit", two)
    )
    first = [record for record in alone if record["step"] == 0]
    assert first
    assert [record for record in split if record["step"] == 0] == first
    assert [record["step"] for record in split] == [record["step"] for record in alone]


def test_chat_talks_to_the_fused_model(scene: Callable[[str], Scene]) -> None:
    done = run_main(
        "chat",
        scene("zero2").folder,
        "--prompt",
        "What colour is the sky?",
        "--json",
        "--max_new_tokens",
        8,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] >= 1
