"""Chat templates of several kinds: training uses their output, and chat asks as training did."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from plugin.base.errors import JobError
from plugin.data.chat import CHANGED, ChatFormat, Encoded
from plugin.data.tokenizer import train_tokenizer
from plugin.data.turns import Turn

ADDED = ("<u>", "<a>", "</t>", "<think>", "</think>")
# The system prompt goes into the first user turn, and roles have the template's own names.
MERGING = (
    "{{ bos_token }}{% if messages[0].role=='system' %}"
    "{% set first=messages[0].content + '\\n\\n' %}{% set rest=messages[1:] %}"
    "{% else %}{% set first='' %}{% set rest=messages %}{% endif %}{% for m in rest %}{{ '"
    "<u>' if m.role=='user' else '<a>' }}"
    "{{ (first if loop.first else '') + m.content|trim }}</t>\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
# The system prompt goes into the last user turn, so an earlier prompt does not begin the text.
MOVING = (
    "{% for m in messages %}{% if m.role=='user' %}<u>"
    "{% if loop.index0 >= messages|length - 2 and messages[0].role=='system' %}"
    "{{ messages[0].content }}\n\n{% endif %}{{ m.content }}</t>{% elif m.role=='assistant' %} "
    "{{ m.content|trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
# The generation prompt opens a thought, but the thoughts of given answers are stripped.
STRIPPING = (
    "{% for m in messages %}{% if m.role=='assistant' %}<a>"
    "{{ m.content.split('</think>')[-1] }}</t>{% else %}<u>{{ m.content }}</t>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<a><think>\n{% endif %}"
)
# Thoughts have their own field; those of earlier turns are omitted.
REASONING = (
    "{% for m in messages %}{% if m.role=='assistant' %}<a>"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}</t>{% else %}<u>{{ m.content }}</t>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ '<a>' if m.role=='assistant' else '<u>' }}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}</t>"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}<u>{{ m.content }}{% if loop.last %}</t>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<u>{% endif %}"
)

DIALOGUES = (
    (Turn("user", "one"), Turn("assistant", "two")),
    (
        Turn("system", "be"),
        Turn("user", "one"),
        Turn("assistant", "two"),
        Turn("user", "three"),
        Turn("assistant", "four"),
    ),
    (
        Turn("user", "one"),
        Turn("assistant", "x", thought="hm"),
        Turn("user", "q"),
        Turn("assistant", "y", thought="so"),
    ),
    (Turn("user", "one </t> [SEP]"), Turn("assistant", "<think>a</think>b </t>")),
)


def tokenizer(template: str) -> PreTrainedTokenizerBase:
    made = train_tokenizer(["one two three four"] * 9, 320)
    made.add_special_tokens({"extra_special_tokens": list(ADDED)})
    made.eos_token, made.bos_token, made.chat_template = "[SEP]", "[CLS]", template
    return made


def written(words: PreTrainedTokenizerBase, turns: tuple[Turn, ...], *, parts: bool = False) -> str:
    """Return the template's own output, by transformers' call."""
    read = "reasoning_content" in str(words.chat_template)
    messages = []
    for turn in turns:
        text = turn.text if read else turn.with_thought
        content = [{"type": "text", "text": text}] if parts else text
        messages.append(
            {
                "role": turn.role,
                "content": content,
                **({"reasoning_content": turn.thought} if turn.thought else {}),
            }
        )
    return str(words.apply_chat_template(messages, tokenize=False))


@pytest.mark.parametrize("template", [MERGING, MOVING, STRIPPING, REASONING, PARTS])
def test_training_uses_the_templates_own_output(template: str) -> None:
    words = tokenizer(template)
    chat = ChatFormat(words)
    for turns, one in zip(DIALOGUES, chat.encode(DIALOGUES, find="last"), strict=True):
        assert isinstance(one, Encoded)
        whole = written(words, turns, parts=template is PARTS)
        assert whole.startswith(words.decode(one.ids))
        assert whole[len(words.decode(one.ids)) :].strip() == ""
        ((start, end),) = one.answers
        assert end == one.ids.size
        assert one.ids[end - 1] == chat.end_id
        assert chat.prompt(turns[:-1]).tolist() == one.ids[:start].tolist(), (
            "chat asks as it was trained"
        )
        assert one.ids[start:].tolist().count(chat.end_id) == 1, (
            "a text that spells the end token is no end"
        )


def test_thoughts_go_into_the_field_the_template_reads() -> None:
    chat = ChatFormat(tokenizer(REASONING))
    (one,) = chat.encode(DIALOGUES[2:3])
    assert (
        chat.shown(one.ids.tolist())
        == "⟦<u>⟧one⟦</t>⟧⟦<a>⟧x⟦</t>⟧⟦<u>⟧q⟦</t>⟧⟦<a>⟧⟦<think>⟧so⟦</think>⟧y⟦</t>⟧"
    )
    assert [chat.shown(one.ids[start:end].tolist()) for start, end in one.answers] == [
        "x⟦</t>⟧",
        "⟦<think>⟧so⟦</think>⟧y⟦</t>⟧",
    ]
    assert any("omits" in remark for remark in one.remarks), "the first thought"


def test_earlier_answers_that_cannot_be_found_drop_the_row() -> None:
    for template, says in (
        (MOVING, "changes a prompt"),
        (ENDLESS, "ends no answer but the last"),
    ):
        chat = ChatFormat(tokenizer(template))
        one, several = chat.encode((DIALOGUES[0], DIALOGUES[1]))
        assert isinstance(one, Encoded)
        assert isinstance(several, str)
        assert says in several
        assert isinstance(chat.encode(DIALOGUES[1:2], find="last")[0], Encoded)


def test_marked_answer_is_withheld_in_any_place() -> None:
    chat = ChatFormat(tokenizer(MERGING))
    turns = (
        Turn("user", "a"),
        Turn("assistant", "b", learn=False),
        Turn("user", "c"),
        Turn("assistant", "d"),
    )
    (one,) = chat.encode([turns], find="marked")
    shown = [
        [chat.shown(one.ids[start:end].tolist()) for start, end in spans]
        for spans in (one.answers, one.withheld)
    ]
    assert shown == [["d⟦</t>⟧"], ["b⟦</t>⟧"]]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n### End\n{% endfor %}",
            "'### End', which is no token",
        ),
        (
            "{% for m in messages %}<u>{{ m.content }}{% endfor %}",
            "a template without an end token",
        ),
        ("{% for m in messages %}<u>{{ m.role }}</t>{% endfor %}", "omits their text"),
        (
            "{{ '\\ud800' }}{% for m in messages %}<u>{{ m.content }}</t>{% endfor %}",
            "half a character",
        ),
        (
            (
                "{% set f='%d' %}{{ strftime_now(f) }}{% for m in messages %}{{ m.content }}</t>"
                "{% endfor %}"
            ),
            "asks for the time",
        ),
    ],
)
def test_template_that_cannot_be_served_is_refused(template: str, says: str) -> None:
    with pytest.raises(JobError) as caught:
        ChatFormat(tokenizer(template))
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (4, "tokenizer_name")
    assert says in str(problem)


def test_answer_of_one_letter_is_searched_in_its_own_place() -> None:
    chat = ChatFormat(
        tokenizer(
            "{% for m in messages %}<u>{{ m.role }} {{ m.content | replace('a', 'b') }}</t>"
            "{% endfor %}"
        )
    )
    changed, same = chat.encode(
        [(Turn("user", "q"), Turn("assistant", "a")), (Turn("user", "q"), Turn("assistant", "c"))]
    )
    assert isinstance(changed, Encoded)
    assert isinstance(same, Encoded)
    assert (changed.remarks, same.remarks) == ((CHANGED,), ())


def test_template_without_generation_prompt_is_asked_by_answer() -> None:
    asking = "{% if add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
    chat = ChatFormat(
        tokenizer("{% for m in messages %}<u>{{ m.content }}</t>{% endfor %}" + asking)
    )
    (one,) = chat.encode([DIALOGUES[0]])
    assert isinstance(one, Encoded)
    assert chat.shown(chat.prompt(DIALOGUES[0][:1]).tolist()) == "⟦<u>⟧one⟦</t>⟧⟦<u>⟧"
    assert chat.shown(one.ids[slice(*one.answers[0])].tolist()) == "two⟦</t>⟧"


def test_template_names_that_are_no_texts_are_refused() -> None:
    words = tokenizer(MERGING)
    words.chat_template = {"rag": MERGING, 1: MERGING}
    with pytest.raises(JobError, match="one named default"):
        ChatFormat(words)


def test_several_templates_take_the_default() -> None:
    words = tokenizer(MERGING)
    words.chat_template = {"default": MERGING, "tools": "{{ 1 }}"}
    assert (
        ChatFormat(words).prompt(DIALOGUES[0][:1]).tolist()
        == ChatFormat(tokenizer(MERGING)).prompt(DIALOGUES[0][:1]).tolist()
    )
    words.chat_template = {"rag": MERGING, "tools": MERGING}
    with pytest.raises(JobError, match="one named default"):
        ChatFormat(words)


def test_end_marker_is_the_first_token_after_any_text() -> None:
    """Some tokenizers have tokens of spaces; such a token is no end marker."""
    words = tokenizer(
        "{% for m in messages %}<u>{{ m.content }}\n  over</t>{% endfor %}"
        "{% if add_generation_prompt %}<u>{% endif %}"
    )
    words.add_tokens(["  ", "\n  "])
    chat = ChatFormat(words)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == "</t>"
    (one,) = chat.encode(DIALOGUES[:1])
    assert words.decode(one.ids[slice(*one.answers[0])]) == "two\n  over</t>"
