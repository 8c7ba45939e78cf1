"""A trained model, found by its name and loaded with the sampler settings it was saved with.

Everything but the weights is read first, so that prompts and settings are checked in a second.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..base.digests import file_digest
from ..base.errors import JobError, Problem, model_error, renamed_field
from ..config.families import FAMILIES
from ..config.model_files import refuse_missing_path
from ..config.sampler import (
    SamplerSettings,
    block_by_block,
    changed,
    token_by_token,
)
from ..data.chat import ChatFormat
from ..models.checks.digest import base_digest, find_base
from ..models.configuration import (
    Pattern,
    attention_pattern,
    block_facts,
    load_config,
    longest_sequence,
    set_attention,
)
from ..models.diffusion import Predictor
from ..models.load import load_model
from ..models.lora import ADAPTER_CONFIG, merged_model
from ..models.tokenizer import check_pair, load_tokenizer
from ..run.facts import AdapterBase, ModelFacts, read_facts
from ..run.folder import RunFolder, local_path
from ..run.stages_file import newest_stage
from ..sampling.generate import stream
from ..sampling.request import OnStep, Request, Sample, Vocabulary

# Settings that mean something to a model that writes from left to right, one token a step.
OF_CAUSAL = ("max_new_tokens", "temperature", "top_p", "top_k", "cache", "seed")
_KIND: dict[Pattern, str] = {
    "full": "a full-attention",
    "causal": "a causal",
    "block": "a block",
}
# Caches of each attention. `exact` keeps all that the approximate ones keep.
_CACHES: dict[Pattern, tuple[str, ...]] = {
    "full": ("none", "prompt", "prefix", "dual"),
    "causal": ("none", "exact"),
    "block": ("none", "exact"),
}


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """All of a model but its weights: its configuration, its notation of texts, its settings."""

    path: str  # the folder or hub id of the model or adapter
    base: AdapterBase | None  # of an adapter; `name` is the folder or hub id of the base
    config: PretrainedConfig
    chat: ChatFormat
    facts: ModelFacts
    settings: SamplerSettings

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.chat)

    @property
    def positions(self) -> int:
        """Return the longest sequence of the model, prompt and answer together, in tokens."""
        return longest_sequence(self.config)

    def settings_with(self, given: Mapping[str, Any]) -> SamplerSettings:
        """Return the settings that the model was saved with, and those that were given over them.

        Raises JobError (exit 2) for contradictions, and for what a causal or a block model has no
        use for.
        """
        return _settings(self.config, self.facts.sampler, given)

    def remark(self, settings: SamplerSettings) -> str:
        """Return what a person should know about settings of a block model; empty: nothing."""
        block = block_facts(self.config)
        if not block or settings.block_length == block.size:
            return ""
        return (
            f"block_length {settings.block_length} is not the model's block_size {block.size}: "
            f"it was trained on blocks of {block.size} tokens, and writes and is scored in blocks "
            f"of {settings.block_length}."
        )

    def digest(self) -> str:
        """Return a digest of the weights. Raises OSError."""
        if self.base is None:
            return base_digest(self.path)
        files = sorted(Path(self.path).glob("adapter_model*"))
        return "-".join([base_digest(self.base.name), *map(file_digest, files)])


@dataclass(frozen=True, kw_only=True)
class LoadedModel(KnownModel):
    """A model in eval mode, on a GPU where there is one."""

    model: PreTrainedModel

    @cached_property
    def predict(self) -> Predictor:
        return Predictor(self.model)

    def stream(
        self,
        requests: Iterable[Request],
        batch_size: int,
        *,
        settings: SamplerSettings | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (number of the request, its answer) as answers are finished.

        See sampling.generate.stream.
        """
        chosen = settings or self.settings
        return stream(self.predict, requests, self.vocabulary, chosen, batch_size, on_step)


def load_for_sampling(
    name: str, given: Mapping[str, Any] | None = None, base: str = ""
) -> LoadedModel:
    """Load the model that a person named; see know_model and load_weights."""
    return load_weights(know_model(name, given, base))


def find_model(name: str) -> str:
    """Return the model folder or hub id that `name` means.

    A run folder means its fused model, or its last checkpoint; that of a run of stages, the newest
    stage's. Raises JobError (exit 4) where there is none.
    """
    folder = Path(name).expanduser()
    folder = newest_stage(folder) or folder
    if not (folder / "run.json").exists():
        refuse_missing_path("model", name)
        return local_path(name)
    if (folder / "fused").is_dir():
        return str(folder / "fused")
    if checkpoints := RunFolder(folder).checkpoints():
        return str(checkpoints[-1])
    raise model_error(
        "model",
        "a run folder with a fused model or a checkpoint",
        name,
        "Did the run end before its first save?",
    )


