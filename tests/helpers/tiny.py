"""Tiny real things for tests: tokenizers, models, documents, rules, a run of the loop.

Nothing here knows an expected number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertTokenizer,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from plugin.batch import Batch
from plugin.config.families import DECODERS
from plugin.config.families import FAMILIES as KNOWN
from plugin.data.documents import Builder, Documents
from plugin.data.steps import Slot, step_slots
from plugin.models.configuration import new_config
from plugin.models.decoders.sdar import SDARConfig
from plugin.models.diffusion import DiffusionModel
from plugin.models.dream import DreamConfig
from plugin.models.flops import FlopCount
from plugin.models.llada import LLaDAConfig
from plugin.models.load import build_model, fit_config
from plugin.models.lora import LoraSettings, add_adapter
from plugin.objectives.answers import (
    Answers,
    BlockBorders,
    Cutoffs,
    EndFill,
    Item,
    LengthSplit,
    PromptDrop,
    Transform,
)
from plugin.objectives.masked import Corruption, Loss, WeightFunction, by_time, corruptions
from plugin.objectives.noise import Levels, Noise
from plugin.training.loop import (
    Cadence,
    Hooks,
    Progress,
    Requests,
    Trainer,
    Verdict,
    train,
)
from plugin.training.lr_schedule import Schedule
from plugin.training.meters import Meters, Stopwatch, Totals
from plugin.training.step import MicroBatch, Step, StepRules, build_step

torch.set_num_threads(1)

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = 40
_CONFIGS: dict[str, Any] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "modernbert": ModernBertConfig,
    "llada": LLaDAConfig,
    "Dream": DreamConfig,
    "qwen3": Qwen3Config,
    "qwen2": Qwen2Config,
    "llama": LlamaConfig,
    "sdar": SDARConfig,
}
FAMILIES = tuple(_CONFIGS)


def word_tokenizer(words: Sequence[str], **options: Any) -> BertTokenizer:
    """Return BERT's own tokenizer over its five special tokens (0 to 4) and `words` (from 5).

    Ids can be worked by hand.
    """
    return BertTokenizer(
        vocab={word: number for number, word in enumerate((*SPECIAL, *words))}, **options
    )


def tiny_config(family: str, **changes: Any) -> Any:
    """Return a config of two narrow layers, with dropout as published.

    ModernBERT has three layers, two of them with sliding windows of 4 tokens. Names are
    transformers'. LLaDA's and Dream's key heads are grouped. LLaDA's embedding has spare rows.
    """
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # logits far from uniform
        "pad_token_id": PAD,
    }
    if family in ("llada", "Dream"):
        shape |= {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "mask_token_id": MASK,
            "rope_theta": 100.0,
        }
    if family in DECODERS:  # heads wider than the width says
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        shape["is_causal"] = False  # full attention, as llada converts them
    if family == "llada":
        shape["embedding_size"] = VOCABULARY + 8
    if family == "modernbert":
        shape |= {"num_hidden_layers": 3, "global_attn_every_n_layers": 3, "local_attention": 4}
        shape |= {
            "cls_token_id": CLS,
            "sep_token_id": SEP,
            "bos_token_id": CLS,
            "eos_token_id": SEP,
        }
    else:
        shape |= {"bos_token_id": CLS, "eos_token_id": SEP}
    return _CONFIGS[family](**{**shape, **changes})


def new_model(config_file: Path | str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a new model from a config.json, as a run from scratch builds it."""
    config = new_config(str(config_file))
    fit_config(config, tokenizer)
    return build_model(config)


def tiny_model(family: str = "bert", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return a random model without dropout, in eval mode."""
    off = (
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if family in ("bert", "roberta")
        else {}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(tiny_config(family, **{**off, **changes}))


def adapted(model: PreTrainedModel, family: str, **settings: Any) -> PeftModel:
    """Return the model with an adapter of two random sides: a new one's second side is zero."""
    how = LoraSettings(**{"r": 4, "alpha": 8, "dropout": 0.0, "targets": "auto", **settings})
    rng = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        live = add_adapter(model, KNOWN[family], how, settings.pop("new_ids", []))
    for name, weight in live.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=rng).to(weight) * 0.1
    return live.eval()


