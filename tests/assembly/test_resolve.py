"""Choices between the model and the data of a run: published weights, patience."""

from __future__ import annotations

import pytest

from plugin.assembly.resolve import check_patience, choose_publish
from plugin.base.errors import JobError
from plugin.config.params import Params
from plugin.training.loop import Cadence


@pytest.mark.parametrize(
    ("asked", "evaluates", "chosen"),
    [
        ({}, True, "best"),
        ({}, False, "last"),
        ({"publish": "best"}, True, "best"),
        ({"publish": "average"}, True, "average"),
        ({"publish": "last"}, True, "last"),
        ({"fuse_model": False}, True, "no"),
        ({"fuse_model": False, "lora": True}, True, "best"),
    ],
)
def test_published_weights_follow_the_evaluation(
    asked: dict[str, object], evaluates: bool, chosen: str
) -> None:
    choice = choose_publish(Params.model_validate(asked), evaluates=evaluates)
    assert choice.value == chosen
    if not evaluates:
        assert choice.why == "there is no evaluation"


@pytest.mark.parametrize("publish", ["best", "average"])
def test_ranking_without_an_evaluation_is_refused(publish: str) -> None:
    with pytest.raises(JobError, match="publish: expected data to evaluate on for"):
        choose_publish(Params.model_validate({"publish": publish}), evaluates=False)


@pytest.mark.parametrize(
    ("eval_every", "got"),
    [(0, "nothing that is held out"), (10, "none before the last of 10 steps")],
)
def test_patience_without_evaluations_is_refused(eval_every: int, got: str) -> None:
    cadence = Cadence(steps=10, log_every=1, eval_every=eval_every, save_every=5)
    check_patience(Params(), cadence)
    with pytest.raises(
        JobError, match=f"patience: expected evaluations during training, got {got}"
    ):
        check_patience(Params(patience=1), cadence)
    check_patience(Params(patience=1), Cadence(steps=11, log_every=1, eval_every=5, save_every=5))
