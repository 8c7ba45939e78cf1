"""Parameters of `prepare`: the way from raw text to stored tokens, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..base.errors import JobError, Problem
from .fields import Float, Int, yes_or_no
from .wording import did_you_mean, quoted

STEPS = ("list", "sign", "bands", "keep", "tokenizer", "tokens", "seal")
MOST_VOCABULARY = 2**20
LEAST_VOCABULARY = 320  # the 256 bytes and the special tokens, rounded up
YesNo = Annotated[bool, BeforeValidator(yes_or_no)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Dedup(_Group):
    """Removal of documents that another document repeats."""

    exact: YesNo = Field(True, description="Drop documents whose normalised text is the same.")
    near: YesNo = Field(True, description="Drop documents that share most of their n-grams.")
    ngram: Int = Field(5, ge=1, le=64, description="Units of a shingle.")
    unit: Literal["word", "character"] = Field(
        "word", description="word, or character for languages without spaces."
    )
    bands: Int = Field(25, ge=1, le=256, description="Bands of a signature.")
    rows: Int = Field(10, ge=1, le=64, description="Rows of a band.")
    verify: Float = Field(
        0.75, ge=0, le=1, description="Least estimated Jaccard similarity of a duplicate."
    )
    keep: Literal["cluster", "neighbours"] = Field(
        "cluster",
        description="cluster keeps the first of all that are linked; neighbours drops only what is itself similar to a kept one.",
    )


def _dedup(value: object) -> object:
    """Read `dedup: false` as no dedup at all."""
    word = yes_or_no(value) if isinstance(value, bool | str) else value
    return {"false": {"exact": "false", "near": "false"}, "true": {}}.get(str(word), value)


class PrepareParams(_Group):
    """Parameters of a corpus: its data, what is dropped of it, its tokenizer."""

    dataset_name: str = Field(
        description="Files, folders or hub ids, joined with |; [train:N,test:N,weight:W,name:CONFIG] limits and weighs a part."
    )
    text_field: str = Field("text", min_length=1, description="Column of the text.")
    text_rows: Literal["line", "paragraph", "file"] = Field(
        "paragraph", description="One row of a .txt file."
    )
    vocab_size: Int = Field(
        0,
        ge=0,
        le=MOST_VOCABULARY,
        description="Tokens of a tokenizer trained on the kept documents, rounded up to a multiple of 64.",
    )
    tokenizer_name: str = Field(
        "", description="Folder or hub id of a tokenizer, in the place of vocab_size."
    )
    compare_tokenizer: str = Field(
        "", description="Folder or hub id that the trained tokenizer is compared with."
    )
    normalise: Literal["none", "nfc", "nfkc"] = Field(
        "nfc",
        description="Unicode form of texts when they are compared, and of a trained tokenizer.",
    )
    lowercase: YesNo = Field(
        False, description="Compare lower-case texts, and train a lower-case tokenizer."
    )
    dedup: Annotated[Dedup, BeforeValidator(_dedup)] = Field(
        default_factory=lambda: Dedup.model_validate({}), description="Removal of duplicates."
    )
    eval_share: Float = Field(
        0.01, ge=0, le=0.2, description="Share held out where the data has no eval split."
    )
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="A row that cannot be read stops the work, or is counted."
    )
    seed: Int = Field(42, ge=0, lt=2**63, description="Seeds the split, the sample and signatures.")


def parse_prepare(values: Mapping[str, Any]) -> PrepareParams:
    """Read the parameters. Raises JobError (exit 2) with every problem."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    try:
        params = PrepareParams.model_validate(given)
    except ValidationError as error:
        raise JobError(*map(_problem, error.errors())) from error
    if problems := _cross_checks(params):
        raise JobError(*problems)
    return params


def _cross_checks(params: PrepareParams) -> list[Problem]:
    found: list[Problem] = []
    if bool(params.vocab_size) == bool(params.tokenizer_name):
        got = "both" if params.vocab_size else "neither"
        fix = "vocab_size trains a tokenizer on the data, tokenizer_name takes one."
        found.append(Problem("vocab_size", "vocab_size or tokenizer_name", got, fix))
    elif 0 < params.vocab_size < LEAST_VOCABULARY:
        got, fix = str(params.vocab_size), "256 of them are the bytes."
        found.append(Problem("vocab_size", f"at least {LEAST_VOCABULARY} tokens", got, fix))
    if params.compare_tokenizer and params.tokenizer_name:
        expected, got = "vocab_size as well", "tokenizer_name"
        fix = "Only a tokenizer that is trained here is compared."
        found.append(Problem("compare_tokenizer", expected, got, fix))
    return found


def _problem(error: Any) -> Problem:
    """Describe a wrong value: the field as it is written in the file, and what was expected."""
    place = [str(part) for part in error["loc"]]
    field, given = ".".join(place), error["input"]
    model = Dedup if place[0] == "dedup" and len(place) > 1 else PrepareParams
    if error["type"] == "extra_forbidden":
        fix = did_you_mean(place[-1], model.model_fields)
        return Problem(field, "a parameter of prepare", quoted(given), fix)
    if error["type"] == "missing":
        return Problem(field, "files, a folder or a hub id", "nothing", "Name the data.")
    expected = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return Problem(field, expected, quoted(given))
