"""Published weights: those of the best evaluation, the last, or the mean of the best; patience."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faults.forks import Forks
from helpers.scenes import Scene
from safetensors.torch import load_file

STEPS = 20


@pytest.fixture(scope="module")
def job(tiny_config: Path, pairs_file: Path) -> tuple[object, ...]:
    """Return a job whose rate rises to where it breaks what it built: the last is not the best."""
    model = ("--model_config", tiny_config, "--dataset_name", pairs_file, "--max_length", 64)
    rate = ("--learning_rate", 1, "--learning_rate_schedule", "linear", "--warmup_ratio", 0.9)
    length = ("--train_steps", STEPS, "--save_steps", 4, "--eval_steps", 4, "--max_grad_norm", 0)
    return (*model, *rate, *length, "--save_total_limit", 1, "--train_device", "cpu")


def losses(run: Scene) -> dict[int, float]:
    return {
        int(line["step"]): line["eval/loss"]
        for line in run.trace()
        if "eval/loss" in line and line["step"]
    }


def best_of(run: Scene, number: int) -> list[str]:
    found = losses(run)
    return [f"checkpoint-{step}" for step in sorted(found, key=lambda step: found[step])[:number]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_best_publishes_the_weights_of_the_best_checkpoint(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    run = forks.run(tmp_path / "run", *job, "--publish", "best", "--keep_best", 2)
    assert run.code == 0, run.err
    first, second = best_of(run, 2)
    assert f"checkpoint-{STEPS}" not in (first, second), "else nothing is proved"
    assert sorted(path.name for path in run.folder.glob("checkpoint-*")) == sorted(
        [first, second, f"checkpoint-{STEPS}"]
    )
    fused, best = weights(run.folder / "fused"), weights(run.folder / first)
    assert all(torch.equal(fused[name], best[name]) for name in best)
    step = int(first.removeprefix("checkpoint-"))
    assert run.result["published"] == {
        "weights": "best",
        "checkpoints": [str(run.folder / first)],
        "eval_loss": losses(run)[step],
        "eval_loss_last": losses(run)[STEPS],
    }
    card = (run.folder / "fused" / "README.md").read_text()
    assert f"| published | best weights, of {first} |" in card
    assert f"| eval/loss | {losses(run)[step]:.4f} |" in card
    assert run.result["fuse"]["max_logit_difference"] < 1e-5


def test_best_evaluation_between_saves_is_published(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """The default: no checkpoint would be due at the best evaluation, or at any but the last."""
    run = forks.run(tmp_path / "run", *job, "--save_steps", STEPS, "--eval_steps", 3)
    assert run.code == 0, run.err
    (first,) = best_of(run, 1)
    assert first != f"checkpoint-{STEPS}", "else nothing is proved"
    assert sorted(path.name for path in run.folder.glob("checkpoint-*")) == sorted(
        [first, f"checkpoint-{STEPS}"]
    )
    fused, best = weights(run.folder / "fused"), weights(run.folder / first)
    assert all(torch.equal(fused[name], best[name]) for name in best)
    lowest, last = min(losses(run).values()), losses(run)[STEPS]
    log = (run.folder / "log.txt").read_text()
    wanted = f"publish: best weights, of {first}; held-out loss {lowest:.4f}; the last weights have {last:.4f}"
    assert wanted in log
    assert "held-out loss worse" not in log


def test_last_weights_are_published_without_an_evaluation(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    run = forks.run(tmp_path / "run", *job, "--train_steps", 2, "--eval_strategy", "no")
    assert run.code == 0, run.err
    assert run.result["published"] == {
        "weights": "last",
        "checkpoints": [str(run.folder / "checkpoint-2")],
        "eval_loss": None,
        "eval_loss_last": None,
    }
    said = "last weights: there is no evaluation"
    assert f"publish: {said}" in (run.folder / "log.txt").read_text()
    assert f"| published | {said} |" in (run.folder / "fused" / "README.md").read_text()


@pytest.fixture(scope="module")
def base(
    forks: Forks, job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[object, ...]:
    """Train a model that a careless run can break; return the arguments to start from it."""
    better = ("--learning_rate", 3e-3, "--train_steps", 100, "--save_steps", 100)
    run = forks.run(tmp_path_factory.mktemp("base") / "run", *job, *better)
    assert run.code == 0, run.err
    return ("--model_config", "", "--model_name", run.folder / "fused")


def test_run_that_does_harm_is_warned_of(
    forks: Forks, job: tuple[object, ...], base: tuple[object, ...], tmp_path: Path
) -> None:
    """Every checkpoint is worse than the model that the run began with."""
    harm = ("--learning_rate", 1, "--warmup_ratio", 0, "--train_steps", 4, "--eval_steps", 2)
    run = forks.run(tmp_path / "run", *job, *base, *harm)
    assert run.code == 0, run.err
    before, best = run.result["eval_loss_first"], min(losses(run).values())
    assert best > before, "else nothing is proved"
    assert run.result["published"]["eval_loss"] == best
    said = f"the run made held-out loss worse: {before:.4f} before its first step, {best:.4f} as published"
    assert f"warning: {said}" in (run.folder / "log.txt").read_text()
    assert f"| warning | {said} |" in (run.folder / "fused" / "README.md").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_patience_ends_the_run_as_done(
    ranks: int, forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """A resumed run counts on, and one resumed at its end has ended."""
    devices = ("--num_processes", ranks, "--batch_size", 4 // ranks)
    limit = ("--patience", 2, "--eval_steps", 2, "--save_steps", 3, "--save_total_limit", 9)
    run = forks.run(tmp_path / "run", *job, *devices, *limit)
    assert run.code == 0, run.err
    (first,) = best_of(run, 1)
    end = int(first.removeprefix("checkpoint-")) + 4  # two evaluations later
    assert end < STEPS, "else nothing is proved"
    assert (run.result["outcome"], run.result["steps"]) == ("done", end)
    assert run.result["early_stop"] == {"evaluations": 2, "planned_steps": STEPS}
    assert run.result["published"]["checkpoints"] == [str(run.folder / first)]
    said = f"patience: the run ends at step {end} of {STEPS}, after 2 evaluations in a row without a new best"
    assert said in (run.folder / "log.txt").read_text()
    for step in (end, end - 2):  # its end, and one evaluation before
        at = run.folder / f"checkpoint-{step}"
        if not at.exists():
            continue
        again = forks.run(run.folder, *job, *devices, *limit, "--resume", at)
        assert again.code == 0, again.err
        for name in ("outcome", "steps", "early_stop", "published", "eval_loss"):
            assert again.result[name] == run.result[name], name


@pytest.mark.parametrize(
    "devices",
    [
        ("--num_processes", 1),
        ("--num_processes", 2, "--batch_size", 2),
        ("--num_processes", 2, "--batch_size", 2, "--parallel", "zero3"),
    ],
    ids=["one", "ddp", "zero3"],
)
def test_average_publishes_the_mean_of_the_best(
    devices: tuple[object, ...], forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """Started from the published model, a run finds the same evaluation loss."""
    args = (*job, *devices, "--publish", "average", "--keep_best", 3)
    run = forks.run(tmp_path / "run", *args)
    assert run.code == 0, run.err
    chosen = [run.folder / name for name in best_of(run, 3)]
    assert run.result["published"]["checkpoints"] == [str(path) for path in chosen]
    parts = [weights(path) for path in chosen]
    fused = weights(run.folder / "fused")
    for name, weight in fused.items():
        terms = torch.stack([part[name].double() for part in parts])
        error = (weight.double() - terms.mean(0)).abs()
        assert (error <= 1e-6 * terms.abs().amax(0)).all()  # large ones may cancel
        assert weight.dtype == torch.float32
    begin = ("--model_config", "", "--model_name", run.folder / "fused", "--train_steps", 1)
    again = forks.run(tmp_path / "again", *job, *begin, "--fuse_model", "false")
    assert again.code == 0, again.err
    wanted = pytest.approx(again.result["eval_loss_first"], rel=1e-5)
    assert run.result["published"]["eval_loss"] == wanted
    assert run.result["published"]["eval_loss_last"] == run.result["eval_loss"]


def test_best_adapter_is_published(
    forks: Forks, job: tuple[object, ...], base: tuple[object, ...], tmp_path: Path
) -> None:
    """An adapter learns, then too fast, and breaks its base: its last state is not the best."""
    run = forks.run(tmp_path / "run", *job, *base, "--lora", "true", "--learning_rate", 0.05)
    assert run.code == 0, run.err
    (first,) = best_of(run, 1)
    assert first != f"checkpoint-{STEPS}", "else nothing is proved"
    saved, best = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (run.folder / "adapter", run.folder / first)
    )
    assert saved.keys() == best.keys()
    assert all(torch.equal(saved[name], best[name]) for name in best)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (
            ("--publish", "best", "--eval_strategy", "no"),
            "publish: expected eval_strategy steps or epoch as well, got best with eval_strategy no",
        ),
        (("--publish", "average", "--lora", "true"), "publish: expected last or best with lora"),
        (
            ("--patience", 2, "--eval_strategy", "no"),
            "patience: expected eval_strategy steps or epoch as well, got 2 with eval_strategy no",
        ),
    ],
)
def test_unrankable_checkpoints_are_refused(
    args: tuple[object, ...], error: str, forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    run = forks.run(tmp_path / "run", *job, *args)
    assert run.code == 2
    assert error in run.err


def test_publish_best_needs_rows_to_evaluate_on(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "Hi?", "response": "Hi."}\n')
    data = ("--dataset_name", tmp_path / "one.jsonl")
    run = forks.run(tmp_path / "run", *job, *data, "--publish", "best")
    assert run.code == 2
    assert "publish: expected data to evaluate on for best" in run.err
