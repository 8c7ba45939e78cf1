"""Drivers: hosts driven as their users drive them, through one interface."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from helpers.support import MAIN, ROOT, child_env, patience, processes_naming, start

HERE = Path(__file__).parent
CONTRACT = ROOT / ".contract"  # where `make contract` puts requirements-contract.txt
LONGEST_S = 150.0  # of any job, on a busy machine
Values = Mapping[str, object]


@dataclass(frozen=True)
class Ended:
    outcome: str  # done, stopped or failed, as a user of the host reads it
    details: str  # the cause, where the host shows it
    code: int
    folder: Path
    score: float | None  # eval/loss where the host ranks runs
    log: str
    left: tuple[int, ...]  # processes that still live


class Host(Protocol):
    def start(
        self, job: str, values: Values, *, template: str = "plain", sweep: str = ""
    ) -> Running: ...
    def run_dir(self, job: str, sweep: str = "") -> Path: ...
    def press_stop(self, job: str, program: subprocess.Popen[str]) -> None: ...
    def ended(self, job: str, program: subprocess.Popen[str], log: str, sweep: str) -> Ended: ...


@dataclass(frozen=True)
class Running:
    host: Host
    job: str
    sweep: str
    program: subprocess.Popen[str]

    @property
    def folder(self) -> Path:
        return self.host.run_dir(self.job, self.sweep)

    def stop(self) -> None:
        self.host.press_stop(self.job, self.program)

    def end(self) -> Ended:
        log, _ = self.program.communicate(timeout=patience(LONGEST_S))
        return self.host.ended(self.job, self.program, log, self.sweep)


def _popen(command: list[object], env: Mapping[str, str], cwd: Path) -> subprocess.Popen[str]:
    return start(command, cwd=cwd, env=env, stderr=subprocess.STDOUT)


class FolderDriver:
    """A shell."""

    def __init__(self, root: Path, datasets: Mapping[str, Path]):
        self.root, self.datasets = root, datasets

    def run_dir(self, job: str, sweep: str = "") -> Path:
        return self.root / "runs" / f"{job}{sweep}"

    def start(
        self, job: str, values: Values, *, template: str = "plain", sweep: str = ""
    ) -> Running:
        given = {
            **values,
            "dataset_name": self.datasets.get(str(values["dataset_name"]), values["dataset_name"]),
        }
        options = [f"--{name}={value}" for name, value in given.items()]
        if "resume" not in values:
            options.append(f"--run_dir={self.run_dir(job, sweep)}")
        self.root.mkdir(parents=True, exist_ok=True)
        return Running(
            self, job, sweep, _popen([sys.executable, MAIN, "train", *options], {}, self.root)
        )

    def press_stop(self, job: str, program: subprocess.Popen[str]) -> None:
        (self.run_dir(job) / "STOP").touch()

    def ended(self, job: str, program: subprocess.Popen[str], log: str, sweep: str) -> Ended:
        folder = self.run_dir(job, sweep)
        resumed = re.search(r"^run folder: (.*)$", log, re.MULTILINE)
        folder = Path(resumed[1]) if resumed else folder
        result = (
            json.loads((folder / "run.json").read_text())["result"]
            if (folder / "run.json").exists()
            else None
        )
        errors = "\n".join(line for line in log.splitlines() if line.startswith("error["))
        outcome = result["outcome"] if result else "failed"
        score = result.get("eval_loss") if result and outcome == "done" else None
        left = tuple(processes_naming(str(folder)))
        return Ended(
            outcome, errors or log.splitlines()[-1], program.returncode, folder, score, log, left
        )


class TlabDriver:
    """The plugin-era host: its harness, its SDK's stand-in, a workspace, a queue of input files."""

    def __init__(self, root: Path, datasets: Mapping[str, Path]):
        self.root, self.ws = root, root / "workspace"
        for name, path in datasets.items():
            folder = self.ws / "datasets" / name
            folder.mkdir(parents=True)
            shutil.copy(path, folder)
            (folder / "index.json").write_text('{"location": "local"}')
        self.env: dict[str, str] = {}
        self.python, self.plugin = Path(sys.executable), ROOT

    def run_dir(self, job: str, sweep: str = "") -> Path:
        return self.ws / "jobs" / job / (f"run_{sweep}" if sweep else "run")

    def input_file(self, job: str, values: Values, template: str, sweep: str) -> Path:
        output = f"{self.ws}/experiments/probe/tensorboards/{template}" + (
            f"/sweep_{job}/run_{sweep}" if sweep else ""
        )
        adaptor = str(values.get("adaptor_name", "adaptor"))
        host = {
            "template_name": template,
            "plugin_name": "diffusion_llm_trainer",
            "model_architecture": "ModernBertForMaskedLM",
            "foundation_model_file_path": "",
            "embedding_model": "",
            "type": "LoRA",
            "sweep_config": "{}",
            "run_sweeps": bool(sweep),
            "chatml_formatted_column": "",
            "instruction_template": "Instruction: {{instruction}}",
            "input_template": "{{input}}",
            "output_template": "{{output}}",
            "adaptor_name": adaptor,
            "job_id": int(job),
            "adaptor_output_dir": f"{self.ws}/adaptors/tiny/{adaptor}",
            "output_dir": output,
        }
        form = {
            name: field["default"]
            for name, field in json.loads((ROOT / "index.json").read_text())["parameters"].items()
        }
        own = {
            name: value
            for name, value in values.items()
            if name in form or name in ("model_name", "dataset_name")
        }
        advanced = "\n".join(
            f"{name}: {value}" for name, value in values.items() if name not in own
        )
        content = {
            "experiment": {"name": "probe", "id": "probe", "config": {}},
            "config": {**form, **host, **own, "advanced": advanced},
        }
        path = self.ws / "jobs" / job / f"input{sweep}.json"
        path.write_text(json.dumps(content))
        return path

    def start(
        self, job: str, values: Values, *, template: str = "plain", sweep: str = ""
    ) -> Running:
        folder = self.ws / "jobs" / job
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "index.json").exists():
            data = {"sweep_progress": 0} if sweep else {}
            (folder / "index.json").write_text(
                json.dumps({"job_data": data, "progress": 0, "status": "RUNNING", "beats": []})
            )
        harness = HERE / "plugin_era" / "plugin_harness.py"
        words = [
            "--plugin_dir",
            self.plugin,
            "--input_file",
            self.input_file(job, values, template, sweep),
            "--experiment_name",
            "probe",
        ]
        env = {"TFL_WORKSPACE_DIR": str(self.ws), **self.env}
        return Running(self, job, sweep, _popen([self.python, harness, *words], env, HERE))

    def press_stop(self, job: str, program: subprocess.Popen[str]) -> None:
        """Press stop as the host does, unlocked: a write of the job may undo it, so press again."""
        path = self.ws / "jobs" / job / "index.json"
        while not self.job(job)["job_data"].get("stop"):
            content = self.job(job)
            content["job_data"]["stop"] = True
            beside = path.with_suffix(".new")
            beside.write_text(json.dumps(content))
            os.replace(beside, path)

    def job(self, job: str) -> dict[str, Any]:
        while True:
            try:
                return json.loads((self.ws / "jobs" / job / "index.json").read_text())
            except ValueError:  # half-written at this moment
                continue

    def ended(self, job: str, program: subprocess.Popen[str], log: str, sweep: str) -> Ended:
        data = self.job(job)["job_data"]
        outcome = {"success": "done", "failed": "failed"}.get(
            data.get("completion_status", ""), "unknown"
        )
        if outcome == "done" and (self.job(job)["status"] == "STOPPED" or data.get("stop")):
            outcome = "stopped"
        config = json.loads((self.ws / "jobs" / job / f"input{sweep}.json").read_text())["config"]
        score = json.loads(Path(config["output_dir"], "metrics.json").read_text()).get(
            "eval/loss", 0.0
        )
        details, folder = data.get("completion_details", ""), self.run_dir(job, sweep)
        resumed = re.search(r"^run folder: (.*)$", log, re.MULTILINE)
        folder = Path(resumed[1]) if resumed else folder
        code = max(
            program.returncode, int(outcome == "failed")
        )  # the harness ignores the return value of main()
        return Ended(
            outcome, details, code, folder, score, log, tuple(processes_naming(str(folder)))
        )