def random_documents(
    count: int, seed: int = 0, longest: int = 20, vocabulary: int = VOCABULARY
) -> Documents:
    """Return documents `[CLS] prompt [SEP] answer [SEP]` of random words and lengths.

    Answers are supervised.
    """
    rng, builder = np.random.default_rng(seed), Builder()
    for number in range(count):
        prompt, answer = rng.integers(1, (longest - 3) // 2 + 1, size=2)
        words = rng.integers(5, vocabulary, size=prompt + answer)
        ids = np.concatenate([[CLS], words[:prompt], [SEP], words[prompt:], [SEP]]).astype(np.int32)
        supervised = np.arange(ids.size) >= prompt + 2
        builder.add(ids, supervised, int(prompt) + 2, f"tiny.jsonl:{number + 1}")
    return builder.build()


def rules(
    *,
    eos_policy: str = "single",
    eos_block: int = 8,
    max_length: int = 64,
    end_ids: tuple[int, ...] = (SEP,),
    fill_id: int = SEP,
    start_id: int | None = CLS,
    perbatch_cutoff: bool = False,
    resp_cutoff_ratio: float = 0.0,
    stochastic_length: float = 0.0,
    prompt_drop: float = 0.0,
    norm: str = "token",
    weight: WeightFunction | None = None,
    **noise: Any,
) -> StepRules:
    """Return rules of Bernoulli masks at linear, stratified times, weighed by time.

    `noise` holds fields of Noise.
    """
    how = Noise(**{"seed": 7, "mask_id": MASK, **noise})
    fill = EndFill(
        policy=eos_policy,
        block=eos_block,
        max_length=max_length,
        end_ids=end_ids,
        fill_id=fill_id,
    )
    used: list[Transform] = [fill]
    if perbatch_cutoff or resp_cutoff_ratio:
        used.insert(0, Cutoffs(perbatch=perbatch_cutoff, ratio=resp_cutoff_ratio))
    if eos_policy == "block":
        used.append(BlockBorders(eos_block))
    if stochastic_length:
        used.append(LengthSplit(share=stochastic_length, start_id=start_id))
    if prompt_drop:
        used.append(PromptDrop(prompt_drop))
    loss = Loss(weight=weight or by_time(how.schedule), norm=norm)
    return StepRules(noise=how, answers=Answers(tuple(used)), loss=loss)


def pair(prompt: int, answer: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (ids, supervised, prompt): `prompt` tokens 9, then `answer` tokens, the end included."""
    ids = np.array([CLS, *[9] * (prompt - 1), *[8] * (answer - 1), SEP], np.int32)
    return ids, np.arange(ids.size) >= prompt, prompt


def pairs(*sizes: tuple[int, int]) -> Documents:
    builder = Builder()
    for number, size in enumerate(sizes):
        builder.add(*pair(*size), f"r:{number}")
    return builder.build()


def in_order(documents: Documents, pass_: int = 0) -> list[Slot]:
    return [Slot(pass_, place, place) for place in range(len(documents))]


def noised(
    ids: np.ndarray, supervised: np.ndarray, t: float, *, index: int = 0, pass_: int = 0, **how: Any
) -> Corruption:
    """Return a document noised at time t as in a step; `how` as for rules()."""
    made = rules(**how)
    (one,) = corruptions(
        document_item(ids, supervised, int(np.argmax(supervised)), index=index, pass_=pass_),
        Levels.of(made.noise.schedule, [t], [ids.size]),
        made.noise,
        made.loss,
    )
    return one


def document_item(
    ids: np.ndarray, supervised: np.ndarray, prompt: int, *, index: int = 0, pass_: int = 0
) -> Item:
    return Item(
        ids=ids, supervised=supervised, prompt=prompt, index=index, pass_=pass_, ordinal=index
    )


def slots(count: int, documents: int, seed: int = 7, step: int = 0) -> list[Slot]:
    return step_slots(documents, count, step, seed)


def alone(
    model: torch.nn.Module, documents: Documents, micro_batch: MicroBatch
) -> list[torch.Tensor]:
    """Return the reference: each document's weighted loss, alone and unpadded, by full logits.

    The documents of the micro-batch have no added end tokens.
    """
    losses = []
    for index, one in zip(micro_batch.documents, micro_batch.corruptions, strict=True):
        logits = model(input_ids=torch.tensor(one.noisy[None].astype(np.int64))).logits[0]
        target = torch.tensor(documents[index].ids.astype(np.int64))
        nll = F.cross_entropy(logits, target, reduction="none")[torch.tensor(one.masked)]
        losses.append((nll * torch.tensor(one.weight)).sum())
    return losses


def alone_in(model: torch.nn.Module, batch: Batch) -> list[torch.Tensor]:
    """Return the reference for any batch: each document cut out of it, alone.

    Losses are the cross-entropy of the model's full logits.
    """
    losses, true = [], batch.ids.clone()
    true[batch.masked] = batch.target
    for start, end in zip(
        batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True
    ):
        logits = model(input_ids=batch.ids[None, start:end]).logits[0]
        inside = (batch.masked >= start) & (batch.masked < end)
        nll = F.cross_entropy(logits, true[start:end], reduction="none")[
            batch.masked[inside] - start
        ]
        losses.append((nll * batch.weight[inside]).sum())
    return losses


def gradient(module: torch.nn.Module) -> torch.Tensor:
    """Return all gradients as one flat vector."""
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in module.parameters()
        ]
    )


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


def assert_same_vector(got: torch.Tensor, wanted: torch.Tensor, relative: float = 1e-5) -> None:
    assert wanted.norm() > 0
    assert (got - wanted).norm() <= relative * wanted.norm()


def cpu() -> Accelerator:
    """Return a fresh accelerator of one CPU process, whatever an earlier test set up."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def meters(accelerator: Accelerator) -> Meters:
    """Return meters of a loop whose speed is not read: one operation a token."""
    return Meters(Stopwatch(accelerator.device), FlopCount(1.0, 0.0, ()))


@dataclass
class Run:
    """Calls of the hooks by a run of the loop."""

    losses: list[float] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    finished: tuple[int, bool, Totals] = (0, False, Totals())


def train_tiny(
    accelerator: Accelerator,
    model: PreTrainedModel,
    make_step: Callable[[int], Step],
    *,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    rates: Callable[[int], float] = lambda step: 1.0,
    asked: Callable[[int], Requests] = lambda step: Requests(),
    eval_every: int = 0,
    save_every: int = 100,
    max_grad_norm: float = 1.0,
    judged: Callable[[int], Verdict] = lambda step: Verdict(),
    at: Progress | None = None,
) -> Run:
    """Run plugin.training.loop.train with recording hooks.

    `asked` takes the number of the current step, from 1; `judged` the number of finished steps.
    """

    def evaluate(step: int) -> Verdict:
        run.evaluated.append(step)
        return judged(step)

    run, calls = Run(), iter(range(1, steps + 1))
    module, prepared = accelerator.prepare(
        DiffusionModel(model, PAD), optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    )
    scheduler = Schedule(prepared.optimizer, rates)
    hooks = Hooks(
        requests=lambda: asked(next(calls)),
        log=lambda step, metrics: run.logs.append({"step": float(step), **metrics}),
        tick=lambda step, loss, seconds: run.losses.append(loss),
        evaluate=evaluate,
        save=run.saved.append,
        sample=run.sampled.append,
    )
    cadence = Cadence(steps=steps, log_every=1, eval_every=eval_every, save_every=save_every)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=prepared,
        scheduler=scheduler,
        max_grad_norm=max_grad_norm,
    )
    at = at or Progress()
    stopped = train(trainer, make_step, cadence, hooks, meters(accelerator), at)
    run.finished = (at.done, stopped, at.totals)
    return run


def steps_of(
    documents: Documents, how: StepRules, *, step_size: int, batch_size: int
) -> Callable[[int], Step]:
    """Return make_step for a run on one rank."""

    def make(step: int) -> Step:
        chosen = step_slots(len(documents), step_size, step, how.noise.seed)
        return build_step(chosen, documents, how, batch_size=batch_size)

    return make
