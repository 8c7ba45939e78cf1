"""Resumed runs equal uninterrupted ones: curves, samples, weights, optimizer, to the last bit."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.compare import differences, tensors_of
from faults.forks import Forks
from helpers.scenes import LONGEST_S, Scene
from helpers.support import read_lines, run_main, wait_until, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plugin.data.tokenizer import train_tokenizer
from plugin.training.lr_schedule import rate

Go = Callable[..., tuple[Scene, Scene]]


@pytest.fixture(scope="module")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"text": " ".join(f"{n} and {n + k} make {2 * n + k}." for k in range(n % 5 + 1))}
        for n in range(60)
    ]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def job(tiny_config: Path, pairs_file: Path) -> tuple[object, ...]:
    """Return a job of 22 documents: 6 steps a pass, a log every 7 steps, a checkpoint every 17.

    Checkpoints lie within a pass and between two logs.
    """
    model = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--learning_rate",
        "3e-3",
    )
    length = (
        "--train_steps",
        40,
        "--save_steps",
        17,
        "--save_total_limit",
        9,
        "--logging_steps",
        7,
        "--eval_steps",
        10,
    )
    return (*model, *length, "--batch_size", 4, "--fuse_model", "false", "--train_device", "cpu")


@pytest.fixture(scope="module")
def undisturbed(
    forks: Forks, job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    done = forks.run(tmp_path_factory.mktemp("undisturbed") / "run", *job)
    assert done.code == 0, done.err
    return done


@pytest.fixture
def unbroken_and_resumed(forks: Forks, tmp_path: Path, job: tuple[object, ...]) -> Go:
    def go(*args: object, step: int = 17, then: tuple[object, ...] = ()) -> tuple[Scene, Scene]:
        """Return the run, and its copy resumed from the checkpoint of `step`."""
        whole = forks.run(tmp_path / "whole", *job, *args)
        assert whole.code == 0, whole.err
        again = shutil.copytree(whole.folder, tmp_path / "again")
        resumed = forks.run(again, *job, *args, *then, "--resume", again / f"checkpoint-{step}")
        assert resumed.code == 0, resumed.err
        assert f"resume: resuming from step {step}" in resumed.err
        events = [
            event
            for event in read_lines(resumed.folder / "events.jsonl")
            if event["type"] == "resumed"
        ]
        assert [event["step"] for event in events] == [step]
        return whole, resumed

    return go


def test_a_hundred_steps_are_fifty_and_fifty(unbroken_and_resumed: Go) -> None:
    args = ("--train_steps", 100, "--save_steps", 50, "--logging_steps", 8, "--fuse_model", "true")
    whole, resumed = unbroken_and_resumed(*args, step=50)
    assert differences(resumed, whole) == []
    assert whole.losses()[-1] < 0.7 * whole.losses()[0], (
        "weights that do not move would be equal anyway"
    )
    assert tensors_of(whole.folder / "checkpoint-50") != tensors_of(whole.folder / "checkpoint-100")
    assert resumed.result["eval_loss_first"] == whole.result["eval_loss_first"]
    assert resumed.result["throughput"]["training_seconds"] > 0


LAYOUTS = {
    "packed": ("--packing", "on", "--tokens_per_batch", 64),
    "padded": ("--packing", "off"),
    "accumulated": ("--batch_size", 2, "--gradient_accumulation_steps", 2),
    "two processes": ("--batch_size", 2, "--num_processes", 2),
    "8-bit optimizer": ("--optim", "adamw_8bit"),
    "8-bit optimizer on bfloat16": ("--optim", "adamw_8bit", "--dtype", "bfloat16"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_resumes_to_the_last_bit(layout: str, unbroken_and_resumed: Go) -> None:
    whole, resumed = unbroken_and_resumed(*LAYOUTS[layout])
    assert differences(resumed, whole) == []


def test_run_counted_in_passes_resumes_to_the_last_bit(
    forks: Forks, tiny_config: Path, pairs_file: Path, tmp_path: Path
) -> None:
    args = (
        "--model_config",
        tiny_config,
        "--dataset_name",
        pairs_file,
        "--max_length",
        64,
        "--learning_rate",
        "3e-3",
    )
    args = (*args, "--num_train_epochs", 2.5, "--save_steps", 5, "--fuse_model", "false")
    whole = forks.run(tmp_path / "whole", *args)
    assert (whole.code, whole.result["steps"]) == (0, 14), (
        "22 documents, 4 a step, two passes and a half"
    )
    again = shutil.copytree(whole.folder, tmp_path / "again")
    resumed = forks.run(again, *args, "--resume", again / "checkpoint-10")
    assert differences(resumed, whole) == []
    shorter = forks.run(again, *args, "--resume", "true", "--num_train_epochs", 1)
    assert shorter.code == 2
    assert (
        "num_train_epochs: expected at least the 14 steps already done, got 6 steps in all"
        in shorter.err
    )


@pytest.mark.parametrize("four_bit", ["false", "true"])
def test_adapter_with_dropout_resumes_to_the_last_bit(
    four_bit: str, unbroken_and_resumed: Go, tiny_bert: Path
) -> None:
    lora = ("--lora", "true", "--lora_dropout", 0.3, "--lora_r", 4, "--load_in_4bit", four_bit)
    whole, resumed = unbroken_and_resumed(
        "--model_config", "", "--model_name", tiny_bert, *lora, "--fuse_model", "true"
    )
    assert differences(resumed, whole) == []
    assert tensors_of(whole.folder / "adapter")


@pytest.mark.parametrize("processes", [1, 2])
def test_stream_resumes_with_its_buffer(
    processes: int, unbroken_and_resumed: Go, texts_file: Path
) -> None:
    stream = (
        "--training_stage",
        "pretrain",
        "--streaming",
        "true",
        "--dataset_name",
        texts_file,
        "--max_length",
        32,
    )
    whole, resumed = unbroken_and_resumed(*stream, "--num_processes", processes)
    assert differences(resumed, whole) == []
    assert f"stream-{processes - 1}.safetensors" in tensors_of(whole.folder / "checkpoint-17")


def test_token_clock_resumes_within_its_batch_warmup(
    forks: Forks, job: tuple[object, ...], texts_file: Path, tmp_path: Path
) -> None:
    """A micro-batch has 4 x 32 tokens: sizes 1 and 2 take 12 and 12 steps, 3 the rest."""
    clock = ("--train_tokens", 8000, "--batch_warmup_tokens", 4600, "--learning_rate_schedule")
    clock = (*clock, "wsd_one_minus_sqrt", "--decay_ratio", 0.25, "--logging_steps", 1)
    clock = (*clock, "--gradient_accumulation_steps", 3, "--max_length", 32, "--warmup_ratio", 0)
    stream = ("--training_stage", "pretrain", "--streaming", "true", "--dataset_name", texts_file)
    at = job.index("--train_steps")
    args = (*job[:at], *job[at + 2 :], *stream, *clock)
    whole = forks.run(tmp_path / "whole", *args)
    assert whole.code == 0, whole.err
    again = Path(shutil.copytree(whole.folder, tmp_path / "again"))
    resumed = forks.run(again, *args, "--resume", again / "checkpoint-17")
    assert differences(resumed, whole) == []
    steps = [line for line in whole.trace() if "loss" in line]
    sizes = [line["micro_batches"] for line in steps]
    assert sizes == [1.0] * 12 + [2.0] * 12 + [3.0] * 9
    room = [128 * sum(sizes[:done]) for done in range(len(sizes) + 1)]
    assert room[-2] < 8000 <= room[-1]
    assert all(
        0.9 * most < line["tokens"] <= most for line, most in zip(steps, room[1:], strict=True)
    )
    wanted = [
        3e-3 * rate("wsd_one_minus_sqrt", done, total=room[-1], warmup=0, decay=room[-1] / 4)
        for done in room[:-1]
    ]
    assert [line["learning_rate"] for line in steps] == pytest.approx(wanted)
    assert wanted[0] == 3e-3 > wanted[-1], "the schedule falls within the run"
    curves = EventAccumulator(str(whole.folder / "tb"))
    curves.Reload()
    assert {"train/tokens", "train/micro_batches"} <= set(curves.Tags()["scalars"])


def test_real_programs_resume_what_a_fork_began(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """Start three real programs once: the other tests fork them."""
    two = (*job, "--batch_size", 2, "--num_processes", 2)
    begun = forks.run(tmp_path / "begun", *two)
    assert begun.code == 0, begun.err
    again = Path(shutil.copytree(begun.folder, tmp_path / "again"))
    done = run_main("train", *two, "--resume", again / "checkpoint-17", timeout_s=LONGEST_S)
    assert done.returncode == 0, done.stderr
    assert differences(Scene(again, 0, done.stdout, done.stderr), begun) == []


def test_resume_on_other_devices_keeps_documents_and_noise(unbroken_and_resumed: Go) -> None:
    two, one = (
        ("--num_processes", 2, "--batch_size", 2),
        ("--num_processes", 1, "--gradient_accumulation_steps", 2),
    )
    whole, resumed = unbroken_and_resumed(*two, then=one)
    assert "resume: num_processes is 1 from here, 2 before" in resumed.err
    assert resumed.losses() == pytest.approx(whole.losses(), rel=1e-5)
    evaluated = [
        [line["eval/loss"] for line in one.trace() if "eval/loss" in line]
        for one in (resumed, whole)
    ]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)
    masked = [
        [line["masked_accuracy"] for line in one.trace() if "loss" in line]
        for one in (resumed, whole)
    ]
    assert masked[0] == pytest.approx(masked[1], abs=0.02), "the same tokens were masked"


@pytest.mark.parametrize(
    "fault",
    ["step:stop:16:0", "step:stop:19:0", "step:stop:20:0", "eval:stop:20:0", "load:stop:0:0"],
)
def test_a_stop_leaves_no_trace_in_the_curves(
    fault: str, undisturbed: Scene, forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """Stop between two logs, right before, in the step of and during an evaluation, and at step 0."""
    stopped = forks.run(tmp_path / "stopped", *job, fault=fault)
    assert (stopped.code, stopped.result["outcome"]) == (0, "stopped"), stopped.err
    resumed = forks.run(stopped.folder, *job, "--resume", "true")
    assert resumed.code == 0, resumed.err
    assert differences(resumed, undisturbed) == []


def test_save_and_stop_files_leave_no_trace_in_the_curves(
    undisturbed: Scene, forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    saved = forks.start(tmp_path / "files", *job)
    wait_until((saved.folder / "events.jsonl").exists, "the worker to begin")
    (saved.folder / "SAVE").touch()
    wait_until(lambda: list(saved.folder.glob("checkpoint-*")), "the save")
    (saved.folder / "STOP").touch()
    stopped = saved.wait()
    assert stopped.result["outcome"] == "stopped", stopped.err
    steps = [
        event["step"]
        for event in read_lines(stopped.folder / "events.jsonl")
        if event["type"] == "checkpoint"
    ]
    assert len(steps) >= 2
    assert steps[0] < 17, "a save that nobody had planned"
    resumed = forks.run(stopped.folder, *job, "--resume", "true")
    assert resumed.code == 0, resumed.err
    assert differences(resumed, undisturbed) == []


def test_a_stop_in_the_last_step_ends_as_every_run_does(
    undisturbed: Scene, forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    late = forks.run(tmp_path / "late", *job, fault="step:stop:40:0")
    assert (late.code, late.result["outcome"]) == (0, "done"), late.err
    assert differences(late, undisturbed) == []


def test_finished_run_is_only_fused_again(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    args = (*job, "--fuse_model", "true")
    broken = forks.run(tmp_path / "run", *args, fault="fuse:raise:40:0")
    assert broken.code == 1, broken.err
    assert not (broken.folder / "fused").exists()
    before = broken.trace()
    resumed = forks.run(broken.folder, *args, "--resume", "true")
    assert (resumed.code, resumed.result["steps"]) == (0, 40), resumed.err
    assert resumed.trace() == before
    assert tensors_of(resumed.folder / "fused")["model.safetensors"]
    assert resumed.result["loss"] == before[-2]["loss"]


def test_curves_hold_every_step_once_after_a_kill(
    undisturbed: Scene, forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """Steps after the checkpoint are drawn again and shown once."""
    killed = forks.run(tmp_path / "killed", *job, fault="step:kill:33:0")
    assert killed.code == 8, killed.err
    resumed = forks.run(killed.folder, *job, "--resume", "true")
    assert resumed.code == 0, resumed.err
    curves: list[dict[str, list[tuple[int, float]]]] = []
    for scene in (undisturbed, resumed):
        board = EventAccumulator(str(scene.folder / "tb"), size_guidance={"scalars": 0})
        board.Reload()
        found = {
            tag: [(one.step, one.value) for one in board.Scalars(tag)]
            for tag in ("train/loss", "eval/loss")
        }
        curves.append(found)
    assert [step for step, _ in curves[1]["train/loss"]] == [7, 14, 21, 28, 35, 40]
    assert curves[0] == curves[1]


CLOCK = (
    "{% for m in messages %}{{ strftime_now('%H:%M:%S ') }}{{ m.content }}[SEP]{% endfor %}"
    "{% if add_generation_prompt %}{{ strftime_now('%H:%M:%S ') }}{% endif %}"
)


def test_a_chat_templates_clock_is_kept(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """Keep it even where the data has to be tokenised again."""
    words = train_tokenizer(["0123456789: a question and its answer"], 320)
    words.chat_template = CLOCK
    words.save_pretrained(tmp_path / "words")
    args = (*job, "--tokenizer_name", tmp_path / "words", "--train_steps", 6, "--save_steps", 2)
    whole = forks.run(tmp_path / "whole", *args)
    assert whole.code == 0, whole.err
    again = shutil.copytree(whole.folder, tmp_path / "again")
    shutil.rmtree(again / "data")
    resumed = forks.run(again, *args, "--resume", again / "checkpoint-2")
    assert resumed.code == 0, resumed.err
    ids = [(folder / "data" / "train" / "ids.npy").read_bytes() for folder in (whole.folder, again)]
    assert ids[0] == ids[1]
    assert differences(resumed, whole) == []
    moment = json.loads((whole.folder / "checkpoint-2" / "state.json").read_text())["moment"]
    assert (
        f"resume: the chat template writes the time; it stays {moment}"
        in (again / "log.txt").read_text()
    )


def test_the_run_json_of_a_resumed_run_repeats_it(
    unbroken_and_resumed: Go, forks: Forks, tmp_path: Path
) -> None:
    whole, resumed = unbroken_and_resumed()
    assert resumed.json("run.json")["environment"]["resumed_from"] == "checkpoint-17"
    repeated = forks.run(tmp_path / "repeated", "--config", resumed.folder / "run.json")
    assert repeated.code == 0, repeated.err
    assert differences(repeated, whole) == []
    assert "resumed_from" not in repeated.json("run.json")["environment"]


def test_best_checkpoint_is_kept_with_the_last(
    forks: Forks, job: tuple[object, ...], tmp_path: Path
) -> None:
    """The learning rate breaks what the warm-up built: the first evaluations are the best."""
    args = (
        "--learning_rate",
        1,
        "--learning_rate_schedule",
        "linear",
        "--warmup_ratio",
        0.9,
        "--max_grad_norm",
        0,
    )
    length = ("--save_total_limit", 1, "--save_steps", 4, "--eval_steps", 4)
    done = forks.run(tmp_path / "run", *job, *args, *length)
    assert done.code == 0, done.err
    losses = {
        line["step"]: line["eval/loss"]
        for line in done.trace()
        if "eval/loss" in line and line["step"]
    }
    best = min(losses, key=lambda step: losses[step])
    assert best < 36, "it is not among the last"
    assert sorted(path.name for path in done.folder.glob("checkpoint-*")) == sorted(
        [f"checkpoint-{best}", "checkpoint-40"]
    )
    kept = done.result["best_checkpoint"]
    assert kept == {"path": str(done.folder / f"checkpoint-{best}"), "eval_loss": losses[best]}
    assert (
        json.loads((done.folder / f"checkpoint-{best}" / "state.json").read_text())["eval_loss"]
        == losses[best]
    )


def two_machines(forks: Forks, folders: tuple[Path, Path], *args: object) -> list[Scene]:
    """Train with two parents that meet at one address.

    The second's own folder lies in the first's, or on its own disk.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = (
        *args,
        "--num_machines",
        2,
        "--main_process_ip",
        "127.0.0.2",
        "--main_process_port",
        port,
        "--batch_size",
        2,
    )
    started = [
        forks.start(
            folder / "machine-1" if rank else folder,
            *common,
            "--machine_rank",
            rank,
            "--run_dir",
            folder,
        )
        for rank, folder in enumerate(folders)
    ]
    return [one.wait() for one in started]


def test_two_machines_resume_together_or_not_at_all(
    forks: Forks, job: tuple[object, ...], undisturbed: Scene, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    whole = two_machines(forks, (shared, shared), *job)
    assert [scene.code for scene in whole] == [0, 0], whole[0].err + whole[1].err
    again = Path(shutil.copytree(shared, tmp_path / "again"))
    resumed = two_machines(forks, (again, again), *job, "--resume", again / "checkpoint-17")
    assert [scene.code for scene in resumed] == [0, 0], resumed[0].err + resumed[1].err
    assert differences(resumed[0], whole[0]) == []
    assert resumed[0].losses() == pytest.approx(undisturbed.losses(), rel=1e-5)

    apart = two_machines(forks, (again, tmp_path / "own disk"), *job, "--resume", "true")
    for scene in apart:
        assert scene.code == 2, scene.err
        assert (
            "resume: expected the same checkpoint on every machine, got steps 40, 0, by rank"
            in scene.err
        )