PUT_JOB = """\
import asyncio, json, sys
from lab import Experiment
experiment = asyncio.run(Experiment.create_or_get("probe", create_new=True))
job = asyncio.run(experiment.create_job())
asyncio.run(job.update_job_data_field("parameters", json.load(sys.stdin)))
print(job.id)
"""


class LabDriver:
    """Today's host: the real SDK from PyPI, in a folder of its own, over a local workspace."""

    def __init__(self, root: Path, datasets: Mapping[str, Path]):
        self.root, self.datasets = root, datasets
        self.env = {
            "PYTHONPATH": str(CONTRACT),
            "TFL_HOME_DIR": str(root / "home"),
            "TFL_WORKSPACE_DIR": str(root / "ws"),
        }
        for name in ("home", "ws"):
            (root / name).mkdir()
        self.ids: dict[str, str] = {}

    def run_dir(self, job: str, sweep: str = "") -> Path:
        return self.root / "runs" / f"{job}{sweep}"

    def job(self, job: str) -> dict[str, Any]:
        path = self.root / "ws" / "experiments" / "probe" / "jobs" / self.ids[job] / "index.json"
        return json.loads(path.read_text())

    def start(
        self, job: str, values: Values, *, template: str = "plain", sweep: str = ""
    ) -> Running:
        dataset = str(self.datasets.get(str(values["dataset_name"]), values["dataset_name"]))
        given = {**values, "dataset_name": {"type": "string", "default": dataset}}
        if "resume" not in values:
            given["run_dir"] = str(self.run_dir(job, sweep))
        put = subprocess.run(
            [sys.executable, "-c", PUT_JOB],
            input=json.dumps(given),
            env=child_env(self.env),
            capture_output=True,
            text=True,
            check=True,
        )
        self.ids[job] = put.stdout.split()[-1]
        env = {**self.env, "_TFL_JOB_ID": self.ids[job], "_TFL_EXPERIMENT_ID": "probe"}
        return Running(self, job, sweep, _popen([sys.executable, MAIN, "--task"], env, self.root))

    def press_stop(self, job: str, program: subprocess.Popen[str]) -> None:
        """Send SIGTERM to all processes, as the host does."""
        for pid in {program.pid, *processes_naming(str(self.run_dir(job)))}:
            os.kill(pid, signal.SIGTERM)

    def ended(self, job: str, program: subprocess.Popen[str], log: str, sweep: str) -> Ended:
        content = self.job(job)
        data = content["job_data"]
        outcome = {"success": "done", "failed": "failed"}.get(
            data.get("completion_status", ""), "stopped"
        )
        score = data.get("score", {}).get("eval/loss")
        resumed = re.search(r"^run folder: (.*)$", log, re.MULTILINE)
        folder = Path(resumed[1]) if resumed else self.run_dir(job, sweep)
        details = data.get("completion_details", "")
        return Ended(
            outcome,
            details,
            program.returncode,
            folder,
            score,
            log,
            tuple(processes_naming(str(folder))),
        )
