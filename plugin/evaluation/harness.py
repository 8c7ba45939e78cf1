"""Tasks of lm-evaluation-harness (EleutherAI, 0.4.13), asked of a diffusion model.

It is imported only for a task of it, because it brings scikit-learn and scipy with it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import evaluator  # pyright: ignore[reportMissingImports]
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

from ..base.errors import JobError, Problem, first_line
from ..config.wording import did_you_mean
from .figures import Figure, figure, ratio
from .perplexity import windows
from .scorer import How, Scored
from .subject import Asked, Continuation, Subject

LONGEST = 256  # tokens of an answer whose task does not say, as the harness has it
BOOTSTRAPS = 1000  # resamplings for the standard errors of metrics that are no means
SEED = 1234  # of the examples shown, as the harness has it


def load_tasks(names: Sequence[str], how: How) -> dict[str, Any]:
    """Load tasks by name, or from YAML files, with their data: {tasks, groups, group_map}.

    Raises JobError (exit 2 or 3) naming every task that is unknown, broken, or whose data is not
    here.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_defaults=any(not Path(name).is_file() for name in names))
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    problems: list[Problem] = []
    for name in names:
        if not Path(name).is_file() and name not in manager.all_tasks:
            fix = did_you_mean(name, manager.all_tasks) or "List them: lm_eval ls tasks."
            problems.append(Problem("tasks", "a scorer, a task or a .yaml file", name, fix))
            continue
        try:
            found: Mapping[str, Any] = manager.load([name])
        except Exception as error:  # of the hub, of datasets, of a task's own code
            problems.append(_unloadable(name, error))
            continue
        for one, task in found["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                problems.append(Problem("tasks", "a task of texts that runs no code", one))
        for kind in loaded:
            loaded[kind] |= found.get(kind) or {}
    if problems:
        raise JobError(*problems)
    for task in loaded["tasks"].values():
        shown = task.get_config("num_fewshot")
        if how.num_fewshot is not None and shown != 0:
            task.set_config(key="num_fewshot", value=how.num_fewshot)
        elif shown is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _unloadable(name: str, error: Exception) -> Problem:
    kind = type(error).__name__
    fix = (
        "Data of the hub has to be on this machine before: load it once with a network. A local"
        " YAML task names its own files (dataset_path: json, dataset_kwargs: data_files)."
    )
    return Problem("tasks", "a task that loads", f"{name}: {kind}: {first_line(error)}", fix, 3)


class HarnessModel(TemplateLM):
    """A Subject as the harness sees it.

    Nothing is inserted into a text but the token that opens a document of the model's training,
    and that only where the text does not begin with it. A text spells no special token unless a
    chat template wrote it.
    """

    def __init__(self, subject: Subject, how: How, overrides: Mapping[str, Any]):
        super().__init__()
        self._subject, self._how, self._overrides = subject, how, overrides
        self.tokenizer = subject.chat.tokenizer
        self._templated = False

    @property
    def eot_token_id(self) -> int:
        return self._subject.chat.fill_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a dialogue by the model's chat template."""
        self._templated = True
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text alone; nothing is added, whatever the harness asks for."""
        if self._templated:
            return list(self.tokenizer(string, add_special_tokens=False)["input_ids"])
        return self._subject.chat.plain_ids([string])[0]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs; an empty context is the opening of a document."""
        pairs: list[tuple[tuple[str, str], list[int], list[int]]] = []
        for context, continuation in (request.args for request in requests):
            before, rest = [], self.tok_encode(continuation)
            if context:
                before, rest = self._encode_pair(context, continuation)
            pairs.append(((context, continuation), before, rest))
        return self._loglikelihood_tokens(pairs)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts = [
            Continuation(
                row=f"request {number}",
                context=self._opened(context),
                continuation=np.array(continuation, np.int32),
                greedy=True,
            )
            for number, (_, context, continuation) in enumerate(requests, start=1)
        ]
        return [(one.value, bool(one.greedy)) for one in self._subject.scores(texts)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score full texts in windows, each token once."""
        length = max(3, min(self._how.max_length, self._subject.positions))
        texts: list[Continuation] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            ids = np.array(self.tok_encode(request.args[0]), np.int32)
            for context, rest in windows(ids, self._subject.chat.start_id, length):
                row = f"request {number + 1}"
                texts.append(Continuation(row=row, context=context, continuation=rest))
                owner.append(number)
        found = [0.0] * len(requests)
        for number, one in zip(owner, self._subject.scores(texts), strict=True):
            found[number] += one.value
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer contexts. A text is cut at the first `until` after it is decoded: a canvas is not
        written from left to right, so that nothing can stop at it.
        """
        seen = Counter[int]()  # a task may ask for several answers to a prompt
        asked: list[Asked] = []
        for number, request in enumerate(requests, start=1):
            asked.append(
                Asked(
                    row=f"request {number}",
                    ids=self._opened(self.tok_encode(request.args[0])),
                    max_new_tokens=self._longest(request.args[1]),
                    repeat=seen[id(request)],
                )
            )
            seen[id(request)] += 1
        answers = self._subject.answers(asked)
        return [
            cut_at(self._text(answer.ids), _stops(request.args[1]))
            for request, answer in zip(requests, answers, strict=True)
        ]

    def _longest(self, asked: Mapping[str, Any]) -> int:
        """Return the typed max_new_tokens, else the task's."""
        named = (asked.get(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens"))
        of_task = next((int(value) for value in named if value), LONGEST)
        return int(self._overrides.get("max_new_tokens", of_task))

    def _text(self, ids: Sequence[int]) -> str:
        return self._subject.chat.text(self._subject.chat.until_end(ids))

    def _opened(self, ids: Sequence[int]) -> np.ndarray:
        start = self._subject.chat.start_id
        opening = [] if start is None or list(ids[:1]) == [start] else [start]
        return np.array([*opening, *ids], np.int32)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of `stops` in it."""
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _stops(asked: Mapping[str, Any]) -> list[str]:
    until = asked.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def run_tasks(
    loaded: dict[str, Any], subject: Subject, how: How, overrides: Mapping[str, Any]
) -> dict[str, Scored]:
    """Score loaded tasks. Returns the result of each task and group by name."""
    found: Any = evaluator.evaluate(
        lm=HarnessModel(subject, how, overrides),
        task_dict=loaded,  # pyright: ignore[reportArgumentType]
        limit=how.limit,
        bootstrap_iters=BOOTSTRAPS,
        log_samples=True,  # for the spread of what the harness gives no standard error of
        apply_chat_template=how.template,
        fewshot_as_multiturn=how.template,
        confirm_run_unsafe_code=False,
    )
    return {
        name: _scored(name, values, found, template=how.template)
        for name, values in found["results"].items()
    }


def _scored(
    name: str, values: Mapping[str, Any], found: Mapping[str, Any], *, template: bool
) -> Scored:
    counts = found.get("n-samples", {}).get(name, {})
    config = found.get("configs", {}).get(name, {})
    rows = int(counts.get("effective", 0))
    return Scored(
        figures=_figures(values, found.get("samples", {}).get(name, ())),
        rows=rows,
        of=int(counts.get("original", rows)),
        protocol={
            "harness": "lm-eval",
            "shots": found.get("n-shot", {}).get(name),
            "version": found.get("versions", {}).get(name),
            "until": (config.get("generation_kwargs") or {}).get("until"),
            "template": "chat" if template else "the task's own",
        },
    )


def _figures(values: Mapping[str, Any], samples: Sequence[Any]) -> dict[str, Figure]:
    """Return the figures of a task; its keys are `metric,filter` and `metric_stderr,filter`."""
    figures: dict[str, Figure] = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if not isinstance(value, int | float) or metric.endswith("_stderr") or not chosen:
            continue
        error = values.get(f"{metric}_stderr,{chosen}")
        if not isinstance(error, int | float):
            of_filter = [one for one in samples if one["filter"] == chosen]
            error = _spread(metric, float(value), [one.get(metric) for one in of_filter])
        name = metric if chosen == "none" else f"{metric}/{chosen}"
        figures[name] = figure(value, error)
    return figures


def _spread(metric: str, value: float, rows: Sequence[Any]) -> float | None:
    """Return the standard error of a metric over rows (log-likelihood, words or bytes).

    They are those of rolling tasks, for which the harness has none.
    """
    if not rows or not all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        return None
    error = ratio([(float(row[0]), float(row[1])) for row in rows])[1]
    if error is None:
        return None
    return error / math.log(2) if metric.startswith("bits_per") else value * error
