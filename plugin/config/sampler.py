"""Settings of the sampler: their bounds, the rules between them, their options on a command line.

A model is saved with those that its training asks for; `chat`, `sample` and `evaluate` change them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..base.errors import JobError, Problem

# How sure a token is, in the order in which a step reveals tokens. Of Dream's names, `origin` alone
# reveals without an order: each masked token with the probability 1 / (steps left).
STRATEGIES = ("low_confidence", "random", "topk_margin", "entropy", "maskgit_plus", "origin")
# Strategies whose confidence is a probability, as `threshold` and `factor` need.
PROBABILITIES = ("low_confidence", "maskgit_plus")
# `exact` is that of causal and of block models, the three before it are those of full attention.
CACHES = ("none", "prompt", "prefix", "dual", "exact")
CFG_PROMPTS = ("masked", "dropped")
UNTYPED = ("grow", "grid")  # settings that are a model's own: nobody types them
RULES = ("threshold", "factor", "entropy_bound")  # a step reveals as many tokens as are sure enough


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Settings of the sampler; saved with the model, because they depend on its training."""

    max_new_tokens: int = 128
    block_length: int = 32
    # Most denoising steps of one block: block_length reveals one token a step, or more where a rule
    # (`threshold`, `factor`, `entropy_bound`) finds several sure enough.
    steps: int = 32
    # The canvas ends with the current block (eos_policy block); else it spans max_new_tokens from
    # the start.
    grow: bool = True
    # Blocks lie on the document's grid: a prompt's last, incomplete block is the answer's first. A
    # block model's do, because its attention has blocks.
    grid: bool = False
    strategy: str = "low_confidence"
    temperature: float = 0.0  # of the tokens; 0 takes the likeliest
    alg_temp: float = 0.0  # of the order of revealing, Dream's name; 0 takes the surest
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    threshold: float | None = None  # reveal what is likelier than it (Fast-dLLM)
    factor: float | None = None  # reveal the most n with (n + 1)(1 - n-th probability) < factor
    entropy_bound: float | None = None  # nats that the tokens revealed before may sum to
    cfg: float = 0.0  # scale of classifier-free guidance
    cfg_prompt: str = "masked"  # how the unguided half loses its prompt
    cache: str = "none"  # keys and values that a step keeps from an earlier one
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError naming every setting out of its bounds: a file may hold anything."""
        wrong = [
            f"{name}: expected {option.expected}, got {value!r}"
            for name, option in _OPTIONS.items()
            if (value := getattr(self, name)) is not None and not option.takes(value)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


def token_by_token(longest: int) -> SamplerSettings:
    """Return the settings of a causal model: each block is the next token."""
    return SamplerSettings(max_new_tokens=longest, block_length=1, steps=1, cache="exact")


def block_by_block(longest: int, size: int) -> SamplerSettings:
    """Return the settings of a block model whose blocks have `size` tokens."""
    return SamplerSettings(
        max_new_tokens=longest, block_length=size, steps=size, grid=True, cache="exact"
    )


@dataclass(frozen=True, kw_only=True)
class _Option:
    """An option of the command line and the values that it takes."""

    text: str
    kind: type[int] | type[float] | type[str] = float
    least: float = 0.0
    most: float = math.inf
    above: bool = False  # `least` itself is refused
    below: bool = False  # `most` itself is refused
    choices: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        noun = "a whole number" if self.kind is int else "a number"
        if self.most == math.inf:
            return f"{noun} {'above' if self.above else 'from'} {self.least:g}" + (
                "" if self.above else " up"
            )
        low = "above" if self.above else "from"
        high = "below" if self.below else "up to"
        most = self.most if self.kind is int else f"{self.most:g}"
        return f"{noun} {low} {self.least:g} and {high} {most}"

    def takes(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return math.isfinite(value) and low and high

    def read(self, text: str) -> Any:
        """Return the value of `text`. Raises ValueError for one that the option does not take."""
        value = self.kind(text)
        if not self.takes(value):
            raise ValueError(text)
        return value


_OPTIONS = {
    "max_new_tokens": _Option(text="longest answer", kind=int, least=1),
    "block_length": _Option(text="tokens of a block", kind=int, least=1),
    "steps": _Option(text="most denoising steps of a block", kind=int, least=1),
    "strategy": _Option(text="order in which tokens are revealed", kind=str, choices=STRATEGIES),
    "temperature": _Option(text="of the tokens; 0 takes the likeliest"),
    "alg_temp": _Option(text="temperature of the order of revealing"),
    "top_p": _Option(text="draw from the likeliest tokens that sum to this", above=True, most=1.0),
    "top_k": _Option(text="draw from this many tokens; 0: all", kind=int),
    "threshold": _Option(
        text="reveal every token likelier than this", above=True, most=1.0, below=True
    ),
    "factor": _Option(
        text="reveal the most n with (n + 1)(1 - n-th probability) below it", above=True
    ),
    "entropy_bound": _Option(text="reveal the surest while their entropies sum to this, in nats"),
    "cfg": _Option(text="scale of classifier-free guidance; 0: none"),
    "cfg_prompt": _Option(text="the prompt of the unguided half", kind=str, choices=CFG_PROMPTS),
    "cache": _Option(
        text="keys and values kept: of the prompt, before the block, or all but the block; exact: "
        "of a causal or block model",
        kind=str,
        choices=CACHES,
    ),
    "seed": _Option(text="of every random draw", kind=int, most=2**63 - 1),
}


def add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting; its value stays text until sampler_overrides reads it."""
    group = parser.add_argument_group("sampler (default: what the model was saved with)")
    for name, option in _OPTIONS.items():
        group.add_argument(f"--{name}", metavar="X", help=_help(option))


