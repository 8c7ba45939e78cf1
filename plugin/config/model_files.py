"""Checks of a model folder's files without loading them, so that the parent can refuse it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import JobError, Problem, model_error
from .families import ARCHITECTURES, DECODERS, FAMILIES, Family
from .methods import ON_FORM, methods_of
from .params import Params

INSIDE_RUN = re.compile(r"fused|adapter|checkpoint-\d+")  # folders with a model in a run folder
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = (".json", ".yaml", ".safetensors", ".gguf", ".bin", ".pt")
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_POINTER = b"version https://git-lfs"  # the beginning of a file that git-lfs has not fetched
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")  # a safetensors file of the folder itself
MOST_JSON = 1 << 25  # bytes of a configuration or an index of weights
MOST_TOKENIZER = 1 << 28  # bytes of a tokenizer's file; the largest published ones have 2^25
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")


def check_model_files(name: str) -> None:
    """Refuse a folder without a trainable model. A name that is not a path is a hub id.

    Raises JobError (exit 4): missing files, pointers of git-lfs, an adapter, GGUF, quantised
    weights, pickles.
    """
    folder = Path(name).expanduser()
    if folder.suffix.lower() == ".gguf" or _holds_gguf_alone(folder):
        raise _gguf(name, folder)
    if not folder.exists():
        refuse_missing_path("model_name", name)
        return
    if not folder.is_dir():
        raise model_error(
            "model_name",
            "a folder with config.json and safetensors weights",
            f"{name}, which is a file",
        )
    _check_adapter(name, folder)
    if not (folder / "config.json").is_file():
        raise model_error("model_name", "a folder with config.json", name)
    check_lengths(folder, "model_name")
    check_pointers(folder, "model_name", ("*.safetensors", "config.json", *_TOKENIZER_FILES))
    check_copied(folder, "model_name")
    _check_whole(name, folder)
    check_quantisation(
        name, read_json(folder / "config.json"), (folder / "quantize_config.json").is_file()
    )
    if any(folder.glob("*.safetensors")):
        return
    unsafe = sorted(file.name for file in folder.iterdir() if file.suffix in _UNSAFE)
    convert = "Convert once with transformers' save_pretrained in a place you trust; pickled weights can run code."
    raise model_error(
        "model_name",
        "safetensors weights",
        f"{name}: {', '.join(unsafe) or 'no weights'}",
        convert if unsafe else "",
    )


def refuse_missing_path(field: str, name: str) -> None:
    """Raise JobError (exit 4) for a missing path, so that it is not looked up on the hub."""
    if is_missing_path(name):
        raise model_error(field, "a folder that exists, or a hub id", f"{name}, which is not there")


def is_missing_path(name: str) -> bool:
    """Tell whether a name is that of a path that is not there. A hub id is NAME or OWNER/NAME."""
    is_path = (
        name.startswith((".", "/", "~"))
        or not _HUB_ID.fullmatch(name)
        or Path(name).suffix in _FILES
        or ("/" in name and INSIDE_RUN.fullmatch(Path(name).name))
    )
    owner = Path(name).parent  # of a hub id; runs/mine and mine/fused are paths
    of_runs = name.startswith("runs/") or (
        owner.name and any((*owner.glob("run.json"), *owner.glob("*/run.json")))
    )
    return bool(is_path or of_runs) and not Path(name).expanduser().exists()


def check_method(params: Params) -> None:
    """Refuse a configuration on this machine that belongs to another method or to no family.

    The worker checks those of the hub. Raises JobError: exit 2 for another method, exit 4 for a
    model that no method trains.
    """
    new = params.model_config_file
    fields = read_json((Path(new) if new else Path(params.base) / "config.json").expanduser())
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        return
    field = "model_config" if new else "model_name" if params.model_name else "start_from"
    refuse_unknown_model(fields, new or params.base, field)
    refuse_other_methods(FAMILIES[model_type], params.training_method)


def refuse_unknown_model(fields: Mapping[str, Any], name: str, field: str = "model_name") -> None:
    """Refuse a config.json of no family, and layers that see a part of a text or keep a state.

    Raises JobError (exit 4).
    """
    model_type = fields.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise model_error(
            field,
            f"one of {', '.join(ARCHITECTURES)}",
            f"{name}, a {model_type or 'nameless'} model",
        )
    if family.decoder and (others := _other_layers(fields)):
        names = ", ".join(FAMILIES[one].architecture for one in DECODERS)
        raise model_error(
            field,
            "full attention in every layer",
            f"{name}: {', '.join(others)}",
            f"Blocks need it; {names} without sliding windows or linear layers work.",
        )


def _other_layers(fields: Mapping[str, Any]) -> list[str]:
    """Return the kinds of a causal LM's layers that are not full attention.

    Qwen's configurations name kinds in `layer_types`; older ones say from which layer on the window
    holds.
    """
    kinds = fields.get("layer_types")
    if isinstance(kinds, list):
        return sorted({str(kind) for kind in kinds} - {"full_attention"})
    if not (fields.get("use_sliding_window") and fields.get("sliding_window")):
        return []
    first, layers = (fields.get(key) for key in ("max_window_layers", "num_hidden_layers"))
    some = not (isinstance(first, int) and isinstance(layers, int) and first >= layers)
    return ["sliding_attention"] if some else []


def check_architecture(params: Params, architecture: str) -> None:
    """Raise JobError (exit 2) if the base, a hub id, belongs to another method by its host."""
    if params.model_name and not Path(params.model_name).expanduser().exists():
        for family in FAMILIES.values():
            if family.architecture == architecture:
                refuse_other_methods(family, params.training_method)


def refuse_other_methods(family: Family, method: str) -> None:
    """Raise JobError (exit 2) if `method` does not train this family."""
    if method not in (able := methods_of(family.name)):
        named = " or ".join(name for name in able if name in ON_FORM)
        fix = f"Set training_method {named}, or choose another model."
        raise JobError(
            Problem("training_method", f"{named} for a {family.architecture}", method, fix)
        )


def check_quantisation(
    name: str, config: Mapping[str, Any], gptq_file: bool = False, *, field: str = "model_name"
) -> None:
    """Refuse weights that config.json declares quantised. Raises JobError (exit 4)."""
    found = next(
        (config[key] for key in ("quantization_config", "compression_config") if config.get(key)),
        None,
    )
    if found is None and not gptq_file:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if (
        method is None
        and isinstance(found, Mapping)
        and (found.get("load_in_4bit") or found.get("load_in_8bit"))
    ):
        method = "bitsandbytes"
    got = f"{name}, quantised with {method or ('gptq' if gptq_file else 'a method that it does not name')}"
    raise model_error(
        field,
        "unquantised weights",
        got,
        "Name the original model; load_in_4bit quantises it here.",
    )


def check_lengths(folder: Path, field: str) -> None:
    """Refuse files that a library needs minutes to read. Raises JobError (exit 4)."""
    for pattern, most in (
        ("*.json", MOST_JSON),
        ("*.jinja", MOST_JSON),
        ("vocab.txt", MOST_TOKENIZER),
    ):
        for file in sorted(folder.glob(pattern)):
            limit = MOST_TOKENIZER if file.name in ("tokenizer.json", "vocab.json") else most
            if file.is_file() and (size := file.stat().st_size) > limit:
                raise model_error(field, f"files of at most {limit} bytes", f"{file}: {size} bytes")


def check_pointers(folder: Path, field: str, patterns: tuple[str, ...]) -> None:
    """Refuse files that are only pointers of git-lfs. Raises JobError (exit 4)."""
    files = sorted(
        {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    )
    if pointers := [file.name for file in files if _starts_with(file, _POINTER)]:
        shown = ", ".join(pointers[:3]) + (
            f", ... ({len(pointers)} in all)" if len(pointers) > 3 else ""
        )
        got = f"{folder}: {shown}, which git-lfs has not fetched"
        raise model_error(field, "complete files", got, f"Run `git lfs pull` in {folder}.")


def is_own_file(file: Path) -> bool:
    """Tell whether a file lies in its folder, or in the `blobs` of its snapshot in a hub's cache."""
    folder, target = file.parent.resolve(), file.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    return target.is_file() and target.parent in (folder, blobs)


