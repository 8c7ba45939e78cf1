"""Files in the way: nothing outside a run folder is written, no foreign file is removed.

The numbers are those of the audit's findings.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from faults.forks import Forks
from helpers.scenes import contents, errors
from helpers.support import pairs, write_rows

from plugin import cli
from plugin.base.digests import DIGESTS, why_broken
from plugin.base.errors import JobError
from plugin.base.files import open_plain, write_whole
from plugin.commands.fuse import main
from plugin.hosts.plugin_era.publish import free_name, shelve, show_link
from plugin.hosts.task import copy_checkpoint
from plugin.run.folder import RunFolder
from plugin.run.heartbeat import Heartbeat, heartbeat_path

# --- links and other kinds of entries

OURS = (
    *(
        ".lock",
        "log.txt",
        "events.jsonl",
        "metrics.jsonl",
        "metrics.json",
        "samples.jsonl",
        "run.json",
        "progress.json",
    ),
    *(
        ".heartbeat-0",
        "tb",
        "data",
        "checkpoint-2",
        "adapter",
        "fused",
        "wandb",
        "wandb.log",
        ".run.json.7.part",
    ),
    *(".checkpoint-2.part", ".fused.part", "debug-step-1-rank-0", "machine-1"),
)


@pytest.mark.parametrize("name", OURS)
def test_every_name_of_ours_is_refused_as_a_link(name: str, tmp_path: Path, victim: Path) -> None:
    """Audit 1, 2: in a new run and a resumed one, also where the link leads nowhere."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    for target in (victim, tmp_path, tmp_path / "nowhere"):
        (folder / name).symlink_to(target)
        for goes_on in (False, True):
            (problem,) = folder.problems(goes_on=goes_on)
            assert (problem.field, problem.code) == ("run_dir", 2)
            assert problem.got == f"{folder.path}, with {name}, which is a link to {target}"
        (folder / name).unlink()


def test_pipes_sockets_and_second_names_are_refused(tmp_path: Path, victim: Path) -> None:
    """Audit 1, 2: none is opened, so none is waited for; a hard link is a link too."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    os.mkfifo(folder / "run.json")
    (folder / "log.txt").mkdir()
    (folder / "data").touch()
    os.link(victim, folder / ".lock")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(folder.path)  # a socket's path is short
        one.bind("events.jsonl")
        os.chdir(here)
    found = {problem.got.partition("with ")[2] for problem in folder.problems(goes_on=True)}
    assert found == {
        ".lock, which is a file with a second name elsewhere (a hard link)",
        "data, which is a file",
        "events.jsonl, which is a socket",
        "log.txt, which is a folder",
        "run.json, which is a named pipe",
    }


def test_a_lock_of_another_program_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / ".lock").write_text("theirs: 1\n")
    (problem,) = folder.problems()
    assert problem.got.endswith(".lock, which is another program's")
    (tmp_path / ".lock").write_text("4711\n")
    assert folder.problems() == []


def test_a_new_run_leaves_what_its_lock_links_to(
    forks: Forks, four_steps: Any, tmp_path: Path, victim: Path
) -> None:
    """Audit 1."""
    folder = tmp_path / "lk"
    folder.mkdir()
    (folder / ".lock").symlink_to(victim)
    refused = forks.run(folder, *four_steps)
    assert refused.code == 2
    assert errors(refused)["run_dir"].endswith(
        f"with .lock, which is a link to {victim}. Remove it, or put a copy in its place."
    )
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_strangers_run_writes_nothing_outside(
    forks: Forks, four_steps: Any, run_copy: Path, victim: Path
) -> None:
    """Audit 2."""
    linked = ("events.jsonl", "log.txt", ".lock", "metrics.jsonl", ".heartbeat-0")
    for name in linked:
        (run_copy / name).unlink(missing_ok=True)
        (run_copy / name).symlink_to(victim)
    before = contents(run_copy)
    refused = forks.run(run_copy, *four_steps, "--resume", "true", "--train_steps", 6)
    assert refused.code == 2
    lines = [
        line
        for line in refused.err.splitlines()
        if line.startswith("error[2]: run_dir: expected plain files of its own")
    ]
    assert len(lines) == len(linked), refused.err
    assert contents(run_copy) == before


def test_a_run_folder_may_be_a_link_itself(forks: Forks, four_steps: Any, tmp_path: Path) -> None:
    """A user chooses the target by naming the link: a scratch disk, for example."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to("scratch")
    done = forks.run(tmp_path / "run", *four_steps, "--fuse_model", "false")
    assert done.code == 0, done.err
    assert (tmp_path / "scratch" / "checkpoint-4").is_dir()


