"""Local YAML tasks by the real lm-evaluation-harness, against direct computations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import write_rows

pytestmark = pytest.mark.lm_eval

ROWS = [
    {"question": "What colour is the sky?", "choices": ["blue", "It is green.", "red"], "label": 0},
    {"question": "3 + 3?", "choices": ["6", "sky sky"], "label": 1},
    {"question": "Say sun three times.", "choices": ["sun", "no"], "label": 0},
]
COMMON = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
"""
TASKS = {
    "tiny_choice": (
        "multiple_choice",
        'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\n'
        "doc_to_target: label\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    ),
    "tiny_generation": (
        "generate_until",
        'doc_to_text: "{{question}}"\n'
        'doc_to_target: "It is"\n'
        'generation_kwargs: {until: ["s"], max_gen_toks: 6}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    ),
    "tiny_rolling": (
        "loglikelihood_rolling",
        'doc_to_text: ""\n'
        'doc_to_target: "{{question}}"\n'
        "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]\n",
    ),
}
LIKELIHOOD = ("--likelihood", "chain_rule")


@pytest.fixture
def yaml(tmp_path: Path) -> list[str]:
    data = write_rows(tmp_path / "rows.jsonl", ROWS)
    for name, (kind, text) in TASKS.items():
        head = COMMON.format(name=name, data=data, kind=kind)
        (tmp_path / f"{name}.yaml").write_text(head + text)
    return [str(tmp_path / f"{name}.yaml") for name in TASKS]


class Direct:
    """The tiny model by full logits, one canvas a forward."""

    def __init__(self, folder: Path):
        from plugin.data.chat import ChatFormat
        from plugin.models.load import load_model
        from plugin.models.tokenizer import load_tokenizer

        self.model = load_model(str(folder))
        self.chat = ChatFormat(load_tokenizer(str(folder)))

    def ids(self, text: str) -> list[int]:
        return self.chat.plain_ids([text])[0]

    def chain_rule(self, context: list[int], rest: list[int]) -> float:
        ids, total, mask = [*context, *rest], 0.0, self.chat.mask_id
        for place in range(len(context), len(ids)):
            noisy = torch.tensor([[*ids[:place], *[mask] * (len(ids) - place)]])
            with torch.no_grad():
                logits = self.model(input_ids=noisy).logits[0, place]
            logits[mask] = -torch.inf
            total += logits.log_softmax(-1)[ids[place]].item()
        return total

    def choice(self, row: dict[str, Any]) -> bool:
        """Return whether the likeliest choice is the right one; lm-eval puts a space before it."""
        start = [self.chat.start_id]
        context = [*start, *self.ids(row["question"])]
        values = []
        for choice in row["choices"]:
            whole = [*start, *self.ids(f"{row['question']} {choice}")]
            values.append(self.chain_rule(context, whole[len(context) :]))
        return values.index(max(values)) == row["label"]

    def rolling(self, row: dict[str, Any]) -> float:
        return self.chain_rule([self.chat.start_id or 0], self.ids(row["question"]))


def evaluate(model: Path, tasks: list[str], out: Path, *words: object) -> int:
    from plugin.commands.evaluate import main

    return main([str(word) for word in (model, "--tasks", *tasks, "--out", out, "--json", *words)])


def test_three_kinds_of_tasks_equal_direct_computations(
    tiny_bert: Path, yaml: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_bert, yaml, tmp_path / "out", *LIKELIHOOD) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    direct = Direct(tiny_bert)
    results = found["results"]
    right = [direct.choice(row) for row in ROWS]
    assert results["tiny_choice"]["acc"]["value"] == pytest.approx(sum(right) / 3)
    assert results["tiny_choice"]["acc"]["stderr"] is not None
    nats = -sum(direct.rolling(row) for row in ROWS)
    count = sum(len(row["question"].encode()) for row in ROWS)
    bits = results["tiny_rolling"]["bits_per_byte"]
    assert bits["value"] == pytest.approx(nats / count / math.log(2), rel=1e-4)
    assert bits["stderr"] > 0
    assert results["tiny_rolling"]["byte_perplexity"]["value"] == pytest.approx(
        math.exp(nats / count), rel=1e-4
    )
    assert results["tiny_generation"]["exact_match"]["value"] in (0.0, 1 / 3, 2 / 3, 1.0)
    assert found["tasks"]["tiny_choice"]["rows"] == 3


def test_generated_text_is_cut_after_decoding(tiny_bert: Path, tmp_path: Path) -> None:
    """The sampler's own answer to the same ids, cut by hand at what a task stops at."""
    from plugin.evaluation.harness import HarnessModel, cut_at
    from plugin.evaluation.kept import Kept
    from plugin.evaluation.scorer import How
    from plugin.evaluation.subject import Subject
    from plugin.inference.model import load_for_sampling
    from plugin.models.diffusion import Predictor
    from plugin.sampling.generate import generate
    from plugin.sampling.likelihood import LikelihoodSettings
    from plugin.sampling.request import Request

    loaded = load_for_sampling(str(tiny_bert), {"max_new_tokens": 12})
    chat = loaded.chat
    subject = Subject(
        loaded.model,
        chat,
        loaded.settings,
        LikelihoodSettings(),
        attention="loop",
        batch_size=2,
        digest="",
        kept=Kept(tmp_path / "requests.jsonl"),
    )
    model = HarnessModel(subject, How(), {"max_new_tokens": 12})
    requests = [_Request((row["question"], {"until": ["e", "zz"]})) for row in ROWS]
    found = model.generate_until(requests)  # type: ignore[arg-type]
    opened = [[chat.start_id, *chat.plain_ids([row["question"]])[0]] for row in ROWS]
    import numpy as np

    samples = generate(
        Predictor(loaded.model),
        [Request(ids=np.array(ids, np.int32)) for ids in opened],
        loaded.vocabulary,
        loaded.settings,
    )
    for text, sample in zip(found, samples, strict=True):
        ids = sample.ids.tolist()
        ends = [place for place, token in enumerate(ids) if token in chat.end_ids]
        assert text == chat.text(ids[: ends[0]] if ends else ids).partition("e")[0]
    assert cut_at("abcabc", ["c", "b"]) == "a"
    assert cut_at("abc", ["", "x"]) == "abc"


class _Request:
    def __init__(self, args: tuple[str, dict[str, Any]]):
        self.args = args


def test_chat_template_is_written_once(tiny_bert: Path, yaml: list[str], tmp_path: Path) -> None:
    assert evaluate(tiny_bert, yaml[1:2], tmp_path / "out", "--chat_template", "on") == 0
    kept = (tmp_path / "out" / "evaluation" / "requests.jsonl").read_text()
    assert kept.count("\n") == 3
    (task,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tasks"].values()
    assert task["protocol"]["template"] == "chat"


def test_unknown_tasks_and_missing_data_are_refused_by_name(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`hellaswag` is a task of the harness whose data is on the hub, which tests do not reach."""
    assert evaluate(tiny_bert, ["hellaswg", "hellaswag"], tmp_path / "out") in (2, 3)
    lines = capsys.readouterr().err
    assert "tasks: expected a scorer, a task or a .yaml file, got hellaswg" in lines
    assert "Did you mean hellaswag?" in lines
    assert "tasks: expected a task that loads, got hellaswag:" in lines
    assert not (tmp_path / "out").exists()
