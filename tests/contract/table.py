"""Contract table: runs every contract test, prints host x scenario and one JSON object."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Results:
    """The outcome and seconds of each test, as pytest reports them."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = defaultdict(dict)
        self.form: dict[str, str] = {}
        self.others: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        words = "ok" if report.passed else report.outcome
        name = report.nodeid.rpartition("::")[2]
        found = re.fullmatch(r"test_(\w+)\[(folder|tlab|lab)\]", name)
        if found and "test_contract" in report.nodeid:
            self.cells[found[1]][found[2]] = f"{words} {report.duration:.0f} s"
        elif "test_form.py" in report.nodeid:
            why = (
                report.longrepr[2].removeprefix("Skipped")
                if isinstance(report.longrepr, tuple)
                else ""
            )  # place, line, words
            self.form[name.removeprefix("test_")] = words + why
        else:
            self.others[name] = words


def main() -> int:
    began, results = time.monotonic(), Results()
    others = [
        HERE.parent / name
        for name in ("parent/test_wandb.py", "config/test_task.py", "hosts/test_harness.py")
    ]
    code = pytest.main(
        [str(HERE), *map(str, others), "-m", "contract or not contract", *sys.argv[1:]],
        plugins=[results],
    )
    hosts = ("folder", "tlab", "lab")
    print(f"{'':20}" + "".join(f"{host:>16}" for host in hosts))
    for scenario, row in results.cells.items():
        print(f"{scenario:20}" + "".join(f"{row.get(host, '-'):>16}" for host in hosts))
    for scene, words in results.form.items():
        print(f"form  {scene:44}{words}")
    passed = sum(words == "ok" for words in results.others.values())
    print(f"and {passed} of {len(results.others)} others")
    summary = {
        "exit": int(code),
        "scenarios": results.cells,
        "form": results.form,
        "others": {"passed": passed, "of": len(results.others)},
    }
    print(json.dumps({**summary, "seconds": round(time.monotonic() - began, 1)}))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
