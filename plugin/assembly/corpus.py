"""Rows of a data set as the documents of a run, with the tokenizer that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..base.errors import one_line
from ..config.families import FAMILIES
from ..config.params import Params
from ..data.chat import ChatFormat
from ..data.documents import Documents
from ..data.formats import Dropped, Example, Format, RowResult, detect_format, read_examples
from ..data.hold_out import HeldOut, hold_out, split_examples
from ..data.mixture import parse_mixture
from ..data.prepare import Encoding, SplitReport, check_trainable, encode_split
from ..data.seen import RowError, Seen, with_noun
from ..data.sources import Row, has_eval_split, read_rows, skipped_files
from ..data.templates.form import compile_templates
from ..data.tokenizer import train_tokenizer
from ..data.turns import first_round
from ..models.configuration import new_config
from ..models.tokenizer import load_tokenizer
from .model import base_config, named_config

Log = Callable[[str], None]
GROUP = 256  # rows that templates render together


@dataclass(frozen=True)
class Prepared:
    """A run's text, tokenised."""

    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    train: Documents
    evaluation: Documents
    reports: dict[str, SplitReport]


class Examples:
    """Examples of a dataset, read anew at each call, with one log line for every note on their
    format.

    `seen` counts what is not read of each split, over its longest reading so far.
    """

    def __init__(self, params: Params, log: Log, *, between_rows: Callable[[], None]):
        self._params, self._log, self._between_rows = params, log, between_rows
        self._templates = compile_templates(
            params.instruction_template, params.input_template, params.output_template
        )
        self._formats: dict[tuple[str, ...], Format] = {}
        self.seen: dict[str, Seen] = {}

    def __call__(self, split: str, first: int = 0, every: int = 1) -> Iterator[RowResult]:
        """Rows `first`, `first + every`, ... of a split; of the others nothing but their number
        matters.
        """
        seen = Seen()
        text_rows = self._params.text_rows
        for rows in self._groups(split, first, every):
            formats = [self._format(row) for row in rows]
            for row, example in zip(rows, read_examples(rows, formats, seen), strict=True):
                if text_rows == "paragraph" and row.id.rpartition(":")[0].lower().endswith(".txt"):
                    seen.paragraph(row.values["text"])
                if seen.rows >= self.seen.get(split, seen).rows:
                    self.seen[split] = seen
                yield self._kept(example)

    def _kept(self, example: RowResult) -> RowResult:
        """Leave out what `train_turns` does not read, before prompts are compared and held out."""
        if self._params.train_turns != "first" or not isinstance(example, Example):
            return example
        try:
            return replace(example, turns=first_round(example.turns))
        except RowError as error:
            return Dropped(example.row, error.reason)

    def _groups(self, split: str, first: int, every: int) -> Iterator[list[Row]]:
        """Read rows one by one, or in groups where templates render them: a group renders faster."""
        rows = read_rows(
            self._params.dataset_name,
            "eval" if split == "eval" else "train",
            text_rows=self._params.text_rows,
        )
        group: list[Row] = []
        for number, row in enumerate(rows):
            self._between_rows()
            if number >= first and not (number - first) % every:
                group.append(row)
            if len(group) == (GROUP if self._templates else 1):
                yield group
                group = []
        if group:
            yield group

    def _format(self, row: Row) -> Format:
        columns = tuple(row.values)
        if columns not in self._formats:
            found, notes = detect_format(
                columns, self._templates, self._params.text_field, self._params.training_stage
            )
            self._formats[columns] = found
            for note in notes:
                self._log(f"dataset_name: {note}")
        return self._formats[columns]

    def lines(self) -> list[str]:
        """Name what the rows read so far hold and is not read, one line each."""
        return [f"{split}: {line}" for split, seen in self.seen.items() for line in seen.lines()]


