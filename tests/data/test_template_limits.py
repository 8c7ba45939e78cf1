"""Chat templates of strangers: the output of transformers, under limits that none escapes."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from helpers.published_checkpoints import published_tokenizer
from helpers.support import is_running, run_python
from transformers import PreTrainedTokenizerBase

from plugin.assembly.verify import rendered_prompt
from plugin.base.errors import JobError
from plugin.config.families import FAMILIES
from plugin.data.chat import ChatFormat
from plugin.data.templates.chat_template import chat_job, render_chat
from plugin.data.templates.renderer import Failed, OverLimit, Renderer, RenderJob, render
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = (
    "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(30) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}"
)
LONG = "{{ 'a' * 3000000000 }}"
WRITES = "{% for m in messages %}<u>{{ m.content }}</t>{% endfor %}"
TIME, MEMORY = "2 s of CPU time", "512 MB of memory"
QUESTION = (Turn("user", "Why?"), Turn("assistant", "Air."))


def tokenizer(template: str) -> PreTrainedTokenizerBase:
    made = train_tokenizer(["one two three four"] * 9, 320)
    made.add_special_tokens({"extra_special_tokens": ["<u>", "</t>"]})
    made.eos_token, made.bos_token, made.chat_template = "[SEP]", "[CLS]", template
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("bomb", "limit"), [(LOOPS, TIME), (DOUBLING, MEMORY), (LONG, MEMORY)])
def test_endless_chat_template_is_refused_soon(bomb: str, limit: str) -> None:
    """Audit 4: nested loops ran for minutes, doubling needed 8 GB."""
    began_s = time.thread_time()
    with pytest.raises(JobError) as caught:
        ChatFormat(tokenizer(bomb + WRITES))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (4, "tokenizer_name")
    assert f"more than {limit}" in problem.got
    assert len(problem.line) < 300
    assert time.thread_time() - began_s < 1, "the limits are enforced elsewhere"
    assert ChatFormat(tokenizer(WRITES)).encode([QUESTION]), "the next template has a fresh process"


@pytest.mark.slow
@pytest.mark.parametrize("bomb", [LOOPS, DOUBLING])
def test_template_bomb_for_one_question_is_refused_in_verify(bomb: str) -> None:
    """Audit 4: the prompt for comparing published models is rendered under the same limits."""
    only = f"{{% if 'France' in messages[0].content %}}{bomb}{{% endif %}}"
    with pytest.raises(JobError, match="tokenizer_name"):
        rendered_prompt(tokenizer(only + WRITES))


@pytest.mark.slow
@pytest.mark.parametrize(
    "bomb",
    [
        "{{ range(99999)|select('in', range(99999)|list)|list|count }}",
        "{{ range(99999)|reject('in', range(99999)|list)|list|count }}",
        "{{ range(99999)|map('list')|list }}" + LOOPS,
        "{% for i in range(99999) %}{{ range(99999)|sort|unique|list|min }}{% endfor %}",
        (
            "{% for i in range(99999) %}{{ 'ab'|center(99999)|replace(' ', 'a')|upper|count }}"
            "{% endfor %}"
        ),
        (
            "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{% for i in range(9999) %}"
            "{{ f(1) }}{% endfor %}"
        ),
        "{{ ('a'|center(99999))|list|join('b'|center(99999)) }}",
        "{{ '%0999999999d'|format(1) }}",
        "{{ ('{:>%d}' % 999999999).format('a') }}",
        "{{ dict.fromkeys(range(99999)|list * 99999) }}",
        "{{ range(99999)|list|tojson(indent='a'|center(99999)) }}",
    ],
)
def test_endless_filter_is_refused_soon(bomb: str) -> None:
    """Audit 20: filters whose work no counter of jinja2 sees."""
    try:
        (found,) = render("chat", bomb, [RenderJob({}, 100_000)])
    except OverLimit:
        return
    assert isinstance(found, Failed)


@pytest.mark.parametrize("method", ["llada", "dream"])
def test_published_template_writes_as_in_transformers(method: str) -> None:
    words = published_tokenizer(method, ["How are you?", "fine"] * 20)
    template = FAMILIES[{"llada": "llada", "dream": "Dream"}[method]].chat_template
    same(words, template)


@pytest.mark.parametrize(
    "template",
    [
        WRITES,
        (
            "  {% for m in messages %}\n  {%- if loop.index0 > 2 %}{% break %}{% endif %}\n"
            "{{ m | tojson(indent=2) }}\n{% endfor %}\n"
        ),
        (
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n"
            "{% endfor %}{{ bos_token }}{{ eos_token }}"
        ),
        (
            "{% set ns = namespace(a=1, self='b') %}{% set ns.c = 3 %}{{ ns.a }}{{ ns.self }}"
            "{{ ns.c }}{{ dict(a=1) }}"
        ),
        (
            "{{ dict.fromkeys(['a'], 1) }}{{ tools }}{{ documents }}{{ add_generation_prompt }}"
            "{{ missing }}"
        ),
        "{{ strftime_now('%Y') }}{{ messages | tojson }}{{ '<é>' | tojson(ensure_ascii=True) }}",
        (
            "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}"
            "{% endfor %}"
        ),
    ],
)
def test_any_template_writes_as_in_transformers(template: str) -> None:
    same(tokenizer(template), template)


def same(words: PreTrainedTokenizerBase, template: str) -> None:
    said = [
        {"role": "system", "content": "be <kind> & é"},
        {"role": "user", "content": " a\n"},
        {"thinking": "hm", "role": "assistant", "content": "b", "reasoning_content": "hm"},
    ]
    for generation in (False, True):
        (ours,) = render_chat(words, template, [chat_job(said, generation)])
        theirs = words.apply_chat_template(
            said, chat_template=template, tokenize=False, add_generation_prompt=generation
        )
        assert ours == theirs


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{% set ns = namespace(_a=1) %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict.mro() }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{% for i in range(100001) %}{% endfor %}",
    ],
)
def test_template_refused_by_transformers_is_refused(source: str) -> None:
    words = tokenizer(WRITES)
    (ours,) = render_chat(words, source, [chat_job([{"role": "user", "content": "a"}], False)])
    assert isinstance(ours, Failed)
    with pytest.raises(Exception) as caught:  # of any kind
        words.apply_chat_template(
            [{"role": "user", "content": "a"}], chat_template=source, tokenize=False
        )
    assert type(caught.value).__name__ == ours.kind


def test_template_that_pads_rows_drops_them() -> None:
    """A gigabyte of text from a kilobyte of rows would fill the memory of the run instead."""
    padded = "{% if messages[0].content == 'pad' %}{{ 'a' * 200000 }}{% endif %}" + WRITES
    refused, taken = ChatFormat(tokenizer(padded)).encode(
        [(Turn("user", "pad"), *QUESTION[1:]), QUESTION]
    )
    assert refused == "chat template writes far more than the dialogue says"
    assert not isinstance(taken, str)


def test_thousands_of_slow_rows_share_a_limit() -> None:
    """No row needs two seconds; thousands of them must not need an hour."""
    slow = "{% for i in range(99) %}{% for j in range(50000) %}{% endfor %}{% endfor %}{{ a }}"
    made = Renderer()
    assert made.render("chat", slow, [RenderJob({"a": "a"}, 9)] * 2) == ["a", "a"]
    with pytest.raises(OverLimit, match="CPU time"):
        made.render("chat", slow, [RenderJob({"a": "a"}, 9)] * 5000)


def test_long_row_is_rendered() -> None:
    """The limits come on top of the row's own size: 20 million characters are a row too."""
    text = "é" * 20_000_000
    (written,) = render("chat", "{{ a | trim }}!", [RenderJob({"a": text}, 10**9)])
    assert written == text + "!"