def know_model(name: str, given: Mapping[str, Any] | None = None, base: str = "") -> KnownModel:
    """Read all of a model but its weights.

    `given` settings go over the saved ones; `base` is that of an adapter, see find_base. Raises
    JobError (exit 4) for anything but a masked-diffusion or causal model of a known family with a
    mask token, (exit 2) for settings that it cannot have.
    """
    path = find_model(name)
    facts = read_facts(Path(path))
    with renamed_field("model", "base"):
        given_base = find_model(base) if base else ""
    with _named_model():
        on = _base(Path(path), facts, given_base) if _is_adapter(Path(path), facts) else None
        if base and not on:
            raise JobError(Problem("base", "no base with a full model", base, "Leave it out."))
        config = load_config(on.name if on else path)
        if on:
            set_attention(config, facts.method, facts.block)
        # An adapter of another tool has no tokenizer of its own.
        own = not on or (Path(path) / "tokenizer_config.json").is_file()
        family = FAMILIES[config.model_type]
        tokenizer = load_tokenizer(path if own or not on else on.name, family=family)
        check_pair(config, tokenizer, 0)
        chat = ChatFormat(tokenizer)
    settings = _settings(config, facts.sampler, given or {})
    return KnownModel(path=path, base=on, config=config, chat=chat, facts=facts, settings=settings)


def load_weights(known: KnownModel) -> LoadedModel:
    """Load a model's weights. Raises JobError (exit 4)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _named_model():
        if known.base:
            model = merged_model(
                known.base.name,
                Path(known.path),
                four_bit=known.base.four_bit,
                dtype=getattr(torch, known.base.dtype),
                tokenizer=known.chat.tokenizer,
            )
        else:
            saved = known.config.dtype
            half = device.type == "cuda" and isinstance(saved, torch.dtype)
            dtype = cast("torch.dtype", saved) if half else torch.float32
            model = load_model(known.path, config=known.config, dtype=dtype)
    parts = {field.name: getattr(known, field.name) for field in fields(known)}
    return LoadedModel(**{**parts, "config": model.config}, model=cast("Any", model).to(device))


def _is_adapter(folder: Path, facts: ModelFacts) -> bool:
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    return facts.base is not None or not (folder / "config.json").is_file()


def _base(path: Path, facts: ModelFacts, given: str) -> AdapterBase:
    """Return the base of an adapter, under a name that can be loaded."""
    if facts.base:
        return facts.base.model_copy(update={"name": find_base(path, facts.base, given)})
    if not given:
        got = f"{path}, an adapter that does not say on which model it was trained"
        raise model_error("model", "a full model", got, "Name that model with --base.")
    return AdapterBase(name=given)


@contextmanager
def _named_model() -> Generator[None]:
    """Report problems of a trainer's parameters under the name of the word that was typed."""
    with renamed_field("model_name", "model"), renamed_field("tokenizer_name", "model"):
        yield


def _settings(
    config: PretrainedConfig, saved: SamplerSettings, given: Mapping[str, Any]
) -> SamplerSettings:
    pattern, block = attention_pattern(config), block_facts(config)
    wrong = [_useless(pattern, name, value) for name, value in given.items()]
    if any(wrong):
        raise JobError(*filter(None, wrong))
    if pattern == "causal":
        return changed(token_by_token(saved.max_new_tokens), given)
    if block and not saved.grid:  # of another tool
        return changed(block_by_block(saved.max_new_tokens, block.size), given)
    return changed(saved, given)


def _useless(pattern: Pattern, name: str, value: Any) -> Problem | None:
    """Return what is wrong with a setting that means nothing to a model of this attention."""
    model = f"{_KIND[pattern]} model"
    if name == "cache" and value not in _CACHES[pattern]:
        fix = (
            "Its keys change with every token." if value == "exact" else "exact changes no answer."
        )
        return Problem(name, f"{' or '.join(_CACHES[pattern])} with {model}", value, fix)
    if pattern == "causal" and name not in OF_CAUSAL:
        fix = "It writes from left to right, one token a step."
        return Problem(name, f"no {name} with {model}", str(value), fix)
    if pattern == "block" and name in ("cfg", "cfg_prompt"):
        fix = "It is never trained without its prompt."
        return Problem(name, f"no {name} with {model}", str(value), fix) if value else None
    return None