def _help(option: _Option) -> str:
    chosen = f" ({', '.join(option.choices)})" if option.choices else ""
    return (option.text + chosen).replace("%", "%%")


def setting_help(name: str) -> tuple[str, tuple[str, ...]]:
    """Return what a setting means with the values that it takes, and its choices if it has any."""
    option = _OPTIONS[name]
    text = option.text if option.choices else f"{option.text} ({option.expected})"
    return text, option.choices


def read_setting(name: str, text: str) -> Any:
    """Return the value of a setting. Raises JobError (exit 2) naming it."""
    option = _OPTIONS[name]
    try:
        return option.read(text)
    except ValueError as error:
        raise JobError(Problem(name, option.expected, text)) from error


def sampler_overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were typed.

    Raises JobError (exit 2) naming every wrong one, and those that contradict each other.
    """
    given, problems = dict[str, Any](), list[Problem]()
    for name in _OPTIONS:
        if (text := vars(options)[name]) is not None:
            try:
                given[name] = read_setting(name, text)
            except JobError as error:
                problems += error.problems
    if problems:
        raise JobError(*problems)
    changed(SamplerSettings(), given)
    return given


def changed(saved: SamplerSettings, given: Mapping[str, Any]) -> SamplerSettings:
    """Return saved settings with those that were given over them.

    A rule that is given replaces a saved one, `entropy_bound` orders by entropy, and `steps`
    follows a block_length that is given alone. Raises JobError (exit 2) naming every contradiction.
    """
    follows: dict[str, Any] = {}
    if any(rule in given for rule in RULES):
        follows |= dict.fromkeys(RULES)
    if "entropy_bound" in given:
        follows["strategy"] = "entropy"
    if "block_length" in given:
        follows["steps"] = given["block_length"]
    settings = replace(saved, **(follows | dict(given)))
    if problems := _conflicts(settings, given):
        raise JobError(*problems)
    return settings


def _conflicts(settings: SamplerSettings, given: Mapping[str, Any]) -> list[Problem]:
    found: list[Problem] = []
    rules = [rule for rule in RULES if getattr(settings, rule) is not None]
    if len(rules) > 1:
        found.append(
            Problem(rules[1], f"one rule of {', '.join(RULES)}", " and ".join(rules), "Keep one.")
        )
    for rule in ("threshold", "factor"):
        if rule in rules and settings.strategy not in PROBABILITIES:
            fix = "Its confidence is no probability."
            able = " or ".join(PROBABILITIES)
            found.append(Problem("strategy", f"{able} with {rule}", settings.strategy, fix))
    if "entropy_bound" in rules and settings.strategy != "entropy":
        fix = "It reveals in the order of entropy."
        found.append(Problem("strategy", "entropy with entropy_bound", settings.strategy, fix))
    if settings.alg_temp and (rules or settings.strategy in ("random", "origin")):
        other = rules[0] if rules else f"strategy {settings.strategy}"
        found.append(
            Problem("alg_temp", f"0 with {other}", f"{settings.alg_temp:g}", "It orders nothing.")
        )
    for name, none in (("top_p", 1.0), ("top_k", 0)):
        value = getattr(settings, name)
        if value != none and not settings.temperature:
            fix = "At temperature 0 the likeliest token is taken."
            found.append(Problem("temperature", f"a value above 0 with {name}", "0", fix))
    if "cfg_prompt" in given and not settings.cfg:
        found.append(Problem("cfg", "a scale above 0 with cfg_prompt", "0", "Give --cfg."))
    return found


assert set(_OPTIONS) == {field.name for field in fields(SamplerSettings)} - {*UNTYPED}
