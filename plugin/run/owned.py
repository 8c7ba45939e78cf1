"""Ownership of the entries of a run folder, by their names and contents.

This program writes to its own entries alone and removes no others. The run folder itself may be a
link, for example to a scratch disk: the person who named it has chosen its target. Anybody may have
put an entry into it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ..base.errors import Problem
from ..base.files import final_name, open_plain, walk

LOCK = ".lock"
REQUESTS = ("STOP", "SAVE", "SAMPLE")

_JSON = r"(?:run|progress|metrics|wandb|evaluation)\.json|(?:metrics|samples)\.jsonl"
_WRITTEN_IN_PLACE = re.compile(
    r"\.lock|log\.txt|(?:events|metrics|samples)\.jsonl|wandb\.log|\.heartbeat-\d+"
)
_FILE = re.compile(rf"{_WRITTEN_IN_PLACE.pattern}|{_JSON}")
_FILE_ASIDE = re.compile(_JSON)  # written under another name first, see base/files.py
_FOLDER_ASIDE = re.compile(r"checkpoint-\d+|adapter|fused|data|debug-step-\d+-rank-\d+")
_FOLDER = re.compile(
    r"data|tb|wandb|(?:replaced-)?(?:adapter|fused)|\.(?:adapter|fused)\.earlier|(?:replaced-)?checkpoint-\d+"
    r"|debug-step-\d+-rank-\d+|machine-\d+"
)
_STAYS = re.compile(r"\.lock|machine-\d+|wandb(?:\.json|\.log)?")  # when a run is restarted
_RESULT = re.compile(r"(?:replaced-)?(?:adapter|fused|checkpoint-\d+)|\.(?:adapter|fused)\.earlier")

_TOKENIZER = (
    r"tokenizer(?:_config)?\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(?:txt|json)|merges\.txt|"
    r"chat_template\.jinja|additional_chat_templates(?:/[^/]+\.jinja)?|[\w.]+\.model"
)
# A folder that is removed -> what may be in it.
_HOLDS = {
    "data": rf"report\.json|tokenizer(?:/(?:{_TOKENIZER}))?|(?:train|eval)(?:/(?:(?:ids|supervised|offsets|prompts)\.npy|rows\.txt))?",
    "tb": r"events\.out\.tfevents\.[^/]+",
    "debug": r"batch-\d+\.safetensors|step\.json",
}
_OF_RUN_JSON = {  # keys of a record that this program wrote
    "params": {"model_name", "dataset_name", "training_method", "run_dir"},
    "environment": {"versions", "data", "cwd"},
    "result": {"outcome", "code", "error"},
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


def is_record(content: Any) -> bool:
    """Tell the content of a run.json that this program wrote."""
    if not isinstance(content, dict):
        return False
    record = cast("Mapping[str, Any]", content)
    parts = {name: record.get(name) for name in _OF_RUN_JSON}
    if parts["result"] is None and "result" in record:
        del parts["result"]  # of a run that still trains, or was killed
    return all(
        isinstance(part, dict) and _OF_RUN_JSON[name] <= part.keys() for name, part in parts.items()
    )


def misplaced(folder: Path) -> list[Problem]:
    """List the entries of a run folder with a name of ours that are no plain file or folder.

    Raises OSError when the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    fix = "Remove it, or put a copy in its place."
    reasons = ((entry.name, _why_misplaced(entry)) for entry in found)
    return [
        Problem(
            "run_dir", "plain files of its own", f"{folder}, with {name}, which is {reason}", fix
        )
        for name, reason in reasons
        if reason
    ]


def _why_misplaced(entry: os.DirEntry[str]) -> str:
    whole = final_name(entry.name)
    file = _FILE.fullmatch(entry.name) or _FILE_ASIDE.fullmatch(whole)
    folder = _FOLDER.fullmatch(entry.name) or _FOLDER_ASIDE.fullmatch(whole)
    if entry.name == REQUESTS[0] and entry.is_dir(follow_symlinks=False) and os.listdir(entry.path):
        return "a folder that holds something"  # every run here would end before it began
    if not file and not folder:
        return ""
    if entry.is_symlink():
        return f"a link to {os.readlink(entry.path)}"
    status = entry.stat(follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind != (stat.S_IFREG if file else stat.S_IFDIR):
        return _KINDS.get(kind, "something else")
    if _WRITTEN_IN_PLACE.fullmatch(entry.name) and status.st_nlink > 1:
        return "a file with a second name elsewhere (a hard link)"
    if entry.name == LOCK and not _is_lock(entry.path):
        return "another program's"
    return ""


def _is_lock(path: str) -> bool:
    """Tell a lock of ours, which holds a process number or nothing."""
    with open(path, "rb", opener=open_plain) as file:
        return re.fullmatch(rb"\d*\n?", file.read(32)) is not None


def half_written(folder: Path) -> list[Path]:
    """List the partial files and folders that a killed run of ours left."""
    return [path for path in sorted(folder.iterdir()) if _is_half_written(path.name)]


def _is_half_written(name: str) -> bool:
    final = final_name(name)
    return bool(_FILE_ASIDE.fullmatch(final) or _FOLDER_ASIDE.fullmatch(final))


def entries_before_restart(folder: Path) -> tuple[list[Path], list[str], list[str]]:
    """Sort the entries of a run folder without a checkpoint, before the run is restarted.

    Returns (entries of a run, which may be removed; other entries; other entries inside the run's
    folders).
    """
    ours: list[Path] = []
    others: list[str] = []
    inside: list[str] = []
    # run.json comes last: a folder that was removed in part is still known as a run's.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "run.json"):
        name = path.name
        if _STAYS.fullmatch(name):
            continue
        if path.is_symlink() and name not in REQUESTS:
            others.append(name)
        elif name in REQUESTS or _FILE.fullmatch(name) or _is_half_written(name):
            ours.append(path)
        elif _FOLDER.fullmatch(name) and not _RESULT.fullmatch(name):
            foreign = [f"{name}/{entry}" for entry in not_ours(path)]
            inside += foreign
            ours += [] if foreign else [path]
        else:
            others.append(name)
    return ours, others, inside


def not_ours(folder: Path) -> Iterator[str]:
    """Yield the entries of `data`, `tb` or `debug-step-...` that this program has not written."""
    allowed = re.compile(_HOLDS[folder.name.split("-")[0]])
    names: list[str] = []
    for name, entry in walk(folder):
        names.append(name)
        plain = entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
        if not plain or not allowed.fullmatch(name):
            yield name
    if folder.name == "data" and names and "report.json" not in names:
        yield names[0]
