"""Training methods, one row each. What a method learns is in objectives/<name>.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .families import DECODERS


@dataclass(frozen=True, kw_only=True)
class Method:
    """Facts of a method that the rest of the program reads."""

    name: str  # the value of training_method
    summary: str  # for the form and the help
    families: tuple[str, ...]  # model_type of the models that it trains, see families.py
    norm: str  # what its authors divide the loss by; `loss_norm: auto` reads it
    options: tuple[str, ...] = ()  # parameters that belong to it alone
    ignored: tuple[str, ...] = ()  # parameters of every other method that it has no use for
    causal: bool = False  # each token sees those before it, and is predicted from them
    blocks: bool = False  # denoised block by block, each on the clean blocks before it
    on_form: bool = True  # forms offer it
    pipeline_tag: str = "text-generation"  # the task by which hubs and hosts list its models

    @property
    def predicted(self) -> float:
        """Return the share of supervised tokens in a step's loss: times are even over 0 to 1."""
        return 1.0 if self.causal else 0.5


BASELINE = "causal"  # next-token prediction, with whose compute that of other methods is compared
METHODS = {
    method.name: method
    for method in (
        Method(
            name="bert",
            summary="masked diffusion on BERT encoders",
            families=("bert", "roberta", "modernbert"),
            norm="token",
            pipeline_tag="fill-mask",
        ),
        Method(
            name="dream",
            summary="shifted logits and CART weights",
            families=("Dream",),
            norm="masked",
            options=("perbatch_cutoff", "resp_cutoff_ratio", "loss_weight_type"),
        ),
        Method(
            name="llada",
            summary="LLaDA's objective",
            families=("llada", *DECODERS),
            norm="sequence",
        ),
        Method(
            name="block",
            summary="any causal LM (Qwen, Llama), denoised block by block",
            families=DECODERS,
            norm="token",
            options=(
                "block_size",
                "block_views",
                "clean_context",
                "block_shift",
                "block_schedule",
                "noise_warmup_steps",
                "mask_half_life",
                "ar_loss_weight",
            ),
            ignored=("complementary", "prompt_drop", "eos_policy", "eos_block_length"),
            blocks=True,
        ),
        Method(
            name=BASELINE,
            summary="next-token prediction, the baseline",
            families=("llada", "Dream", *DECODERS),
            norm="token",
            ignored=(
                "noise_schedule",
                "t_sampling",
                "mask_count",
                "t_min",
                "t_max",
                "complementary",
                "prompt_drop",
                "eos_policy",
                "eos_block_length",
                "certainty_weight",
            ),
            causal=True,
            on_form=False,
        ),
    )
}
DEFAULT_METHOD = "bert"

ON_FORM = tuple(method.name for method in METHODS.values() if method.on_form)


def summaries(names: Iterable[str]) -> str:
    """Return a sentence on each of these methods."""
    return " ".join(f"{name}: {METHODS[name].summary}." for name in names)


def methods_of(family: str) -> list[str]:
    """Return the methods that train models of a family."""
    return [method.name for method in METHODS.values() if family in method.families]


def methods_with(option: str) -> list[str]:
    """Return the methods that a parameter belongs to; none for a parameter of every method."""
    return [method.name for method in METHODS.values() if option in method.options]


def pipeline_tag(method: str) -> str:
    """Return the task by which hubs and hosts list a model of this method."""
    return METHODS[method].pipeline_tag if method in METHODS else Method.pipeline_tag
