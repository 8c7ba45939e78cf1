"""Forms, parameter files and command lines parse alike in every way in, or are refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from fuzz.lines import command_lines, forms, parameter_files
from fuzz.promise import check_line, kept, limited, writable
from fuzz.values import values
from hypothesis import event, given
from hypothesis import strategies as st

from plugin import cli
from plugin.config.params import Params
from plugin.config.parse import Parsed, parse
from plugin.hosts.plugin_era.job import adaptor_name, form_values, read_job
from plugin.parent import check, paths, train
from plugin.run.asked import asked_values, config_values
from plugin.run.folder import RunFolder
from plugin.run.outcome import Outcome
from plugin.run.run_file import RunFile

pytestmark = pytest.mark.fuzz
HOST_FIELDS = ("job_id", "output_dir", "adaptor_output_dir", "template_name")
VERBS = ("check", "train", "chat", "fuse", "", "trian")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, pairs_file: Path) -> Path:
    """Make a folder with a valid data.jsonl and config.json."""
    folder = tmp_path_factory.mktemp("job")
    shutil.copy(tiny_config, folder / "config.json")
    shutil.copy(pairs_file, folder / "data.jsonl")
    return folder


GOOD = {"model_config": "config.json", "dataset_name": "data.jsonl"}


@given(
    form=forms(),
    unknown=st.sampled_from(("error", "note")),
    whole=st.sampled_from((True, True, False)),
)
def test_form_is_refused_or_repeated_by_its_run(
    job: Path, form: dict[str, Any], unknown: Any, whole: bool
) -> None:
    with contextlib.chdir(job), tempfile.TemporaryDirectory() as name:
        parsed = kept(lambda: parse((GOOD if whole else {}) | form, unknown=unknown))
        if parsed is None:
            return
        event("parsed")
        check_notes(parsed)
        folder = RunFolder(Path(name))
        folder.write_run(RunFile(params=parsed.params.as_json()))
        params = parsed.params.model_copy(update={"run_dir": ""})
        assert kept(lambda: parse(config_values(str(folder / "run.json"))).params) == params
        check_command(parsed.params)


@given(form=forms(), host=st.dictionaries(st.sampled_from(HOST_FIELDS), values(2), max_size=1))
def test_input_file_of_a_host_is_refused_or_parsed(
    form: dict[str, Any], host: Mapping[str, Any]
) -> None:
    board = "/w/experiments/e/tensorboards/t"
    config = {
        "job_id": "1",
        "output_dir": board,
        "adaptor_output_dir": "/w/adaptors/a",
        **GOOD,
        **form,
        **host,
    }
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "input.json"
        file.write_text(
            json.dumps({"experiment": {"name": "e"}, "config": config}), encoding="utf-8"
        )
        job = kept(lambda: read_job(str(file)))
        made = kept(lambda: form_values(job)) if job else None
        parsed = kept(lambda: parse(made[0], unknown="note")) if made else None
        if parsed and job:
            event("parsed")
            check_notes(parsed)
            kept(
                lambda: parse(
                    {
                        **parsed.params.as_json(),
                        "adaptor_name": adaptor_name(job, parsed.params.adaptor_name),
                    }
                )
            )


@given(
    verb=st.sampled_from(VERBS),
    words=command_lines(),
    file=st.none() | parameter_files(),
    whole=st.booleans(),
)
def test_command_line_ends_with_a_code_of_the_table(
    job: Path, verb: str, words: list[str], file: bytes | None, whole: bool
) -> None:
    argv = [verb, *words] if verb else words
    if whole and verb in ("check", "train"):
        argv += [word for name, value in GOOD.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as name:
        here = Path(shutil.copytree(job, Path(name) / "here"))
        if file is not None:
            (here / "given.yaml").write_bytes(file)
            argv += ["--config", "given.yaml"]
        before = sorted(here.rglob("*"))
        with contextlib.chdir(here), without_workers(), limited():
            code, out, err = run(argv)
        event(f"{verb}: {code}")
        lines = err.splitlines()
        errors = [line for line in lines if line.startswith("error[")]
        assert "Traceback" not in err
        assert code in (0, 2, 3, 4, 5, 6, 7), err
        assert bool(errors) == bool(code) or argv == [] or verb == "", err
        for line in errors:
            check_line(line)
        if code or verb != "train":
            assert sorted(here.rglob("*")) == before, "a refusal wrote something"
        if "--json" in argv and out and not {"--help", "-h", "--version"} & set(argv):
            json.loads(out.splitlines()[-1])


def check_notes(parsed: Parsed) -> None:
    assert all(len(note.splitlines()) == 1 for note in parsed.notes), parsed.notes
    writable(parsed.notes)
    writable(parsed.params.as_json())


def check_command(params: Params) -> None:
    """Assert that the command printed by `check` starts the job that was checked."""
    _, _, *words = check.train_command(params)
    options, extra = cli._parser().parse_known_args(words)
    printed = cli._parameters(*asked_values(options, extra, ("command", "json", "download"))).params
    wanted = paths.with_full_paths(params)
    if params.num_train_epochs > 0:
        wanted = wanted.model_copy(update={"train_steps": printed.train_steps})
    assert printed == wanted


@contextlib.contextmanager
def without_workers() -> Iterator[None]:
    """Run the parent alone: its child processes do nothing and succeed."""

    def tried(params: Params, ranks: int, *, download: bool) -> Mapping[str, Any]:
        json.dumps(params.as_json())
        return {"problems": [], "report": None, "notes": []}

    with (
        patch.object(check, "_try_out", tried),
        patch.object(train, "run_workers", lambda *given: Outcome("done", 0)),
        patch.object(os, "execve", lambda *given: 0),
    ):
        yield


def run(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a command as a shell does, with streams as Python opens them."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(argv) or 0
        except SystemExit as ended:  # --help and --version
            code = int(ended.code or 0)
            assert code == 0, "argparse's own words"
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
    return code, out.read(), err.read()