def test_a_link_that_appears_meanwhile_is_not_followed(tmp_path: Path, victim: Path) -> None:
    """Audit 1, 2: between the look and the opening."""
    for name in (".lock", "log.txt", ".heartbeat-3", ".whole.json.0.part"):
        (tmp_path / name).symlink_to(victim)
    with (
        pytest.raises(JobError, match="a link, which is not followed"),
        RunFolder(tmp_path).locked(0, print),
    ):
        pass
    with pytest.raises(OSError, match="a link"):
        open_plain(tmp_path / "log.txt", os.O_WRONLY | os.O_APPEND)
    with pytest.raises(OSError, match="a link"):
        Heartbeat(heartbeat_path(tmp_path, 3))
    (tmp_path / f".whole.json.{os.getpid()}.part").symlink_to(victim)
    write_whole(tmp_path / "whole.json", "{}")
    assert (tmp_path / "whole.json").read_text() == "{}"
    os.mkfifo(tmp_path / "pipe")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        with pytest.raises(OSError, match=r"not a plain file|No such device"):
            open_plain(tmp_path / "pipe", flags)


def test_truncating_looks_at_the_file_first(tmp_path: Path, victim: Path) -> None:
    os.link(victim, tmp_path / ".heartbeat-0")
    with pytest.raises(OSError, match="a second name"):
        Heartbeat(heartbeat_path(tmp_path, 0))


def test_cutting_back_removes_links_and_not_their_targets(
    forks: Forks, four_steps: Any, run_copy: Path, victim: Path
) -> None:
    """Audit 2: a half-written folder holds links; a foreign file of that ending stays."""
    part = run_copy / ".checkpoint-9.part"
    part.mkdir()
    (part / "file").symlink_to(victim)
    (part / "folder").symlink_to(victim.parent)
    (run_copy / ".notes.part").write_text("half a note")
    resumed = forks.run(run_copy, *four_steps, "--resume", "true", "--train_steps", 6)
    assert resumed.code == 0, resumed.err
    assert "resume: .checkpoint-9.part was only half written; removed" in resumed.err
    assert not part.exists()
    assert (run_copy / ".notes.part").read_text() == "half a note"


# --- what is published


def test_a_shelf_takes_no_link_for_a_free_name(tmp_path: Path, victim: Path) -> None:
    """Audit 1: a host's models and adaptors; a folder that somebody else is writing stays."""
    made, said = tmp_path / "fused", list[str]()
    made.mkdir()
    (made / "weights").touch()
    (tmp_path / "empty").mkdir()
    for name, target in {
        "m": tmp_path / "nowhere",
        "m-job7": tmp_path / "empty",
        "m-job7-2": victim,
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / ".m-job7-3.part").mkdir()
    target = free_name(tmp_path / "m", "7", said.append)
    assert target.name == "m-job7-3"
    shelve(made, target)
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert list((tmp_path / "empty").iterdir()) == []
    assert (tmp_path / ".m-job7-3.part").is_dir()


def test_a_shelf_shows_nothing_behind_a_link(tmp_path: Path) -> None:
    outside, said = tmp_path / "outside", list[str]()
    outside.mkdir()
    (tmp_path / "checkpoints").symlink_to(outside)
    show_link(tmp_path / "checkpoints" / "checkpoint-2", tmp_path, said.append)
    assert list(outside.iterdir()) == []
    assert len(said) == 1


