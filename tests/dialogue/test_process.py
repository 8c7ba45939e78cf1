"""Process of a chat: replies, an interrupt, its deaths; it outlives no studio."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.support import ROOT, child_env, is_running, wait_until

from plugin.base.errors import JobError
from plugin.dialogue.process import (
    ChatAnswer,
    ChatCanvas,
    ChatNote,
    ChatProcess,
    ChatRefusal,
    chat_words,
    read_reply,
)
from plugin.run.record import NotARecord

OWNER = """\
import asyncio, sys
from plugin.dialogue.process import ChatProcess
async def own():
    process = await ChatProcess.start(sys.argv[1])
    await process.ready()
    print(process.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(own())
"""


@pytest.mark.end_to_end
def test_replies_of_a_model_and_its_death(tiny_bert: Path) -> None:
    async def talk() -> None:
        process = await ChatProcess.start(str(tiny_bert))
        ready = await process.ready()
        assert (ready.ready, ready.remark) == (str(tiny_bert), "")
        dropped = await process.ask("prompt", "Say moon.", lambda canvas: process.interrupt())
        assert isinstance(dropped, ChatRefusal)
        assert [one.got for one in dropped.problems] == ["Ctrl-C"]
        shown: list[ChatCanvas] = []
        answer = await process.ask("prompt", "Say\nsun.", shown.append)
        assert isinstance(answer, ChatAnswer)
        assert (answer.prompt, answer.nfe) == ("Say\nsun.", len(answer.trace))
        assert "░" in shown[0].canvas

        refusal = await process.ask("prompt", "sun " * 200_000)
        assert isinstance(refusal, ChatRefusal)
        process.interrupt()  # between two answers it does nothing
        note = await process.ask("command", "/undo")
        assert isinstance(note, ChatNote)
        assert note.note == "forgotten: Say\nsun."

        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(JobError, match="an end with code -9"):
            await process.ask("prompt", "Say sun.")
        await process.end()

    asyncio.run(talk())


@pytest.mark.end_to_end
def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    async def start() -> None:
        process = await ChatProcess.start(str(tmp_path / "--missing"))
        with pytest.raises(JobError, match=r"error\[4\]: model: .*--missing"):
            await process.ready()
        assert not is_running(process.pid)

    asyncio.run(start())


@pytest.mark.end_to_end
def test_a_chat_ends_with_a_killed_studio(tiny_bert: Path) -> None:
    words = [sys.executable, "-c", OWNER, str(tiny_bert)]
    owner = subprocess.Popen(words, cwd=ROOT, env=child_env(), stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    with owner, owner.stdout:
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.kill()
    wait_until(lambda: not is_running(pid), "the end of the chat")


def test_a_models_name_is_no_option() -> None:
    assert chat_words("--trace=x")[-2:] == ["--", "--trace=x"]


@pytest.mark.parametrize(
    "line",
    [b"\xff\n", b"3\n", b"{}\n", b"[" * 100_000, b'{"canvas": 3}\n', b'{"problems": [{}]}\n'],
)
def test_a_line_of_another_program_is_no_reply(line: bytes) -> None:
    with pytest.raises(NotARecord):
        read_reply(line)


def test_keys_of_a_later_version_are_left_out() -> None:
    assert read_reply(b'{"step": 1, "canvas": "x", "new": 2}') == ChatCanvas(step=1, canvas="x")
