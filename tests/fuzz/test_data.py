"""Data files of any content are refused as promised, or trained on exactly as `check` shows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.files import folders
from fuzz.promise import kept, writable
from hypothesis import event, given
from hypothesis import strategies as st

from plugin.assembly.corpus import Examples, Prepared, prepare_corpus
from plugin.assembly.rules import step_rules
from plugin.config.params import Params
from plugin.config.parse import parse
from plugin.data.chat import CHANGED
from plugin.data.documents import Documents
from plugin.data.formats import Example
from plugin.data.tokenizer import train_tokenizer
from plugin.parent.paths import with_full_paths
from plugin.parent.train import check_inputs
from plugin.run.folder import RunFolder
from plugin.run.run_file import Environment, RunFile
from plugin.worker.check import _preview
from plugin.worker.load import prepare_data

pytestmark = pytest.mark.fuzz
MOMENT = datetime(2026, 1, 2)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "training_stage": st.sampled_from(("sft", "pretrain")),
        "train_turns": st.sampled_from(("last", "all", "random_prefix", "first")),
        "truncation": st.sampled_from(("right", "filter")),
        "mask_prompt_loss": st.booleans(),
        "max_length": st.sampled_from((1, 2, 8, 24, 64)),
        "text_rows": st.sampled_from(("line", "paragraph", "file")),
        "text_field": st.sampled_from(("text", "prompt", "messages")),
        "eval_share": st.sampled_from((0.0, 0.2)),
        "eval_strategy": st.sampled_from(("no", "steps")),
        "drop_eval_prompts": st.booleans(),
        "insert_eos": st.booleans(),
        "output_template": st.sampled_from(
            ("{{ response }}", "{{ text | upper }}", "{{ messages[0].content }}", "{{ output.a }}")
        ),
        "instruction_template": st.sampled_from(
            ("{{ prompt }}", "{% for m in messages %}{{ m.role }}{% endfor %}", "x")
        ),
    },
)
SPECS = ("{folder}", "{file}", "{file}[train:2]", "{file}+{file}", "{file}|{folder}[test:1]")


class Log:
    """Lines that a worker logs while it prepares."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    def lengths(self, split: str, lengths: np.ndarray) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["Why is the sky blue? Because of its air."], 280).save_pretrained(folder)
    return folder


@given(files=folders(), settings=SETTINGS, spec=st.sampled_from(SPECS), own=st.booleans())
def test_data_is_refused_or_trained_on_as_checked(
    tiny_config: Path,
    tokenizer: Path,
    files: Mapping[str, bytes],
    settings: Mapping[str, Any],
    spec: str,
    own: bool,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "rows"
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        data = spec.format(folder=folder, file=folder / next(iter(files)))
        given = {
            "model_config": str(tiny_config),
            "dataset_name": data,
            "max_length": 64,
            **settings,
        }
        if own:
            given["tokenizer_name"] = str(tokenizer)
        try_data(given, RunFolder(Path(name) / "run"))


def try_data(given: Mapping[str, Any], run: RunFolder) -> None:
    """Pass the data through the parent, `check` and a worker, and compare the last two."""
    looked = kept(lambda: look_first(given, run))
    if looked is None:
        return
    params = Params.model_validate(run.read_run().params)
    assert params == looked
    shown: list[str] = []
    checked = kept(lambda: prepare_corpus(params, shown.append, moment=MOMENT))
    said = Log()

    def prepare() -> None:
        prepare_data(params, run, said, lambda: None, MOMENT)  # pyright: ignore[reportArgumentType]

    if checked is None:
        assert kept(lambda: prepare() or True) is None, "trained on what check refuses"
        return
    assert kept(lambda: prepare() or True), "refused what check accepts"
    assert said.lines == shown
    assert all(len(line.splitlines()) == 1 for line in shown), shown
    writable(shown)
    reports = json.loads((run / "data" / "report.json").read_text(encoding="utf-8"))
    for split, documents in (("train", checked.train), ("eval", checked.evaluation)):
        same_documents(documents, Documents.load(run / "data" / split))
        assert json.loads(json.dumps(checked.reports[split].as_json())) == reports[split]
        check_documents(documents, reports[split], checked, params)
    event("trained on")
    kept(lambda: check_preview(checked, params))
    check_answers(checked, params)


def look_first(given: Mapping[str, Any], run: RunFolder) -> Params:
    params = with_full_paths(parse(given).params)
    digest = check_inputs(params, run, ())
    run.create()
    environment = Environment(data=digest)
    run.write_run(RunFile(params=params.as_json(), environment=environment))
    return params


def same_documents(left: Documents, right: Documents) -> None:
    assert left.rows == right.rows
    for name in ("ids", "supervised", "offsets", "prompts"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name


def check_documents(
    documents: Documents, report: Mapping[str, Any], made: Prepared, params: Params
) -> None:
    """Assert properties of documents that hold for any data."""
    assert report["documents"] == len(documents)
    assert report["supervised"] == int(documents.supervised.sum())
    sft = params.training_stage == "sft"
    if sft:
        assert report["rows"] == len(documents) + sum(report["dropped"].values())
    assert len(made.chat.tokenizer) > int(documents.ids.max(initial=0))
    assert made.chat.mask_id not in documents.ids
    unended = 0
    for place in range(len(documents)):
        one = documents[place]
        assert 0 < one.ids.size <= params.max_length
        assert 0 <= one.prompt < max(2, one.ids.size)
        assert not one.supervised[0]
        assert one.supervised.any() or not sft
        unended += one.ids[-1] not in made.chat.end_ids
    assert unended <= report["truncated"] or not sft


def check_preview(made: Prepared, params: Params) -> None:
    """Make the preview of the first document that `check` shows."""
    rules = step_rules(params, made.chat)
    writable(_preview(made.train[0], rules, made.chat))


def check_answers(made: Prepared, params: Params) -> None:
    """Assert that the learned tokens of each document are the answer of its own row."""
    if params.training_stage == "pretrain" or params.train_turns == "random_prefix":
        return
    examples = Examples(params, lambda line: None, between_rows=lambda: None)("train")
    rows = {example.row: example for example in examples}
    once = {row for row in made.train.rows if made.train.rows.count(row) == 1}
    for place, row in enumerate(made.train.rows):
        example = rows.get(row)
        if row not in once or not isinstance(example, Example):
            continue
        turns = [
            turn for turn in example.turns if turn.role in ("assistant", "text") and turn.learn
        ]
        if params.train_turns != "all":
            turns = turns[-1:]
        learned = made.train[place]
        text = made.chat.text(learned.ids[learned.supervised].tolist())
        wanted = "".join(turn.with_thought for turn in turns)
        if params.mask_prompt_loss:
            whole = learned.ids[-1] in made.chat.end_ids
            assert text == wanted if whole else wanted.startswith(text.rstrip("\ufffd")), (
                text,
                wanted,
            )
        assert CHANGED not in made.reports["train"].remarks