def prepare_corpus(
    params: Params,
    log: Log,
    *,
    between_rows: Callable[[], None] = lambda: None,
    moment: datetime | None = None,
    train_encoding: Callable[[ChatFormat], Encoding] | None = None,
) -> Prepared:
    """Read, split and tokenise the data; `moment` is what a chat template takes for now.

    `train_encoding` replaces the encoding of the training split.
    Raises JobError (exit 3 or 4).
    """
    examples = Examples(params, log, between_rows=between_rows)
    wants_eval = params.eval_strategy != "no"
    own_files = wants_eval and has_eval_split(params.dataset_name)
    held = HeldOut(frozenset(), False)
    if wants_eval:
        share, drop = params.eval_share, params.drop_eval_prompts
        held = hold_out(examples, own_files, params.seed, share=share, drop_prompts=drop)
    if held.note:
        log(held.note)
    for note in unread(
        params.dataset_name, wants_eval, own_files, f"{params.eval_share:g} of the rows"
    ):
        log(f"dataset_name: {note}")

    def of_split(split: str) -> Iterable[RowResult]:
        return split_examples(examples, held, split, params.seed)

    tokenizer = make_tokenizer(params, of_split, log)
    base_config(params, tokenizer)  # a wrong pair is refused before the data is tokenised
    chat = ChatFormat(tokenizer, moment)
    if chat.moment:
        log(
            f"tokenizer_name: the chat template writes the time; for this run it is {chat.moment:%Y-%m-%d %H:%M:%S}"
        )
    how = train_encoding(chat) if train_encoding else encoding(params)
    train, train_report = encode_split(of_split("train"), chat, how, log)
    evaluation, eval_report = encode_split(
        of_split("eval") if wants_eval else (), chat, encoding(params)
    )
    for line in (*examples.lines(), *remarks({"train": train_report, "eval": eval_report})):
        log(f"dataset_name: {line}")
    if held.shared.rows:
        rows = with_noun(held.shared.rows, "row")
        log(
            f"drop_eval_prompts: {rows} of train with a prompt of the eval split and another answer; true leaves them out"
        )
    check_trainable(
        train_report, params.dataset_name, params.max_length, examples.seen.get("train")
    )
    if wants_eval and not len(evaluation):
        log("eval_strategy: nothing to hold out for evaluation; it is off.")
    return Prepared(
        tokenizer, chat, train, evaluation, {"train": train_report, "eval": eval_report}
    )


def remarks(reports: Mapping[str, SplitReport]) -> list[str]:
    """Write what a person should know of the rows, one line each."""
    return [f"{split}: {line}" for split, report in reports.items() for line in report.lines()]


def encoding(params: Params) -> Encoding:
    return Encoding(
        max_length=params.max_length,
        truncation=params.truncation,
        answers_only=params.mask_prompt_loss,
        turns=params.train_turns,
        seed=params.seed,
        stage=params.training_stage,
        insert_eos=params.insert_eos,
    )


def unread(spec: str, wants_eval: bool, own_files: bool, instead: str) -> Iterable[str]:
    """List what a mixture names or holds but this run does not read.

    `instead`: what is held out without an eval split.
    """
    if skipped := skipped_files(spec):
        shown = ", ".join(one_line(Path(file).name) for file in skipped[:5])
        yield f"not read of the folder: {shown}{f', ... ({len(skipped)} in all)' if len(skipped) > 5 else ''}"
    if wants_eval and not own_files and any(part.eval_limit for part in parse_mixture(spec)):
        yield f"no part has an eval split of its own: test:N does nothing, and {instead} is held out"


def tokenizer_source(params: Params) -> tuple[str, str]:
    """Return (field, folder or hub id) of the tokenizer that a job names; empty if it names none."""
    named = {
        "tokenizer_name": params.tokenizer_name,
        "model_name": params.model_name,
        "start_from": params.start_from,
        "init_from": params.init_from,
    }
    return next(((field, name) for field, name in named.items() if name), ("", ""))


def make_tokenizer(
    params: Params, examples: Callable[[str], Iterable[RowResult]], log: Log
) -> PreTrainedTokenizerBase:
    """Return the named tokenizer, else the model's, the smaller model's, or one trained on the
    training texts.

    Raises JobError (exit 3 or 4).
    """
    field, name = tokenizer_source(params)
    if name:
        family = FAMILIES[named_config(params).model_type]
        return load_tokenizer(name, family=family, field=field, log=log)
    texts = (
        turn.with_thought
        for one in examples("train")
        if isinstance(one, Example)
        for turn in one.turns
    )
    return train_tokenizer(texts, new_config(params.model_config_file).vocab_size)