def test_fuse_refuses_a_link_as_its_folder(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    words = [
        "--adapter",
        str(run_copy / "fused"),
        "--model_name",
        str(run_copy / "fused"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    assert "error[2]: out: expected a new or empty folder, got" in capsys.readouterr().err
    assert (tmp_path / "out").is_symlink()


def test_another_jobs_checkpoint_brings_no_file_from_outside(
    run_copy: Path, tmp_path: Path, victim: Path
) -> None:
    """Audit 2: today's app copies a folder with its links; such a checkpoint is refused by name."""
    checkpoint = run_copy / "checkpoint-4"
    shutil.copy(run_copy / "run.json", checkpoint)
    (checkpoint / "notes.txt").symlink_to(victim)
    copy_checkpoint(checkpoint, tmp_path / "next")
    assert (tmp_path / "next" / "checkpoint-4" / "notes.txt").is_symlink()
    assert why_broken(tmp_path / "next" / "checkpoint-4") == "notes.txt is a link"


# --- digests


@pytest.mark.parametrize(
    "name", ["/dev/zero", "../checkpoint-2/model.safetensors", "/etc/hostname", "."]
)
def test_digests_name_plain_files_below_them(name: str, run_copy: Path) -> None:
    """Audit 21."""
    checkpoint = run_copy / "checkpoint-4"
    listed = json.loads((checkpoint / DIGESTS).read_text())
    (checkpoint / DIGESTS).write_text(json.dumps({**listed, name: "00" * 16}))
    assert why_broken(checkpoint) == f"{name} is missing"


def test_what_digests_do_not_name_is_refused(run_copy: Path, victim: Path) -> None:
    """Audit 21: files, links, pipes; and a digests.json that is none."""
    checkpoint = run_copy / "checkpoint-4"
    assert why_broken(checkpoint) == ""
    (checkpoint / "pytorch_model.bin").touch()
    assert why_broken(checkpoint) == "pytorch_model.bin is not one of the files of digests.json"
    (checkpoint / "pytorch_model.bin").unlink()
    os.mkfifo(checkpoint / "more.safetensors")
    assert why_broken(checkpoint) == "more.safetensors is not a plain file"
    (checkpoint / "more.safetensors").unlink()
    (checkpoint / "config.json").rename(victim.parent / "config.json")
    (checkpoint / "config.json").symlink_to(victim.parent / "config.json")
    assert why_broken(checkpoint) == "config.json is a link"
    (checkpoint / DIGESTS).unlink()
    os.mkfifo(checkpoint / DIGESTS)
    assert why_broken(
        checkpoint
    ) == "digests.json cannot be read: [Errno 22] not a plain file: " + repr(
        str(checkpoint / DIGESTS)
    )


def test_a_hole_larger_than_the_disk_is_not_read(run_copy: Path) -> None:
    """Audit 21."""
    disk = os.statvfs(run_copy)
    with (run_copy / "checkpoint-4" / "optimizer.safetensors").open("r+b") as file:
        try:
            file.truncate(disk.f_blocks * disk.f_frsize + 1)
        except OSError:
            pytest.skip("this disk makes no such hole")
    assert why_broken(run_copy / "checkpoint-4") == "optimizer.safetensors is larger than its disk"


def test_a_users_file_in_a_later_checkpoint_is_kept(
    forks: Forks, four_steps: Any, run_copy: Path
) -> None:
    (run_copy / "checkpoint-4" / "notes.txt").write_text("mine")
    resumed = forks.run(run_copy, *four_steps, "--resume", "true")
    assert resumed.code == 0, resumed.err
    assert (
        "checkpoint-4 is skipped: notes.txt is not one of the files of digests.json" in resumed.err
    )
    assert "resume: checkpoint-4 is now replaced-checkpoint-4" in resumed.err
    assert (run_copy / "replaced-checkpoint-4" / "notes.txt").read_text() == "mine"


# --- names


@pytest.mark.parametrize(
    "name", ["n\n error[0]: fine.jsonl", "a\rerror[0].jsonl", "\x1b[2Jx.jsonl", "\u202etxt.jsonl"]
)
def test_an_error_is_one_line_whatever_a_file_is_called(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Audit 16."""
    (tmp_path / name).write_text('{"prompt": \n')
    words = (
        "--model_name",
        str(tmp_path),
        "--dataset_name",
        str(tmp_path / name),
        "--run_dir",
        str(tmp_path / "run"),
    )
    assert cli.main(["train", *words]) in (2, 3, 4)
    err = capsys.readouterr().err
    assert all(
        line.startswith("error[") and not line.startswith("error[0]")
        for line in err.split("\n")[:-1]
    ), err
    assert not any(char in err for char in "\r\x1b\u202e")


def test_run_logs_such_a_name_in_one_line(forks: Forks, four_steps: Any, tmp_path: Path) -> None:
    """Audit 16: in the log, in events and on a terminal."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "n\n error[0]: fine.jsonl", pairs())
    write_rows(folder / "\x1b[2J\u202e.unknown", pairs())
    done = forks.run(
        tmp_path / "run", *four_steps, "--dataset_name", folder, "--fuse_model", "false"
    )
    assert done.code == 0, done.err
    for text in (done.err, done.out, (done.folder / "log.txt").read_text(encoding="utf-8")):
        assert not any(char in text for char in "\x1b\u202e")
        assert not [line for line in text.split("\n") if line.startswith(" error[0]")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run_dir", "r\0x"),
        *(
            (name, "\udc41")
            for name in (
                "run_dir",
                "dataset_name",
                "model_name",
                "tokenizer_name",
                "text_field",
                "wandb_project",
            )
        ),
        *(("run_dir", f"r{char}x") for char in ("\n", "\x1b", "\x9b", "\u202e")),
    ],
)
def test_names_that_cannot_be_written_leave_no_folder(
    name: str,
    value: str,
    tiny_bert: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Audit 22: a zero character, half a character; of a folder that is made, any that steers."""
    run = tmp_path / value if name == "run_dir" else tmp_path / "run"
    values = {
        "model_name": tiny_bert,
        "dataset_name": pairs_file,
        "run_dir": run,
        name: run if name == "run_dir" else value,
    }
    assert cli.main(["train", *(f"--{one}={given}" for one, given in values.items())]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error[2]: {name}: expected ")
    assert list(tmp_path.iterdir()) == []
