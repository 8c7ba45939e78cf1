"""Puts a run together from its parameters: tokenizer, documents, model, rules of a step, clock. Shared by train and check."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..base.errors import one_line
from ..config.families import DEFAULT_NORM, FAMILIES
from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..data.hold_out import HeldOut, hold_out, split_examples
from ..data.layout import Layout
from ..data.layouts import Example, detect_layout, read_examples
from ..data.layouts import Layout as RowLayout
from ..data.prepare import Encoding, Report, check_trainable, encode_split
from ..data.seen import Seen, counted
from ..data.sources import Row, has_eval_split, parse_mixture, read_rows, skipped_files
from ..data.steps import run_length, step_slots
from ..data.templates import compile_templates
from ..data.tokenizer import train_tokenizer
from ..models.load import (
    build_model,
    check_builds,
    check_method,
    check_pair,
    fit_config,
    load_config,
    load_model,
    load_tokenizer,
    new_config,
    new_model,
    new_tokens,
    switch_off_dropout,
)
from ..models.lora import LoraSettings, MaybeAdapted, add_adapter, four_bit_saves, restore_adapter
from ..objectives.dream import by_context, parse_loss_weight_type
from ..objectives.mdlm import Weigh, by_time
from ..objectives.noise import Noise
from ..sampling.blockwise import SamplerSettings
from ..training.loop import Plan
from ..training.lr_schedule import Schedule, make_schedule, warmup_steps
from ..training.step import Step, StepRules, build_step
from .precision import weight_dtype

Log = Callable[[str], None]
GROUP = 256  # rows that templates write at once


@dataclass(frozen=True)
class Prepared:
    """A run's text, tokenised."""

    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    train: Documents
    evaluation: Documents
    reports: dict[str, Report]


class Examples:
    """The examples of a dataset, read anew each time they are asked for, one log line for every note on their layout.

    `seen` tallies what of each split is not read, over its longest reading so far.
    """

    def __init__(self, params: Params, log: Log, *, offline: bool, between_rows: Callable[[], None]):
        self._params, self._log, self._offline, self._between_rows = params, log, offline, between_rows
        self._templates = compile_templates(params.instruction_template, params.input_template, params.output_template)
        self._layouts: dict[tuple[str, ...], RowLayout] = {}
        self.seen: dict[str, Seen] = {}

    def __call__(self, split: str, first: int = 0, every: int = 1) -> Iterator[tuple[str, Example | str]]:
        """Rows `first`, `first + every`, ... of a split; of the others nothing but their number matters."""
        seen = Seen()
        text_rows = self._params.text_rows
        for rows in self._groups(split, first, every):
            layouts = [self._layout(row) for row in rows]
            for row, example in zip(rows, read_examples(rows, layouts, seen), strict=True):
                if text_rows == "paragraph" and row.id.rpartition(":")[0].lower().endswith(".txt"):
                    seen.paragraph(row.values["text"])
                if seen.rows >= self.seen.get(split, seen).rows:
                    self.seen[split] = seen
                yield row.id, example

    def _groups(self, split: str, first: int, every: int) -> Iterator[list[Row]]:
        """Read rows, one at a time unless templates write them, which many at once is faster for."""
        rows = read_rows(
            self._params.dataset_name,
            "eval" if split == "eval" else "train",
            offline=self._offline,
            text_rows=self._params.text_rows,
        )
        group: list[Row] = []
        for number, row in enumerate(rows):
            self._between_rows()
            if number >= first and not (number - first) % every:
                group.append(row)
            if len(group) == (GROUP if self._templates else 1):
                yield group
                group = []
        if group:
            yield group

    def _layout(self, row: Row) -> RowLayout:
        columns = tuple(row.values)
        if columns not in self._layouts:
            layout, notes = detect_layout(columns, self._templates, self._params.text_field, self._params.training_stage)
            self._layouts[columns] = layout
            for note in notes:
                self._log(f"dataset_name: {note}")
        return self._layouts[columns]

    def lines(self) -> list[str]:
        """Name what the rows read so far hold and is not read, one line each."""
        return [f"{split}: {line}" for split, seen in self.seen.items() for line in seen.lines()]


