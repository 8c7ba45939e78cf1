"""Data of the chat's page: its models, an evaluation's figures, texts of settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.run_folders import write_run

from plugin.config.sampler import UNTYPED, SamplerSettings, setting_help
from plugin.studio.chat_page import field_text, may_open, models_below
from plugin.studio.place import Place


def test_models_are_the_runs_that_saved_something(tmp_path: Path) -> None:
    for name, inside in (("a", "fused"), ("stages/1-b", "checkpoint-3"), ("c", "data")):
        (write_run(tmp_path / name) / inside).mkdir()
    (tmp_path / "no-run" / "fused").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert models_below(tmp_path) == ["a", "stages/1-b"]
    assert models_below(tmp_path / "missing") == []


def test_every_setting_has_a_help_and_a_text() -> None:
    settings = vars(SamplerSettings())
    for name, value in settings.items():
        if name not in UNTYPED:
            text, choices = setting_help(name)
            assert text
            assert not choices or value in choices
    assert [field_text(value) for value in (None, 0.5, 3, "none")] == ["", "0.5", "3", "none"]


@pytest.mark.parametrize(
    ("model", "site", "opens"),
    [
        ("a", "same-origin", True),
        ("a", "same-site", False),
        ("a", "cross-site", False),
        ("a", "none", False),
        ("a", "", False),
        ("/etc", "same-origin", False),
        ("owner/model", "same-origin", False),
        ("", "same-origin", False),
    ],
)
def test_page_loads_a_run_that_a_page_of_ours_led_to(
    tmp_path: Path, model: str, site: str, opens: bool
) -> None:
    write_run(tmp_path / "a")
    headers = {"sec-fetch-site": site} if site else {}
    assert may_open(Place(tmp_path), model, headers) == opens