def check_copied(folder: Path, field: str) -> None:
    """Refuse links to other folders among the files that are published unchanged.

    Raises JobError (exit 4).
    """
    patterns = ("generation_config.json", "*.py", "*.jinja", "additional_chat_templates/*.jinja")
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if foreign := [str(file.relative_to(folder)) for file in files if not is_own_file(file)]:
        got = f"{folder}: {', '.join(foreign[:3])}, which leads elsewhere"
        fix = "Its target would be published with the trained model; put a copy in its place."
        raise model_error(field, "files of its own", got, fix)


def tokenizer_class(name: str) -> str | None:
    """Return the tokenizer class that a folder without tokenizer.json names, or None."""
    folder = Path(name).expanduser()
    kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    return kind if isinstance(kind, str) and not (folder / "tokenizer.json").is_file() else None


def slow_tokenizer(name: str, kind: str, library: str = "") -> JobError:
    """Return the JobError (exit 4) for a tokenizer without a fast form.

    `library`: the package that its class needs and this machine lacks.
    """
    got = f"{name}: {kind}, which has no tokenizer.json here{f' (needs {library})' if library else ''}"
    fix = "Make a tokenizer.json of it, or name another tokenizer in tokenizer_name."
    return model_error("tokenizer_name", "a fast tokenizer", got, fix)


