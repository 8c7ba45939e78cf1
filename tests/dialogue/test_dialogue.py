"""Dialogue of the studio: one model, its exchanges, its players, its ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from helpers.support import is_running

from plugin.dialogue import dialogue as dialogues
from plugin.dialogue.dialogue import PLAYERS, Dialogue, Exchange
from plugin.dialogue.process import ChatAnswer

STEP = {"step": 0, "block": 0, "positions": [0], "text": "x", "tokens": ["x"]}


def talk(scene: Callable[[Dialogue], Coroutine[Any, Any, None]]) -> Dialogue:
    """Run a scene and end the process."""
    dialogue = Dialogue()

    async def held() -> None:
        try:
            await scene(dialogue)
        finally:
            await dialogue.close()

    asyncio.run(held())
    return dialogue


@pytest.mark.end_to_end
def test_a_dialogue_from_load_to_close(tiny_bert: Path) -> None:
    pids: list[int] = []

    async def scene(dialogue: Dialogue) -> None:
        await dialogue.say("prompt", "nobody hears it")
        await dialogue.open("tiny", str(tiny_bert))
        assert (dialogue.state, dialogue.model, dialogue.settings) == (
            *("ready", "tiny"),
            dialogue.saved,
        )
        pids.append(dialogue._process.pid if dialogue._process else 0)
        assert await dialogue.command("/set steps 2") == ""
        assert "temperature" in await dialogue.command("/set temperature -1")
        assert (dialogue.settings["steps"], dialogue.saved["steps"]) == (2, 32)
        await dialogue.say("prompt", "Say <b>sun</b>.")
        await dialogue.say("infill", "the [[2]] sky")
        await dialogue.say("infill", "no hole")
        kinds = [(one.kind, one.answer is not None) for one in dialogue.exchanges]
        assert kinds == [("prompt", True), ("infill", True), ("infill", False)]
        assert "holes" in dialogue.exchanges[-1].problem
        page = dialogue.player(dialogue.exchanges[0].number, "dark", bare=False)
        assert page
        assert "Say &lt;b&gt;sun&lt;/b&gt;." in page
        bare = dialogue.player(dialogue.exchanges[0].number, "", bare=True)
        assert bare
        assert "Say &lt;" not in bare
        assert dialogue.player(dialogue.exchanges[2].number, "", bare=True) is None
        assert await dialogue.undo() == ""
        assert [one.kind for one in dialogue.exchanges] == ["infill", "infill"]
        assert "question" in await dialogue.undo()
        dialogue._show = lambda canvas: dialogue.stop()  # type: ignore[method-assign]
        await dialogue.say("prompt", "Say sun.")
        assert dialogue.exchanges[-1].problem.startswith("stopped")
        assert await dialogue.restart() == ""
        assert dialogue.exchanges == []

    ended = talk(scene)
    assert ended.state == "ended"
    assert not is_running(pids[0])


@pytest.mark.end_to_end
def test_an_idle_model_gives_its_memory_back(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(dialogue: Dialogue) -> None:
        monkeypatch.setattr(dialogues, "IDLE_S", 0.01)
        await dialogue.open("tiny", str(tiny_bert))
        while dialogue.state == "ready":
            await asyncio.sleep(0.01)
        assert dialogue.problem.startswith("nobody asked")
        assert await dialogue.command("/set") == "the model is not ready"

    talk(scene)


@pytest.mark.end_to_end
def test_the_second_model_replaces_the_first(tiny_bert: Path, tmp_path: Path) -> None:
    async def scene(dialogue: Dialogue) -> None:
        first = asyncio.create_task(dialogue.open("missing", str(tmp_path / "missing")))
        while dialogue._process is None:
            await asyncio.sleep(0.01)
        await dialogue.open("tiny", str(tiny_bert))
        await first
        assert (dialogue.model, dialogue.state, dialogue.problem) == ("tiny", "ready", "")

    talk(scene)


def test_steps_of_the_last_answers_alone_are_kept() -> None:
    figures = {"steps": 1, "nfe": 1, "seconds": 0.1, "tokens_per_forward": 1}
    dialogue = Dialogue()
    for number in range(PLAYERS + 3):
        one = Exchange(number=number, kind="prompt", asked="a")
        dialogue.exchanges.append(one)
        answer = ChatAnswer.read({"prompt": "a", "text": "x", "trace": [STEP], **figures})
        dialogue._replace(Exchange(number=number, kind="prompt", asked="a", answer=answer))
    kept = [bool(one.answer and one.answer.trace) for one in dialogue.exchanges]
    assert kept == [False] * 3 + [True] * PLAYERS
    assert dialogue.player(0, "", bare=True) is None


def test_a_model_whose_process_cannot_start_has_ended() -> None:
    async def scene(dialogue: Dialogue) -> None:
        await dialogue.open("a", "a\0")
        assert dialogue.state == "ended"
        assert "null byte" in dialogue.problem

    talk(scene)
