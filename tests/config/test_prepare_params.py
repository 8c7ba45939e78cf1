"""Parameters of `prepare`: every problem together, each with its field."""

from __future__ import annotations

import pytest

from plugin.base.errors import JobError
from plugin.config.prepare_params import PrepareParams, parse_prepare

GIVEN = {"dataset_name": "a.jsonl", "vocab_size": "32_000"}


def problems(**values: object) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        parse_prepare({**GIVEN, **values})
    assert caught.value.code == 2
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_values_of_a_file_are_texts() -> None:
    dedup = {"near": "off", "ngram": "3", "verify": "0.8"}
    params = parse_prepare({**GIVEN, "dedup": dedup, "lowercase": "yes", "eval_share": ""})
    assert (params.vocab_size, params.lowercase, params.eval_share) == (32_000, True, 0.01)
    assert (params.dedup.near, params.dedup.exact, params.dedup.ngram) == (False, True, 3)


@pytest.mark.parametrize(("word", "both"), [("false", False), ("no", False), ("true", True)])
def test_dedup_is_a_switch_too(word: str, both: bool) -> None:
    dedup = parse_prepare({**GIVEN, "dedup": word}).dedup
    assert (dedup.exact, dedup.near) == (both, both)


def test_every_problem_is_named_with_its_field() -> None:
    found = problems(
        vocab_size="many", bad_rows="ignore", dedup={"bands": "0", "band": 3}, sead=1, seed=True
    )
    assert set(found) == {"vocab_size", "bad_rows", "dedup.bands", "dedup.band", "sead", "seed"}
    assert "'stop' or 'skip'" in found["bad_rows"]
    assert "seed" in found["sead"]
    assert "bands" in found["dedup.band"]


def test_data_and_one_tokenizer_are_needed() -> None:
    with pytest.raises(JobError, match="files, a folder or a hub id"):
        parse_prepare({"vocab_size": 512})
    assert "got neither" in problems(vocab_size="")["vocab_size"]
    assert "got both" in problems(tokenizer_name="x")["vocab_size"]
    assert "at least 320" in problems(vocab_size=300)["vocab_size"]
    assert "compare_tokenizer" in problems(vocab_size=0, tokenizer_name="x", compare_tokenizer="y")


def test_every_parameter_is_described() -> None:
    for name, field in PrepareParams.model_fields.items():
        assert field.description, name
