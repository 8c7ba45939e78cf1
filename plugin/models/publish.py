"""A model folder that works by itself: weights, tokenizer, code, how it was trained and is sampled,
and a card for people.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedTokenizerBase

from ..base.errors import model_error, one_line
from ..base.redact import redact
from ..config.families import pipeline_tag
from ..config.model_files import read_small
from .code_files import write_code_files
from .identity import local_folder
from .lora import ADAPTER_CONFIG, MaybeAdapted, has_adapter

DIFFUSION_FILE = (
    "diffusion.json"  # method, noise, loss weighting, end-of-answer policy, sampler settings
)
_OF_THIS_MACHINE = (
    "local_files_only",
    "is_local",
    "name_or_path",
    "trust_remote_code",
    "use_fast",
    "_commit_hash",
)
_TAGS = ["masked-diffusion", "text-diffusion"]
_INSIDE_RUN = re.compile(
    r"fused|adapter|checkpoint-\d+"
)  # folders of a run that say little without its name
_LICENCES = (
    "The base model's and the data's licences apply; check both before you share this {what}."
)


def write_model(
    folder: Path,
    model: MaybeAdapted,
    tokenizer: PreTrainedTokenizerBase,
    diffusion: dict[str, Any],
    *,
    base: str = "",
) -> None:
    """Write safetensors weights (an adapter's alone, if there is one), configuration, code,
    tokenizer and `diffusion.json`.

    `base`: the folder or hub id that the model was made of, whose own code files are copied.
    Nothing written names a path of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapter(model):
        model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()  # peft's is a form that nobody fills in
        _rewrite(folder / ADAPTER_CONFIG, _portable_adapter)
    else:
        model.save_pretrained(folder)
        write_code_files(folder, local_folder(base) if base else None)
    tokenizer.save_pretrained(folder)
    _rewrite(folder / "tokenizer_config.json", _portable_tokenizer)
    (folder / DIFFUSION_FILE).write_text(
        redact(json.dumps(diffusion, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8"
    )


def _rewrite(file: Path, change: Any) -> None:
    fields = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(
        json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


def _portable_adapter(fields: dict[str, Any]) -> dict[str, Any]:
    """peft records where the base lay and which of our modules held its class; neither means
    anything elsewhere.
    """
    return fields | {
        "base_model_name_or_path": public_name(str(fields["base_model_name_or_path"])),
        "auto_mapping": None,
    }


def _portable_tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """transformers records how it loaded a tokenizer as if that belonged to it; its code files are
    not in this folder.
    """
    kept = {
        key: value
        for key, value in fields.items()
        if key not in (*_OF_THIS_MACHINE, "auto_map")
        and not (isinstance(value, str) and os.path.isabs(value))
    }
    if (
        kept.get("tokenizer_class") == "TokenizersBackend"
    ):  # a name of transformers 5; 4 and 5 know this one
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept


def public_name(name: str) -> str:
    """A model's name as a stranger may read it: a hub id as it is, of a path its end (RUN/fused for
    a run's model).
    """
    path = Path(name).expanduser()
    if not (path.is_absolute() or name.startswith(("~", ".")) or path.exists()):
        return name
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if _INSIDE_RUN.fullmatch(path.name) else path.name


def read_diffusion(folder: Path) -> dict[str, Any]:
    """The contents of `diffusion.json`; empty for a model that another tool made.

    Raise JobError (exit 4) for a broken one.
    """
    file = folder / DIFFUSION_FILE
    try:
        return dict(json.loads(read_small(file))) if file.exists() else {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise model_error(
            "model", f"a readable {DIFFUSION_FILE}", f"{file}: {str(error)[:200]}"
        ) from error


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """README.md: the model, what it was trained on and how, its evaluation, how to talk to it and
    load it elsewhere.
    """
    method, base = facts["method"], facts["table"].get("base model", "")
    lines = [
        *_front_matter(
            base, library_name="transformers", pipeline_tag=pipeline_tag(method), tags=_TAGS
        ),
        f"# {_as_text(facts['name'])}",
        "",
        f"A text-diffusion language model, trained by masked diffusion (method `{method}`).",
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


def write_adapter_card(folder: Path, diffusion: dict[str, Any]) -> None:
    """README.md of an adapter, which says what it belongs to."""
    base = diffusion["base"]
    bits = ", as 4-bit weights" if base["four_bit"] else ""
    tag = pipeline_tag(diffusion["method"])
    lines = [
        *_front_matter(base["name"], library_name="peft", pipeline_tag=tag, tags=[*_TAGS, "lora"]),
        "# LoRA adapter",
        "",
        f"Trained by masked diffusion (method `{diffusion['method']}`) on {_as_code(base['name'])}{bits}.",
        "It is no model by itself: it belongs to exactly these weights, whose digest `diffusion.json` holds.",
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
    """The card's YAML header.

    A base is named there only by a hub id: hubs read the field as one.
    """
    known = (
        {"base_model": base}
        if base.count("/") == 1 and not _INSIDE_RUN.fullmatch(base.split("/")[1])
        else {}
    )
    return ["---", *ModelCardData(**known, **fields).to_yaml().splitlines(), "---"]


def _elsewhere(folder: Path) -> list[str]:
    """Say how a program without this one loads the model, from the files in its folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    code = sorted({str(value).split(".")[0] for value in config.get("auto_map", {}).values()})
    if not code:
        return ["Plain transformers loads it: `AutoModelForMaskedLM.from_pretrained(FOLDER)`."]
    files = ", ".join(f"`{name}.py`" for name in code)
    return [
        f"Plain transformers loads it with the code in this folder ({files}), which you should read before you allow it to run:",
        "`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.",
    ]


def _evaluation(metrics: dict[str, float]) -> list[str]:
    rows = [
        f"| {key} | {f'{value:g}' if float(value).is_integer() else f'{value:.4f}'} |"
        for key, value in metrics.items()
    ]
    return ["## Evaluation", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []


def _as_code(name: str) -> str:
    return "`" + one_line(name).replace("`", "'") + "`"


def _as_text(value: object) -> str:
    """Write a name or a figure as words of Markdown: what a folder or a data set is called makes no
    link, image or column.
    """
    return re.sub(r"([\\`*_{}\[\]<>()#!|&~])", r"\\\1", one_line(str(value)))
