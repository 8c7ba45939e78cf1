"""Cases of the GPU bench: a shape, a kind of training and a kind of work, as a worker gets them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from shapes import CUDA, LENGTHS, Shape, draw_lengths
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from work import END, MASK, PAD, make_documents

from plugin.assembly.data import Data
from plugin.assembly.rules import step_rules
from plugin.assembly.training_data import training_data
from plugin.config.families import DECODERS
from plugin.config.methods import methods_of
from plugin.config.params import Params
from plugin.data.chat import ChatFormat
from plugin.data.documents import Builder, Documents
from plugin.models.configuration import set_attention
from plugin.run.facts import BlockFacts

WARMUP, ROUNDS = 2, 6  # steps of a case: the first compiles
SMALL_WARMUP, SMALL_ROUNDS = 10, 16  # of small steps, which vary more and cost little
REFERENCE_STEPS = 6  # at most, after a warm-up of WARMUP
ROW = 1024  # tokens of a full row
START = 1
_SHAPES = {shape.name: shape for shape in CUDA}
_KINDS: dict[str, dict[str, object]] = {
    "full": {},
    "lora": {"lora": True},
    "qlora": {"lora": True, "load_in_4bit": True},
}
_BLOCKS = {"block_size": 16, "block_views": 2}


@dataclass(frozen=True)
class Case:
    """A shape, how it is trained, and the documents of a step."""

    shape: Shape
    kind: str  # full, lora or qlora
    work: str  # rows, or a kind of LENGTHS
    documents: int  # of a step
    warmup: int = WARMUP
    rounds: int = ROUNDS
    optim: str = "adamw"
    reference: bool = False  # also measured: the padded full-logit reference
    option: str = ""  # a parameter that is switched on, where the device has it
    method: str = ""  # the first that trains the family, if it is not named

    @property
    def name(self) -> str:
        plain = f"{self.shape.name}_{self.kind}_{self.work}"
        plain = f"{plain}_{self.method}" if self.method else plain
        return f"{plain}_{self.option}" if self.option else plain

    @property
    def title(self) -> str:
        """Return the case in the words of a table."""
        kind = self.kind if self.optim == "adamw" else f"{self.kind} with {self.optim}"
        kind += f" and {self.option}" if self.option else ""
        kind += f", {self.method}" if self.method else ""
        trained = f"{self.shape.name}, {kind}"
        if self.work == "rows":
            return f"{trained}, {self.documents} x {ROW}"
        return f"{trained}, {self.documents} documents of {self.work} lengths"

    @property
    def compared(self) -> int:
        """Return the number of steps that the reference repeats, the first that count."""
        return min(REFERENCE_STEPS, self.rounds)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks of gpu_measure.py that make up the case, in order."""
        ways = ("cold", "warm", "reference") if self.reference else ("cold", "warm")
        return tuple(f"{way}:{self.name}" for way in ways)

    def narrow(self) -> Case:
        """Return the case with a narrow shape and few documents: to try code on a CPU."""
        return replace(self, shape=self.shape.narrow(), documents=2, warmup=WARMUP, rounds=2)

    def params(self, device: str) -> Params:
        """Return the parameters of a job that trains this case.

        Answers end in no extra tokens, so that the reference can be given the same documents.
        """
        return Params.model_validate(
            {
                "train_device": device,
                "dtype": "bfloat16",
                "training_method": self.method or methods_of(self.shape.model_type)[0],
                "training_stage": "pretrain" if self.work == "rows" else "sft",
                "model_name": f"{self.shape.name} of random weights",
                "max_length": ROW if self.work == "rows" else LENGTHS[self.work][3],
                "eos_policy": "single",
                "train_steps": self.warmup + self.rounds,
                "batch_size": self.documents,
                "learning_rate": 1e-5,
                "logging_steps": 1,
                "eval_strategy": "no",
                "save_steps": self.warmup + self.rounds,
                "optim": self.optim,
                **_KINDS[self.kind],
                **(_BLOCKS if self.method == "block" else {}),
                **({self.option: True} if self.option and device == "cuda" else {}),
            }
        )

    def config(self, params: Params) -> PretrainedConfig:
        """Return the configuration of the model, with the attention that the method gives it."""
        config = self.shape.config()
        if config.model_type in DECODERS:
            config.mask_token_id = MASK
        facts = BlockFacts(size=_BLOCKS["block_size"], clean_context="block", shift=False)
        block = facts if self.method == "block" else None
        set_attention(config, params.training_method, block)
        return config

    def data(self, params: Params) -> Data:
        """Return the documents of all steps, with the rules and the clock of such a job."""
        chat = ChatFormat(make_tokenizer())
        train = self._documents(self.documents * params.train_steps)
        return Data(
            train=train,
            evaluation=Builder().build(),
            tokenizer=chat.tokenizer,
            chat=chat,
            rules=step_rules(params, chat),
            clock=training_data(params).clock(train, chat, 0, 1),
        )

    def _documents(self, count: int) -> Documents:
        if self.work == "rows":
            lengths = np.full(count, min(ROW, self.shape.longest))
            prompts = np.ones_like(lengths)
        else:
            lengths, prompts = draw_lengths(self.work, count, seed=0)
        return make_documents(self.shape.vocabulary, lengths, prompts, seed=0)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the special tokens alone: the documents of the bench hold ids."""
    words = {"[PAD]": PAD, "[START]": START, "[END]": END, "[MASK]": MASK}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[PAD]")),
        pad_token="[PAD]",
        unk_token="[PAD]",
        bos_token="[START]",
        eos_token="[END]",
        mask_token="[MASK]",
    )


def _small(shape: str, kind: str, work: str, documents: int, option: str = "") -> Case:
    return Case(
        _SHAPES[shape],
        kind,
        work,
        documents,
        SMALL_WARMUP,
        SMALL_ROUNDS,
        reference=True,
        option=option,
    )


GROUPS: dict[str, tuple[Case, ...]] = {
    "small": (
        _small("modernbert_base", "full", "alpaca", 32),
        _small("modernbert_base", "full", "alpaca", 32, "cuda_graphs"),
        _small("modernbert_base", "full", "tulu", 32),
        _small("llada_8b", "lora", "alpaca", 16),
    ),
    "encoder": (
        Case(_SHAPES["modernbert_base"], "full", "rows", 48),
        Case(_SHAPES["modernbert_large"], "full", "rows", 48),
    ),
    "lora": (
        Case(_SHAPES["llada_8b"], "lora", "rows", 8),
        Case(_SHAPES["dream_7b"], "lora", "rows", 8),
        Case(_SHAPES["llada_8b"], "qlora", "rows", 4),
    ),
    "full": (Case(_SHAPES["llada_8b"], "full", "rows", 8, optim="adamw_8bit"),),
    "float8": (Case(_SHAPES["llada_8b"], "lora", "rows", 8, option="float8"),),
    "block": (
        Case(_SHAPES["smollm2_135m"], "full", "tulu", 48, method="block"),
        Case(_SHAPES["qwen3_06b"], "full", "tulu", 32, method="block"),
    ),
    "worker": (),  # a job through main.py: see gpu_worker.py
}
CASES = {case.name: case for cases in GROUPS.values() for case in cases}
