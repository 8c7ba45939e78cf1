"""Choice of layout, attention and compilation from parameters, model and device."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from ..base.errors import JobError, Problem
from ..config.methods import METHODS
from ..config.params import Params
from ..data.documents import Documents
from ..data.packing import Layout, check_budget
from ..models.attention import why_no_flex, why_no_varlen
from ..models.backbones import check_packable, is_packable
from ..training.step import StepRules
from .choice import Choice
from .heaviest import lengths_of


@dataclass(frozen=True)
class Attention:
    """Layout of documents, and the attention that keeps them apart."""

    layout: Layout
    backend: str | None  # of a packed run, see models/attention.py; None pads
    why: str


# Mean document length, in tokens, below which padding is faster than a loop over documents on a
# CPU. Measured on two cores with tiny ModernBERTs: packed 0.84 of padded speed at a mean of 26 tokens,
# 1.29 at 92.
SHORT = 56


def choose_attention(
    params: Params,
    config: PretrainedConfig,
    device: torch.device,
    compute: torch.dtype,
    mean_length: float,
    *,
    always_packed: bool = False,
) -> Attention:
    """Choose packed or padded rows, and the attention, for documents of `mean_length` tokens.

    `packing auto` packs where documents stay apart and it was measured to be faster: on a CPU
    unless they are short, and with varlen on a GPU. `always_packed`: steps are packs.
    Raises JobError (exit 2) for what this device or model cannot do.
    """
    tokens = None if params.tokens_per_batch == "auto" else params.tokens_per_batch
    if METHODS[params.training_method].blocks:
        return _of_blocks(params, config, device, Layout(True, None if always_packed else tokens))
    asked, no_varlen = params.attn_implementation, why_no_varlen(config, device, compute)
    can_pack = is_packable(config.model_type) and asked != "eager"
    if always_packed and (params.packing == "off" or not can_pack):
        got = (
            "packing off"
            if params.packing == "off"
            else f"{config.model_type} with {asked} attention"
        )
        field, fix = "streaming", "Set streaming false, or let it pack."
        if not params.streaming:
            field, fix = "dataset_name", "A prepared folder is trained on in packs: let it pack."
        raise JobError(Problem(field, "documents that can be packed", got, fix))
    packing = "on" if always_packed else params.packing
    if packing == "on":
        check_packable(config.model_type)
    found: list[Problem] = []
    if asked == "varlen" and (no_varlen or packing == "off" or not can_pack):
        got = f"varlen; {no_varlen or 'it is for packed documents, and these are padded'}"
        found.append(
            Problem(
                "attn_implementation",
                "an attention that can run here",
                got,
                "Set attn_implementation auto.",
            )
        )
    if packing == "on" and asked == "eager":
        found.append(
            Problem(
                "attn_implementation",
                "auto, sdpa or varlen for packed documents",
                "eager",
                "Or set packing off.",
            )
        )
    if found:
        raise JobError(*found)

    def padded(why: str) -> Attention:
        return Attention(Layout(False, tokens), None, f"{asked}, padded rows: {why}")

    def packed(backend: str, why: str) -> Attention:
        return Attention(Layout(True, tokens), backend, f"{asked}, packed documents: {why}")

    if packing == "off":
        return padded("packing is off")
    if not can_pack:
        return padded(f"{config.model_type} with {asked} attention cannot be packed")
    if device.type != "cuda" and packing == "auto" and mean_length < SHORT:
        return padded(f"documents of {mean_length:.0f} tokens are too short to pay for packing")
    if device.type != "cuda":
        return packed("loop", "sdpa on each document, those of one length together")
    if asked != "sdpa" and not no_varlen:
        return packed("varlen", "flash attention over documents of any length (varlen)")
    lacks = f"no varlen: {no_varlen}" if no_varlen else "sdpa, as chosen"
    return packed("dense", f"a mask of all pairs ({lacks})") if packing == "on" else padded(lacks)


def _of_blocks(
    params: Params, config: PretrainedConfig, device: torch.device, layout: Layout
) -> Attention:
    """Choose the attention of rows with noisy copies, which are always packed; see
    config/rules/blocks.py for what is refused.
    """
    asked = params.attn_implementation
    lacks = "a CPU" if device.type != "cuda" else _why_no_compile(device)
    lacks = lacks or why_no_flex(config, device)
    if asked == "sdpa" or lacks:
        why = lacks or "as chosen"
        return Attention(layout, "loop", f"{asked}, packed rows: a mask for each document ({why})")
    return Attention(layout, "flex", f"{asked}, packed rows: flex attention over their blocks")


def estimated_backend(
    attention: Attention, config: PretrainedConfig, device: torch.device, compute: torch.dtype
) -> str | None:
    """Return the backend by which memory is estimated, on documents without noisy copies.

    flex keeps what varlen keeps: queries, keys, values, the result, and a number for each query and
    head.
    """
    if attention.backend != "flex":
        return attention.backend
    return "loop" if why_no_varlen(config, device, compute) else "varlen"


def choose_compile(params: Params, device: torch.device) -> Choice[bool]:
    """Choose whether the layers are compiled.

    Raises JobError (exit 2) for `on` where nothing can compile.
    """
    lacks = _why_no_compile(device)
    if params.compile == "on" and lacks:
        raise JobError(
            Problem(
                "compile", "a machine that can compile", lacks, "Install it, or set compile auto."
            )
        )
    if params.compile != "auto":
        return Choice(params.compile == "on", "as chosen")
    if device.type != "cuda":
        return Choice(False, "a CPU compiles for half a minute and gains little")
    if params.recompute == "selective":
        return Choice(
            False, "recompute selective keeps single operations, and compiled layers have none"
        )
    why = lacks or "each layer, once; a layer that does not compile runs as it is"
    return Choice(not lacks, why)


def check_graphs(params: Params, device: torch.device, ranks: int, backend: str | None) -> None:
    """Refuse CUDA graphs where nothing can be captured. Raises JobError (exit 2)."""
    if not params.cuda_graphs:
        return
    fix = "Set cuda_graphs false."
    if device.type != "cuda":
        raise JobError(Problem("cuda_graphs", "a GPU", "a CPU", fix))
    if ranks > 1:
        raise JobError(Problem("cuda_graphs", "one GPU", f"{ranks} processes", fix))
    if backend != "varlen":
        got = backend or "padded rows"
        raise JobError(Problem("cuda_graphs", "packed documents with varlen attention", got, fix))


def _why_no_compile(device: torch.device) -> str:
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    compilers = ("g++", "clang++") if device.type == "cpu" else ("gcc", "clang", "cc")
    return (
        ""
        if any(map(shutil.which, compilers))
        else f"no C compiler ({' or '.join(compilers)}) is installed"
    )


def check_fits(documents: Documents, rules: StepRules, layout: Layout) -> None:
    """Raise JobError (exit 2) when a document with its end tokens does not fit a micro-batch."""
    if layout.tokens and len(documents):
        check_budget(int(lengths_of(documents, rules).max()), layout)