def prepare_corpus(
    params: Params,
    log: Log,
    *,
    offline: bool = False,
    between_rows: Callable[[], None] = lambda: None,
    moment: datetime | None = None,
) -> Prepared:
    """Read, split and tokenise the data; `moment` is what a chat template takes for now. Raises JobError (exit 3 or 4)."""
    examples = Examples(params, log, offline=offline, between_rows=between_rows)
    wants_eval = params.eval_strategy != "no"
    own_files = wants_eval and has_eval_split(params.dataset_name, offline=offline)
    held = HeldOut(frozenset(), False)
    if wants_eval:
        share, drop = params.eval_share, params.drop_eval_prompts
        held = hold_out(examples, own_files, params.seed, share=share, drop_prompts=drop)
    if held.note:
        log(held.note)
    for note in unread(params.dataset_name, wants_eval, own_files, f"{params.eval_share:g} of the rows"):
        log(f"dataset_name: {note}")

    def of_split(split: str) -> Iterable[tuple[str, Example | str]]:
        return split_examples(examples, held, split, params.seed)

    tokenizer = make_tokenizer(params, of_split, offline=offline)
    base_config(params, tokenizer, offline=offline)  # a wrong pair is told before the data is tokenised
    chat = ChatFormat(tokenizer, moment)
    if chat.moment:
        log(f"tokenizer_name: the chat template writes the time; for this run it is {chat.moment:%Y-%m-%d %H:%M:%S}")
    train, train_report = encode_split(of_split("train"), chat, encoding(params))
    evaluation, eval_report = encode_split(of_split("eval") if wants_eval else (), chat, encoding(params))
    for line in (*examples.lines(), *remarks({"train": train_report, "eval": eval_report})):
        log(f"dataset_name: {line}")
    if held.shared.rows:
        rows = counted(held.shared.rows, "row")
        log(f"drop_eval_prompts: {rows} of train with a prompt of the eval split and another answer; true leaves them out")
    check_trainable(train_report, params.dataset_name, params.max_length, examples.seen.get("train"))
    if wants_eval and not len(evaluation):
        log("eval_strategy: nothing to hold out for evaluation; it is off.")
    return Prepared(tokenizer, chat, train, evaluation, {"train": train_report, "eval": eval_report})


def remarks(reports: Mapping[str, Report]) -> list[str]:
    """Write what a person should know of the rows, one line each."""
    return [f"{split}: {line}" for split, report in reports.items() for line in report.lines()]


def encoding(params: Params) -> Encoding:
    return Encoding(
        max_length=params.max_length,
        truncation=params.truncation,
        answers_only=params.mask_prompt_loss,
        turns=params.train_turns,
        seed=params.seed,
        stage=params.training_stage,
        insert_eos=params.insert_eos,
    )


def unread(spec: str, wants_eval: bool, own_files: bool, instead: str) -> Iterable[str]:
    """What a mixture names or holds and this run does not read; `instead`: what is held out without an eval split."""
    if skipped := skipped_files(spec):
        shown = ", ".join(one_line(Path(file).name) for file in skipped[:5])
        yield f"not read of the folder: {shown}{f', ... ({len(skipped)} in all)' if len(skipped) > 5 else ''}"
    if wants_eval and not own_files and any(part.eval_limit for part in parse_mixture(spec)):
        yield f"no part has an eval split of its own: test:N does nothing, and {instead} is held out"


def make_tokenizer(
    params: Params, examples: Callable[[str], Iterable[tuple[str, Example | str]]], *, offline: bool
) -> PreTrainedTokenizerBase:
    """The named tokenizer, else the model's, else one trained on the training texts."""
    if name := params.tokenizer_name or params.model_name:
        config = (
            new_config(params.model_config_file) if params.model_config_file else load_config(params.model_name, offline=offline)
        )
        field = "tokenizer_name" if params.tokenizer_name else "model_name"
        return load_tokenizer(name, offline=offline, family=FAMILIES[config.model_type], field=field)
    texts = (turn.with_thought for _, one in examples("train") if isinstance(one, Example) for turn in one.turns)
    return train_tokenizer(texts, new_config(params.model_config_file).vocab_size)