def test_too_long_chat_template_is_refused() -> None:
    with pytest.raises(JobError, match="at most 200000 characters, got 200058"):
        ChatFormat(tokenizer(WRITES + " " * 200_001))


def test_threads_share_a_child() -> None:
    made = Renderer()
    found: list[object] = []
    threads = [
        threading.Thread(
            target=lambda n=n: found.extend(
                made.render("chat", "{{ a }}", [RenderJob({"a": str(n)}, 9)] * 50)
            )
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == sorted(str(n) for n in range(8) for _ in range(50))
    made.close()


def test_fork_renders_in_its_own_child(tmp_path: Path) -> None:
    done = run_python(
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from plugin.data.templates.renderer import RenderJob, render, RENDERER\n"
        "job = [RenderJob({'a': 'x'}, 9)]\n"
        "render('chat', '{{ a }}', job)\n"
        "first = RENDERER._child.pid\n"
        "pid = os.fork()\n"
        "assert render('chat', '{{ a }}', job) == ['x']\n"
        "if pid == 0:\n"
        "    assert RENDERER._child.pid != first\n"
        "    sys.exit()\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert RENDERER._child.pid == first\n"
        "print('done')",
        cwd=tmp_path,
    )
    assert done.stdout == "done\n", done.stderr
    assert not done.stderr


def test_killed_child_is_replaced() -> None:
    made, job = Renderer(), [RenderJob({"a": "x"}, 9)]
    made.render("chat", "{{ a }}", job)
    assert made._child
    os.kill(made._child.pid, signal.SIGKILL)
    with pytest.raises(OverLimit, match="SIGKILL"):
        made.render("chat", "{{ a }}", job)
    assert made.render("chat", "{{ a }}", job) == ["x"]
    pid = made._child.pid
    made.close()
    assert not is_running(pid)


def test_access_keys_do_not_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    made = Renderer()
    made.render("chat", "{{ a }}", [RenderJob({"a": "x"}, 9)])
    assert made._child
    assert b"hf_secret" not in Path(f"/proc/{made._child.pid}/environ").read_bytes()
    made.close()


def test_moment_is_frozen_in_every_rendering() -> None:
    chat = ChatFormat(tokenizer("{{ strftime_now('%Y') }}" + WRITES), datetime(1999, 1, 1))
    (one,) = chat.encode([QUESTION])
    assert not isinstance(one, str)
    assert chat.shown(one.ids.tolist()).startswith("1999")