def read_small(path: Path, most: int = MOST_JSON) -> str:
    """Read a regular file of at most `most` bytes. Raises OSError; ValueError for any other file."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content.decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; empty if there is none."""
    try:
        value = json.loads(read_small(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _check_adapter(name: str, folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        return
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
        return  # a full model, with an adapter as well
    base = (
        read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
    )
    fix = f"Name {base} as model_name; to train on from this adapter, fuse it first (main.py fuse)."
    raise model_error("model_name", "a full model", f"{name}, an adapter of {base}", fix)


def _holds_gguf_alone(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))


def _gguf(name: str, folder: Path) -> JobError:
    files = (
        ", ".join(sorted(file.name for file in folder.glob("*.gguf"))[:3])
        if folder.is_dir()
        else folder.name
    )
    fix = "GGUF is a format for inference; name the original model, the one with safetensors."
    return model_error(
        "model_name", "a folder with safetensors weights", f"{name}: {files}, which is GGUF", fix
    )


def _check_whole(name: str, folder: Path) -> None:
    """Refuse weights with a file that is missing, empty or elsewhere. Raises JobError (exit 4)."""
    files = shard_names(folder / WEIGHTS_INDEX, name) if (folder / WEIGHTS_INDEX).is_file() else []
    missing = [file for file in files if not (folder / file).is_file()]
    missing += sorted(file.name for file in folder.glob("*.safetensors") if not file.stat().st_size)
    if missing:
        shown = ", ".join(missing[:3]) + (
            f", ... ({len(missing)} in all)" if len(missing) > 3 else ""
        )
        raise model_error(
            "model_name",
            "every file of the weights",
            f"{name}: {shown} missing or empty",
            "Fetch it again.",
        )


def shard_names(index: Path, name: str) -> list[str]:
    """List the files that an index of weights names.

    Raises JobError (exit 4) for anything but a safetensors file in the folder of the index.
    """
    named = read_json(index).get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else []
    foreign = [file for file in files if not (isinstance(file, str) and _SHARD.fullmatch(file))]
    if foreign or not files:
        got = (
            f"{name}: {str(foreign[0])[:80]}" if foreign else f"{name}, whose weight_map names none"
        )
        fix = "Pickled weights can run code, and another folder's would not be checked."
        raise model_error(
            "model_name", f"names of safetensors files in the folder of {WEIGHTS_INDEX}", got, fix
        )
    return sorted(set(files))


def _starts_with(file: Path, beginning: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(beginning)) == beginning
    except OSError:
        return False
