"""Command-line arguments of `evaluate`."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import Code, JobError, Problem
from ..config.command_line import CommandLine, whole_number
from ..config.sampler import add_sampler_options, sampler_overrides

# Own scorers and what their files hold. `loss` needs the training's own code, the others do not.
SCORERS = {
    "gsm8k": "question and answer (#### n)",
    "exact": "prompts and responses, of any format that training reads",
    "reverse": "name and description, asked in both directions",
    "infill": "text with [[holes]]",
    "mt_bench": "question_id and turns; writes an answers file",
    "perplexity": "text, and date for slices of time",
    "loss": "any training data: held-out loss by mask ratio",
}
HARNESS = "lm-eval==0.4.13"
LIKELIHOODS = ("monte_carlo", "chain_rule", "confidence")


@dataclass(frozen=True)
class Task:
    """A word of --tasks: a scorer with its file, a YAML file, or a name of the harness."""

    word: str
    scorer: str = ""
    file: str = ""

    @property
    def of_harness(self) -> bool:
        return not self.scorer


def evaluate_options(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of `evaluate`. Raises JobError (exit 2 or 3) with every problem."""
    options = _parser().parse_args(argv)
    problems: list[Problem] = []
    options.overrides = {}
    try:
        options.overrides = sampler_overrides(options)
    except JobError as error:
        problems += error.problems
    options.parsed = [_task(word) for word in options.tasks]
    problems += _task_problems(options.parsed)
    if options.shots:
        problems += _file_problem("shots", options.shots)
        if options.num_fewshot is None:
            problems.append(Problem("shots", "--num_fewshot as well", "no number of shots"))
    problems += _useless_shots(options)
    if problems:
        raise JobError(*problems)
    return options


def _parser() -> CommandLine:
    about = (
        "Score a trained model: tasks of lm-evaluation-harness, local YAML tasks, and offline"
        " scorers of your own files, as SCORER=FILE: "
        + "; ".join(f"{name} ({text})" for name, text in SCORERS.items())
        + ". An interrupted evaluation resumes; results of other tasks of the same weights are kept."
    )
    parser = CommandLine(prog="main.py evaluate", description=about)
    parser.add_argument("model", help="a run folder, a model folder or a hub id")
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="T", help="SCORER=FILE, FILE.yaml or a name"
    )
    parser.add_argument("--base", default="", help="for an adapter outside of its run: its base")
    parser.add_argument("--limit", type=whole_number(), metavar="N", help="score the first N rows")
    parser.add_argument(
        "--batch_size", type=whole_number(), default=16, metavar="N", help="texts denoised together"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of evaluation.json (default: the run's, or the model's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--num_fewshot", type=_count, metavar="N", help="examples shown")
    parser.add_argument("--shots", default="", metavar="FILE", help="gsm8k: the examples shown")
    parser.add_argument(
        "--chat_template",
        choices=("auto", "on", "off"),
        default="auto",
        help="prompts by the chat template; auto: for the offline scorers",
    )
    parser.add_argument(
        "--slices", choices=("year", "month"), default="year", help="perplexity: slices of dates"
    )
    parser.add_argument(
        "--max_length",
        type=whole_number(),
        metavar="N",
        help="tokens of a window of perplexity and rolling tasks (default: 1024) and of a"
        " document of loss (default: the run's)",
    )
    group = parser.add_argument_group("likelihood")
    group.add_argument(
        "--likelihood",
        choices=LIKELIHOODS,
        default=LIKELIHOODS[0],
        help="estimator; a causal model is exact (default: monte_carlo)",
    )
    group.add_argument(
        "--draws", type=whole_number(), default=128, metavar="N", help="of monte_carlo (128)"
    )
    add_sampler_options(parser)
    return parser


def _useless_shots(options: argparse.Namespace) -> list[Problem]:
    """Return what is wrong with shots that no task shows."""
    tasks: list[Task] = options.parsed
    gsm8k = any(task.scorer == "gsm8k" for task in tasks)
    found: list[Problem] = []
    if options.shots and not gsm8k:
        found.append(Problem("shots", "gsm8k among the tasks", options.shots))
    if options.num_fewshot and not (gsm8k or any(task.of_harness for task in tasks)):
        expected = "gsm8k or a task of the harness, which show examples"
        found.append(Problem("num_fewshot", expected, str(options.num_fewshot), "Leave it out."))
    return found


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _task(word: str) -> Task:
    name, sign, file = word.partition("=")
    return Task(word, name, os.path.expanduser(file)) if sign else Task(word)


def _task_problems(tasks: Sequence[Task]) -> list[Problem]:
    found: list[Problem] = []
    seen = set[str]()
    for task in tasks:
        name = task.scorer or task.word
        if name in seen:
            found.append(Problem("tasks", "each task once", task.word))
        seen.add(name)
        if task.scorer and task.scorer not in SCORERS:
            from ..config.wording import did_you_mean  # the parameters, which take long to import

            fix = did_you_mean(task.scorer, SCORERS) or f"Known: {', '.join(SCORERS)}."
            found.append(Problem("tasks", "a scorer", task.word, fix))
        elif task.scorer:
            found += _file_problem("tasks", task.file)
        elif task.word.endswith((".yaml", ".yml")):
            found += _file_problem("tasks", task.word)
        elif task.word in SCORERS and importlib.util.find_spec("lm_eval") is None:
            found.append(Problem("tasks", f"{task.word}=FILE", task.word, "Name its file."))
    harness = [task.word for task in tasks if task.of_harness and task.word not in SCORERS]
    if harness and importlib.util.find_spec("lm_eval") is None:
        fix = f"Install it: python -m pip install {HARNESS}"
        got = f"{', '.join(harness[:3])}, and it is not installed"
        found.append(Problem("tasks", "lm-evaluation-harness for its tasks", got, fix))
    return found


def _file_problem(field: str, name: str) -> list[Problem]:
    path = Path(name)
    if not path.exists():
        return [Problem(field, "a file that exists", name or "no name", "", Code.DATA)]
    if not os.access(path, os.R_OK):
        return [Problem(field, "a file that can be read", name, "", Code.DATA)]
    return []
