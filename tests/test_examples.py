"""Every recipe parses and trains; the commands of dLLM's BERT-Chat report parse by aliases."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from helpers.causal_lm import write_causal_lm
from helpers.published_checkpoints import write_checkpoint
from helpers.support import ROOT

from benches import a2d_gsm8k
from plugin.assembly.clock import make_clock
from plugin.assembly.corpus import prepare_corpus
from plugin.assembly.model import make_model
from plugin.assembly.rules import step_rules
from plugin.cli import _parameters, _parser
from plugin.config.parse import parse
from plugin.data.steps import step_slots
from plugin.models.diffusion import DiffusionModel
from plugin.models.flops import count_flops
from plugin.run.asked import asked_values
from plugin.training.loop import Hooks, Progress, Requests, Trainer, Verdict, train
from plugin.training.lr_schedule import Schedule
from plugin.training.meters import Meters, Stopwatch
from plugin.training.optimizer import make_optimizer
from plugin.training.step import build_step

# end_to_end/test_three_stages.py runs the two that are no single job.
SEVERAL = ("prepare", "modernbert-three-stages")
RECIPES = sorted(
    path
    for path in (ROOT / "examples").glob("*.yaml")
    if not path.name.startswith("accelerate_") and path.stem not in SEVERAL
)
METHODS = ("bert", "dream", "llada")
REAL = {"smollm2_gsm8k": "block"}  # recipes of one real model, and their methods
TEXTS = [f"Question {n}: what is {n} and {n}? Answer: {2 * n}, of course." for n in range(40)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "rows.jsonl"
    rows = [
        {"prompt": f"What is {n} and {n}?", "response": f"{2 * n}, of course.", "text": text}
        for n, text in enumerate(TEXTS)
    ]
    path.write_text(
        "".join(json.dumps(row | {"Text": row["text"]}) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    published = {method: write_checkpoint(root / method, method, TEXTS) for method in METHODS}
    return published | {"block": write_causal_lm(root / "block")}


def test_there_is_a_recipe_for_each_method_and_stage() -> None:
    wanted = {
        f"{method}_{stage}" for method in METHODS for stage in ("sft", "pretrain", "lora", "qlora")
    }
    named = {"llada_published", "dream_published", *REAL}
    assert wanted | named == {path.stem for path in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_where_its_numbers_are_from_and_trains(
    recipe: Path, checkpoints: dict[str, Path], data: Path
) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    method, kind = recipe.stem.split("_")
    method = REAL.get(recipe.stem, method)
    assert values["training_method"] == method
    assert values.get("training_stage", "sft") == ("pretrain" if kind == "pretrain" else "sft")
    assert (values.get("lora", False), values.get("load_in_4bit", False)) == (
        kind in ("lora", "qlora"),
        kind == "qlora",
    )
    tiny = {
        "model_name": str(checkpoints[method]),
        "dataset_name": str(data),
        "max_length": 96,
        "batch_size": 4,
    }
    params = parse(
        values
        | tiny
        | {
            "num_train_epochs": 0,
            "train_steps": 2,
            "gradient_accumulation_steps": 1,
            "warmup_steps": 0,
        }
    ).params
    losses: list[float] = []
    prepared = prepare_corpus(params, lambda _: None)
    model = make_model(params, prepared.tokenizer, torch.float32)
    attention = "loop" if method == "block" else None  # rows with noisy copies are packed
    module = DiffusionModel(model, prepared.chat.pad_id, attention)
    rules = step_rules(params, prepared.chat)
    clock = make_clock(params, len(prepared.train), len(prepared.evaluation), 1)
    before = {
        name: weight.detach().clone()
        for name, weight in module.named_parameters()
        if weight.requires_grad
    }
    rate, decay = params.learning_rate, params.weight_decay
    optimizer = make_optimizer(
        module, kind=params.optim, learning_rate=rate, weight_decay=decay, seed=params.seed
    )
    trainer = Trainer(
        accelerator=Accelerator(cpu=True),
        module=module,
        optimizer=optimizer,
        scheduler=Schedule(optimizer, lambda _: 1.0),
        max_grad_norm=params.max_grad_norm,
        seed=params.seed,
    )
    train(
        trainer,
        lambda step: build_step(
            step_slots(len(prepared.train), clock.step_size, step, 0),
            prepared.train,
            rules,
            batch_size=4,
        ),
        clock.cadence,
        Hooks(
            requests=Requests,
            log=lambda _, metrics: losses.append(metrics["loss"]),
            tick=lambda *_: None,
            evaluate=lambda _: Verdict(),
            save=lambda _: None,
            sample=lambda _: None,
        ),
        Meters(Stopwatch(torch.device("cpu")), count_flops(model)),
        Progress(),
    )
    assert losses
    assert all(loss > 0 for loss in losses)
    assert any(
        not torch.equal(weight, before[name])
        for name, weight in module.named_parameters()
        if name in before
    )


def test_the_recipe_of_a_conversion_is_the_benchs() -> None:
    """All but the size of a step, which two cores can compute in the recipe."""
    values = yaml.safe_load((ROOT / "examples" / "smollm2_gsm8k.yaml").read_text(encoding="utf-8"))
    benched = a2d_gsm8k.TRAINING | a2d_gsm8k.ARMS["block"]
    same = ("training_method", "block_size", "block_views", "max_length", "weight_decay")
    assert {name: values[name] for name in same} == {name: benched[name] for name in same}
    assert (ROOT / values["dataset_name"]).is_file()


BERT_CHAT = (
    '--model_name_or_path "answerdotai/ModernBERT-large" --dataset_args "Trelis/tiny-shakespeare" --text_field "Text" '
    "--insert_eos False --max_length 128 --num_train_epochs 20 --per_device_train_batch_size 64 "
    '--per_device_eval_batch_size 64 --save_steps 0.1 --output_dir "models/ModernBERT-large/tiny-shakespeare"',
    '--model_name_or_path "answerdotai/ModernBERT-large" --dataset_args "tatsu-lab/alpaca" --max_length 512 --num_train_epochs 20 '
    '--per_device_train_batch_size 64 --per_device_eval_batch_size 64 --save_steps 0.1 --output_dir "models/ModernBERT-large/alpaca"',
    '--model_name_or_path "answerdotai/ModernBERT-base" --dataset_args "allenai/tulu-3-sft-mixture|HuggingFaceTB/smoltalk" '
    "--max_length 1024 --num_train_epochs 10 --per_device_train_batch_size 48 --per_device_eval_batch_size 48 --save_steps 0.1 "
    '--output_dir "models/ModernBERT-base/tulu-3-smoltalk/epochs-10-bs-384-len-1024"',
    '--model_name_or_path "answerdotai/ModernBERT-large" --dataset_args "allenai/tulu-3-sft-mixture+HuggingFaceTB/smoltalk" '
    "--max_length 1024 --num_train_epochs 10 --learning_rate 1e-4 --per_device_train_batch_size 48 --per_device_eval_batch_size 48 "
    "--eval_steps 0.1 --save_steps 0.1 --report_to none --lr_scheduler_type cosine --load_in_4bit False --lora False "
    '--output_dir "models/ModernBERT-large/tulu-3-smoltalk"',
)


@pytest.mark.parametrize("command", BERT_CHAT)
def test_a_command_line_of_the_bert_chat_report_parses(command: str) -> None:
    options, extra = _parser().parse_known_args(["train", *shlex.split(command)])
    params = _parameters(*asked_values(options, extra, ("command", "json", "download"))).params
    words = dict(zip(*[iter(shlex.split(command))] * 2, strict=True))
    assert params.model_name == words["--model_name_or_path"]
    assert params.dataset_name == words["--dataset_args"]
    assert params.batch_size == int(words["--per_device_train_batch_size"])
    assert params.run_dir == words["--output_dir"]
    assert params.num_train_epochs == int(words["--num_train_epochs"])
    assert params.insert_eos == (words.get("--insert_eos") != "False")
