"""Published model folders: weights, tokenizer, code, facts of training and sampling, and a card."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from ..base.errors import one_line
from ..base.redact import redact
from ..config.families import DECODERS
from ..config.methods import METHODS, pipeline_tag
from ..config.model_files import INSIDE_RUN, is_own_file, read_json
from ..run.facts import DIFFUSION_FILE, ModelFacts
from .checks.digest import local_folder
from .code_files import write_code_files
from .configuration import block_facts
from .decoders.sdar import BLOCK_FILE, block_file, is_served, serving_lines
from .lora import ADAPTER_CONFIG, MaybeAdapted, has_adapter

_OF_THIS_MACHINE = (
    "local_files_only",
    "is_local",
    "name_or_path",
    "trust_remote_code",
    "use_fast",
    "_commit_hash",
)
_LICENCES = (
    "The base model's and the data's licences apply; check both before you share this {what}."
)


def write_model(
    folder: Path,
    model: MaybeAdapted,
    tokenizer: PreTrainedTokenizerBase,
    facts: ModelFacts,
    *,
    base: str = "",
) -> None:
    """Write weights, configuration, code, tokenizer and `diffusion.json` into a new folder.

    Weights are safetensors; of a model with an adapter, the adapter's alone. Code files are copied
    from `base`, the folder or hub id that the model was made from. No file names a local path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapter(model):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()  # peft's is an empty form
        _rewrite(folder / ADAPTER_CONFIG, _portable_adapter)
    else:
        model.save_pretrained(folder)
        write_code_files(folder, local_folder(base) if base else None)
        if model.config.model_type == "sdar" and block_facts(model.config):
            (folder / BLOCK_FILE).write_text(block_file(model.config), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "tokenizer_config.json", _portable_tokenizer)
    (folder / DIFFUSION_FILE).write_text(
        redact(json.dumps(facts.content(), indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
    )


def copy_generation_settings(folder: Path, base: str) -> None:
    """Copy the base's generation settings, if it has its own, and name a causal LM's mask in them."""
    if base and is_own_file(own := local_folder(base) / GENERATION_CONFIG_NAME):
        shutil.copy(own, folder)
    config, file = read_json(folder / "config.json"), folder / GENERATION_CONFIG_NAME
    if config["model_type"] in DECODERS and file.is_file() and "mask_token_id" in config:
        _rewrite(file, lambda fields: fields | {"mask_token_id": config["mask_token_id"]})


def write_encoder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a masked LM's encoder, without its head, and the tokenizer: as AutoModel loads them.

    No file names a local path.
    """
    encoder: Any = model.base_model
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "tokenizer_config.json", _portable_tokenizer)


def _rewrite(file: Path, change: Any) -> None:
    fields = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(
        json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


def _portable_adapter(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace the base's path and drop the class that loaded it, which peft records."""
    return fields | {
        "base_model_name_or_path": public_name(str(fields["base_model_name_or_path"])),
        "auto_mapping": None,
    }


def _portable_tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """Drop the options of this machine, which transformers records, and code not published."""
    kept = {
        key: value
        for key, value in fields.items()
        if key not in (*_OF_THIS_MACHINE, "auto_map")
        and not (isinstance(value, str) and os.path.isabs(value))
    }
    if kept.get("tokenizer_class") == "TokenizersBackend":  # transformers 4 lacks this name
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept


def public_name(name: str) -> str:
    """Return a model's name without private paths.

    A hub id stays; a path becomes its last part, or RUN/fused for the model of a run.
    """
    path = Path(name).expanduser()
    if not (path.is_absolute() or name.startswith(("~", ".")) or path.exists()):
        return name
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if INSIDE_RUN.fullmatch(path.name) else path.name


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write README.md: the model, its training and evaluation, and its use here and elsewhere."""
    method, base = facts["method"], facts["table"].get("base model", "")
    lines = [
        *_front_matter(
            base,
            library_name="transformers",
            pipeline_tag=pipeline_tag(method),
            tags=_tags(method),
        ),
        f"# {_as_text(facts['name'])}",
        "",
        f"{_kind(method)} language model, trained by {_training(method)} (method `{method}`).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_as_text(value)} |" for key, value in facts["table"].items()),
        "",
        *_evaluation(facts["metrics"]),
        "## Use",
        "",
        "```",
        "python main.py chat FOLDER",
        "```",
        "",
        *_elsewhere(folder),
        "",
        _LICENCES.format(what="model"),
        "",
    ]
    (folder / "README.md").write_text(redact("\n".join(lines)), encoding="utf-8")


def _is_causal(method: str) -> bool:
    return method in METHODS and METHODS[method].causal


def _kind(method: str) -> str:
    return "A causal" if _is_causal(method) else "A text-diffusion"


def _training(method: str) -> str:
    return "next-token prediction" if _is_causal(method) else "masked diffusion"


def _tags(method: str) -> list[str]:
    return [] if _is_causal(method) else ["masked-diffusion", "text-diffusion"]


def write_adapter_card(folder: Path, facts: ModelFacts) -> None:
    """Write an adapter's README.md, which names its base."""
    base, method = facts.base, facts.method
    assert base, "every adapter has a base"
    assert method, "this program trained it"
    bits = ", as 4-bit weights" if base.four_bit else ""
    tag = pipeline_tag(method)
    lines = [
        *_front_matter(
            base.name, library_name="peft", pipeline_tag=tag, tags=[*_tags(method), "lora"]
        ),
        "# LoRA adapter",
        "",
        f"Trained by {_training(method)} (method `{method}`) on {_as_code(base.name)}{bits}.",
        "It is not a model by itself. It fits exactly these weights, whose digest is in "
        "`diffusion.json`.",
        "",
        "```",
        "python main.py chat FOLDER --base BASE",
        "python main.py fuse --adapter FOLDER --model_name BASE --out MODEL",
        "```",
        "",
        _LICENCES.format(what="adapter"),
        "",
    ]
    (folder / "README.md").write_text(redact("\n".join(lines)), encoding="utf-8")


def _front_matter(base: str, **fields: Any) -> list[str]:
    """Return the card's YAML header.

    It names a base only by a hub id, because hubs read the field as an id.
    """
    known = (
        {"base_model": base}
        if base.count("/") == 1 and not INSIDE_RUN.fullmatch(base.split("/")[1])
        else {}
    )
    return ["---", *ModelCardData(**known, **fields).to_yaml().splitlines(), "---"]


def _elsewhere(folder: Path) -> list[str]:
    """Return the card's lines on loading the model in a program without this plugin."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] in DECODERS:
        return _of_causal_lm(config)
    code = sorted({str(value).split(".")[0] for value in config.get("auto_map", {}).values()})
    if not code:
        return ["Plain transformers loads it: `AutoModelForMaskedLM.from_pretrained(FOLDER)`."]
    files = ", ".join(f"`{name}.py`" for name in code)
    return [
        f"Plain transformers loads it with the code in this folder ({files} and the files that it "
        "imports). Read that code before you allow it to run:",
        "`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.",
    ]


def _of_causal_lm(config: dict[str, Any]) -> list[str]:
    """Return what transformers makes of a causal LM that may have learned another attention."""
    loads = "Plain transformers loads it: `AutoModelForCausalLM.from_pretrained(FOLDER)`"
    if config["model_type"] == "sdar":  # no Auto class of plain transformers knows it
        loads = (
            "Its layers are Qwen3's. Plain transformers loads them: `Qwen3ForCausalLM.from_pretrained"
            "(FOLDER)`, `PreTrainedTokenizerFast.from_pretrained(FOLDER)`"
        )
    if config.get("block_size"):
        return [*_of_blocks(config, loads), *(serving_lines(config) if is_served(config) else [])]
    if not config.get("is_causal", True):
        return [
            f"{loads}. Its attention is full, by `is_causal: false` in config.json, and place i of "
            f"its logits predicts token i. {_mask_words(config)}",
            "Its `generate` writes from left to right, for which the model was not trained.",
        ]
    return [f"{loads}, and its `generate` writes text."]


def _of_blocks(config: dict[str, Any], loads: str) -> list[str]:
    """Return all that another program has to know to sample from a block model."""
    causal = config.get("clean_context") == "causal"
    finished = "itself and the tokens before it" if causal else "its block and those before it"
    predicted = "i + 1" if config.get("block_shift") else "i"
    return [
        f"It is denoised block by block, {config['block_size']} tokens at a time, each block on the "
        "clean text before it. `chat`, `sample` and `evaluate` of this program do so.",
        "",
        f"{loads}. It knows nothing of blocks: a forward without a mask of pairs of your own is "
        "causal, and its `generate` writes from left to right, for which the model was not trained. "
        f"{_mask_words(config)}",
        "",
        "Blocks are counted from the first token of the prompt, so that its last tokens may open the "
        "block that is denoised first. A token of the block being denoised sees that block and those "
        f"before it; a token of a finished block sees {finished}. Place i of the "
        f"logits predicts token {predicted}.",
        "",
    ]


def _mask_words(config: dict[str, Any]) -> str:
    return f"Its mask token is id {config['mask_token_id']}, which is no output."


def _evaluation(metrics: dict[str, float]) -> list[str]:
    rows = [
        f"| {key} | {f'{value:g}' if float(value).is_integer() else f'{value:.4f}'} |"
        for key, value in metrics.items()
    ]
    return ["## Evaluation", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []


def _as_code(name: str) -> str:
    return "`" + one_line(name).replace("`", "'") + "`"


def _as_text(value: object) -> str:
    """Escape a name or a figure for Markdown, so that it makes no link, image or column."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~])", r"\\\1", one_line(str(value)))