def base_config(params: Params, tokenizer: PreTrainedTokenizerBase, *, offline: bool = False) -> PretrainedConfig:
    """The configuration of the model to be trained, checked against method and tokenizer. Raises JobError (exit 2 or 4)."""
    if params.model_config_file:
        config = new_config(params.model_config_file)
        fit_config(config, tokenizer)
    else:
        config = load_config(params.model_name, offline=offline)
        check_builds(config, "model_name")
    check_method(config, params.training_method)
    check_pair(config, tokenizer, params.max_length)
    return config


def make_model(
    params: Params,
    tokenizer: PreTrainedTokenizerBase,
    compute: torch.dtype,
    *,
    offline: bool = False,
    checkpoint: Path | None = None,
) -> MaybeAdapted:
    """What is trained: the base or a new model seeded by the run's seed, with its adapter if one is asked for; with the weights of
    the run's own `checkpoint`, if it goes on from one.

    Full fine-tuning keeps float32 master weights, except under adamw_8bit with bfloat16 compute: then the weights are bfloat16
    and the optimizer rounds stochastically. A frozen base is kept in the compute dtype. Raises JobError (exit 2 or 4).
    """
    config = base_config(params, tokenizer, offline=offline)
    attention = params.attn_implementation if params.attn_implementation in ("eager", "sdpa") else None
    dtype = weight_dtype(params, compute)
    torch.manual_seed(params.seed)
    if checkpoint and not params.lora:  # a whole model folder
        return load_model(str(checkpoint), dtype=dtype, attn_implementation=attention, offline=True)
    if params.model_config_file:
        model = new_model(params.model_config_file, tokenizer, attn_implementation=attention)
    else:
        four_bit = params.load_in_4bit
        model = load_model(params.model_name, dtype=dtype, attn_implementation=attention, offline=offline, four_bit=four_bit)
    added = new_tokens(config, tokenizer)
    if added:
        model.resize_token_embeddings(len(tokenizer))
    if not params.lora:
        return model
    adapted = add_adapter(model, FAMILIES[config.model_type], lora_settings(params), added)
    if checkpoint:
        restore_adapter(adapted, checkpoint)
    return adapted


def model_shape(params: Params, config: PretrainedConfig, compute: torch.dtype) -> tuple[nn.Module, int]:
    """What make_model would give, on the meta device, and the bytes by which its 4-bit layers are smaller than the plain ones here."""
    family, config = FAMILIES[config.model_type], copy.deepcopy(config)
    switch_off_dropout(config)
    with torch.device("meta"):
        plain: Any = build_model(config)
        model = plain.to(weight_dtype(params, compute))
        saves = four_bit_saves(model, family) if params.load_in_4bit else 0
        return (add_adapter(model, family, lora_settings(params), []) if params.lora else model), saves


def lora_settings(params: Params) -> LoraSettings:
    return LoraSettings(params.lora_r, params.lora_alpha, params.lora_dropout, params.lora_targets)


# Per method, the weight of a masked token.
WEIGH: dict[str, Callable[[Params], Weigh]] = {
    "bert": lambda params: by_time(params.noise_schedule),
    "llada": lambda params: by_time(params.noise_schedule),
    "dream": lambda params: by_context(parse_loss_weight_type(params.loss_weight_type), params.noise_schedule),
}


def step_rules(params: Params, chat: ChatFormat) -> StepRules:
    answers = params.training_stage == "sft"
    cuts = answers and params.training_method == "dream"
    return StepRules(
        noise=Noise(params.seed, params.noise_schedule, params.t_sampling, params.mask_count, params.t_min, params.t_max),
        weigh=WEIGH[params.training_method](params),
        norm=DEFAULT_NORM[params.training_method] if params.loss_norm == "auto" else params.loss_norm,
        mask_id=chat.mask_id,
        end_ids=chat.end_ids,
        fill_id=chat.fill_id,
        start_id=chat.start_id,
        eos_policy=params.eos_policy if answers else "single",
        eos_block=params.eos_block_length,
        max_length=params.max_length,
        perbatch_cutoff=cuts and params.perbatch_cutoff,
        resp_cutoff_ratio=params.resp_cutoff_ratio if cuts else 0.0,
        complementary=params.complementary,
        stochastic_length=0.0 if answers else params.stochastic_length,
        prompt_drop=params.prompt_drop if answers else 0.0,
    )


