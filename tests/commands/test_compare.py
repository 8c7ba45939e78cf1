"""`compare` and `plot`: their output in a terminal and without one, as JSON and as pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run_folders import LINES, evaluated, trained, write_run, write_stages_run

from plugin.commands import compare, plot

Command = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return call(command, words...) -> exit code, stdout, lines of stderr."""

    def run(command: Any, *words: object) -> tuple[int, str, list[str]]:
        code = command.main([*map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    one = write_run(tmp_path / "one")
    lines = (*LINES, evaluated(30, 2.0), trained(40, 1.5), evaluated(40, 1.75))
    return one, write_run(tmp_path / "two", lines, learning_rate=1e-3)


def test_two_runs_are_set_side_by_side(call: Command, pair: tuple[Path, Path]) -> None:
    code, out, err = call(compare, *pair)
    assert (code, err) == (0, [])
    lines = [line.split() for line in out.splitlines()]
    assert ["learning_rate", "2e-05", "0.001"] in lines
    assert ["status", "done", "done"] in lines
    last = "evaluation loss, last 2.5000 ± 0.1000 1.7500 ± 0.1000"
    assert last.split() in lines
    assert ["less", "that", "of", "one", "-0.7500", "±", "0.1414"] in lines
    assert "training loss" in out
    assert ["•", "one"] in lines
    assert ["×", "two"] in lines
    assert "evaluation losses compare" in " ".join(out.split())


def test_the_json_stands_alone(call: Command, pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "new" / "both.png"
    code, out, err = call(compare, *pair, "--json", "--png", file)
    assert (code, err) == (0, [])
    found = json.loads(out)
    assert found["differ"] == {"learning_rate": {"one": 2e-5, "two": 1e-3}}
    assert found["results"]["eval_loss_difference"]["two"]["value"] == -0.75
    assert found["comparable"] == {"held_out": True, "objective": True, "reasons": []}
    assert found["runs"] == {"one": str(pair[0]), "two": str(pair[1])}
    assert found["curves"]["two"]["loss"] == {"x": [10, 20, 30, 40], "y": [4.0, 3.0, 2.0, 1.5]}
    assert found["curves"]["one"]["eval/loss"]["ci95"] == [0.5, 0.1]
    assert found["png"] == str(file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_runs_of_any_standing_are_shown(call: Command, pair: tuple[Path, Path]) -> None:
    root = pair[0].parent
    write_run(root / "killed", [trained(10, math.nan)], unfinished=True, data="other")
    empty = write_run(root / "empty", [], unfinished=True)
    (empty / "metrics.jsonl").unlink()
    code, out, err = call(compare, *pair, root / "killed", empty)
    assert (code, err) == (0, [])
    assert "metrics.jsonl cannot be read: No such file" in out
    assert "training loss: 1 value of killed not finite" in out
    code, out, _ = call(compare, *pair, root / "killed", empty, "--json")
    assert code == 0
    assert json.loads(out)["curves"]["killed"]["loss"]["y"] == ["nan"]


def test_other_held_out_data_is_printed(call: Command, tmp_path: Path) -> None:
    folders = write_run(tmp_path / "a"), write_run(tmp_path / "b", data="other")
    code, out, _ = call(compare, *folders)
    assert code == 0
    assert "different held-out data (data: a digest, b other): losses do not compare" in " ".join(
        out.split()
    )
    assert "less that of" not in out


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_output_fits_the_terminal(
    call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """Six runs do not fit next to each other, except in the widest terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    folders = [write_run(tmp_path / f"run-{number}", seed=number) for number in range(6)]
    code, out, _ = call(compare, *folders)
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    seeds = [word for line in out.splitlines() if line.startswith("seed ") for word in line.split()]
    assert [word for word in seeds if word != "seed"] == list("012345")
    assert out.count("settings that differ" if columns > 30 else "status") == {200: 1, 40: 6}.get(
        columns, 6
    )


def test_the_stages_of_a_run_are_compared(call: Command, tmp_path: Path) -> None:
    stages = write_stages_run(tmp_path / "three", "short", "long", "decay", begun=2)
    code, out, _ = call(compare, stages, "--json")
    assert code == 0
    assert json.loads(out)["differ"] == {"seed": {"1-short": 1, "2-long": 2}}


def test_one_run_alone_is_refused(call: Command, pair: tuple[Path, Path]) -> None:
    code, out, (line,) = call(compare, pair[0])
    assert (code, out) == (2, "")
    assert line.endswith(f"expected two runs or more, got one. main.py plot {pair[0]} shows one.")


def test_broken_folders_are_refused_together(
    call: Command, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("[" * 100_000)
    code, out, lines = call(compare, *pair, tmp_path, tmp_path / "bad")
    assert (code, out, len(lines)) == (2, "", 2)
    assert all(line.startswith("error[2]: runs: ") for line in lines)


def test_a_curious_name_is_escaped(call: Command, tmp_path: Path) -> None:
    folders = write_run(tmp_path / "a\x1b[31m"), write_run(tmp_path / "[red]b")
    code, out, _ = call(compare, *folders)
    assert code == 0
    assert "\x1b" not in out
    assert "[red]b" in out


def test_a_key_in_a_setting_is_redacted(call: Command, tmp_path: Path) -> None:
    key = "hf_" + "a1B2c3D4" * 5
    folders = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    content = json.loads((folders[1] / "run.json").read_text())
    content["params"]["text_field"] = key
    (folders[1] / "run.json").write_text(json.dumps(content))
    for words in ((), ("--json",)):
        code, out, _ = call(compare, *folders, *words)
        assert code == 0
        assert key not in out
        assert "[redacted]" in out


def test_a_run_is_plotted(call: Command, pair: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = call(plot, pair[1])
    assert (code, err) == (0, [])
    assert [
        title for title in ("training loss", "evaluation loss", "learning rate") if title in out
    ]
    file = tmp_path / "two.png"
    code, out, _ = call(plot, pair[1], "--png", file, "--json")
    assert code == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out)
    assert found["curves"]["eval/loss"] == {
        "x": [0, 30, 40],
        "y": [5.0, 2.0, 1.75],
        "ci95": [0.5, 0.1, 0.1],
    }
    assert found["curves"]["eval/loss_t90_100"]["y"] == [5.0, 2.0, 1.75]


def test_a_run_without_metrics_is_not_plotted(call: Command, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", [], unfinished=True)
    code, out, (line,) = call(plot, folder)
    assert (code, out) == (2, "")
    assert "expected a run with metrics" in line
    assert "which is unfinished" in line