@dataclass(frozen=True)
class Clock:
    """How long the run is."""

    plan: Plan
    step_size: int  # documents
    total: int | None  # documents of the whole run, when it is counted in epochs
    eval_batch_size: int
    behind: int = 0  # documents, see step_slots

    def seen(self, step: int) -> int:
        """Documents that the first `step` steps hold."""
        documents = step * self.step_size - self.behind
        return documents if self.total is None else min(documents, self.total)


def make_clock(params: Params, documents: int, evaluated: int, ranks: int, *, done: int = 0, seen: int = 0) -> Clock:
    """Steps, and how often to log, evaluate and save; shares of the run become steps here.

    A resumed run has made `done` steps over `seen` documents: fewer than whole steps hold where it was to end there first.
    """
    step_size = params.batch_size * params.gradient_accumulation_steps * ranks
    behind = done * step_size - seen
    steps, total = run_length(documents, step_size, params.num_train_epochs, params.train_steps, behind)
    every = {"no": 0, "steps": _every(params.eval_steps, steps), "epoch": math.ceil(documents / step_size)}
    plan = Plan(
        steps=steps,
        logging_steps=params.logging_steps,
        eval_every=every[params.eval_strategy] if evaluated else 0,
        save_every=_every(params.save_steps, steps),
        max_grad_norm=params.max_grad_norm,
        seed=params.seed,
    )
    per_device = params.per_device_eval_batch_size
    return Clock(plan, step_size, total, per_device if isinstance(per_device, int) else params.batch_size, behind)


def step_maker(
    params: Params,
    documents: Documents,
    rules: StepRules,
    clock: Clock,
    layout: Layout,
    rank: int,
    ranks: int,
    *,
    even: bool = False,
) -> Callable[[int], Step]:
    """Return a function that builds this rank's share of step k (from 0); `even` as in build_step. Not for a streamed run."""

    def make(step: int) -> Step:
        slots = step_slots(len(documents), clock.step_size, step, params.seed, clock.total, clock.behind)
        size = params.batch_size
        return build_step(slots, documents, rules, batch_size=size, layout=layout, rank=rank, ranks=ranks, even=even)

    return make


def _every(value: float, steps: int) -> int:
    return max(1, round(value * steps)) if value < 1 else int(value)


def make_run_schedule(params: Params, optimizer: torch.optim.Optimizer, steps: int, log: Log) -> Schedule:
    """The learning rate of a run of `steps` updates; a warm-up that would be no shorter is shortened, and logged."""
    warmup = warmup_steps(steps, share=params.warmup_ratio, number=params.warmup_steps)
    if params.warmup_steps > warmup and params.learning_rate_schedule != "constant":
        log(f"warmup_steps: {params.warmup_steps} is not shorter than the run of {steps}; {warmup} are used")
    return make_schedule(optimizer, params.learning_rate_schedule, steps, warmup)


def sampler_settings(params: Params) -> SamplerSettings:
    """How the result should be sampled, from how it learned to end an answer: a canvas like those it was trained on.

    block: block by block. batch: the whole canvas from the start. single: small blocks, because no canvas went past an answer.
    """
    lengths = {"block": params.eos_block_length, "batch": 32, "single": 8}
    block = min(lengths[params.eos_policy], params.max_length)
    longest = max(block, min(256, params.max_length // 2) // block * block)
    return SamplerSettings(max_new_tokens=longest, block_length=block, steps=block, grow=params.eos_policy != "batch")


def diffusion_facts(params: Params, rules: StepRules) -> dict[str, Any]:
    """What a model's folder says about its training: method, noise, loss weighting, end-of-answer policy, sampler."""
    return {
        "method": params.training_method,
        "noise_schedule": params.noise_schedule,
        "time_range": [params.t_min, params.t_max],
        "loss_norm": rules.norm,
        "loss_weight": params.loss_weight_type if params.training_method == "dream" else "time",
        "perbatch_cutoff": rules.perbatch_cutoff,
        "resp_cutoff_ratio": rules.resp_cutoff_ratio,
        "prompt_drop": rules.prompt_drop,
        "eos_policy": rules.eos_policy,
        "eos_block_length": params.eos_block_length,
        "sampler": sampler_settings(params).as_json(),
    }
