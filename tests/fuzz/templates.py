"""Chat templates, combined from parts of published ones, and some that exceed the limits."""

from __future__ import annotations

from typing import Any

from fuzz.values import texts
from hypothesis import strategies as st

from plugin.data.turns import Turn

ADDED = ("<|im_start|>", "<|im_end|>", "<u>", "</t>", "<think>", "</think>")
CONTENTS = (
    *(
        "m['content']",
        "m.content",
        "m.content | trim",
        "m['content'].strip()",
        "m.content | upper",
        "m.content | tojson",
    ),
    *(
        "m.content.split('</think>')[-1]",
        "m.content[0]",
        "m.content[0].text",
        "m.content ~ ' '",
        "m.content | default('')",
    ),
    *(
        "m.content | replace('a', 'b')",
        "m.content | e",
        "m.content[:3]",
        "m.content | length",
        "first ~ m.content",
        "m['missing']",
    ),
)
ENDS = (
    "<|im_end|>",
    "</t>",
    "<|im_end|>\\n",
    "\\n</t>",
    "{{ eos_token }}",
    "[SEP]",
    "",
    "\\n",
    " end",
    "<|eot|>",
    "{{ missing }}",
)
OPENINGS = (
    "<|im_start|>{{ m.role }}\\n",
    "<u>",
    "{{ bos_token }}",
    "",
    "{{ m['role'] | capitalize }}: ",
    "[CLS]",
    "[MASK]",
    "<think>",
)
GUARDS = (
    *(
        "",
        (
            "{% if messages[0].role != 'user' %}{{ raise_exception('User first\\nplease') }}"
            "{% endif %}"
        ),
    ),
    *(
        "{% if messages | length % 2 %}{{ raise_exception('alternate') }}{% endif %}",
        "{{ bos_token }}",
        "{{ strftime_now('%Y') }}",
    ),
    *(
        "{{ strftime_now(x) }}",
        "{% set first = messages[0].content %}",
        "{% set first = '' %}",
        "{{ 1 / 0 }}",
        "{{ messages.x.y }}",
    ),
    *(
        "{{ tools }}",
        "{% set ns = namespace(n=0) %}{% set ns.n = 1 %}",
        "{% for i in range(3) %}{{ i }}{% endfor %}",
        "\\ue002",
    ),
    *(
        "{{ messages | tojson }}",
        "{{ ''.__class__.__mro__ }}",
        "{%- generation -%}{%- endgeneration -%}",
        "{{ '\\ud800' }}",
        "{% do 1 %}",
    ),
)
# Each of them exceeds a limit of time or memory, or is refused.
BOMBS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    (
        "{% set ns = namespace(x='aa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}"
    ),
    "{{ 'a' * 3000000000 }}",
    "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
    "{{ messages[0].content | center(999999999) }}",
    "{{ 'a' * 150000 }}",
)
SKIPS = (
    *(
        "{CORE}",
        "{% if m.role != 'system' %}{CORE}{% endif %}",
        "{% if loop.last %}{CORE}{% endif %}",
    ),
    "{% if loop.index0 %}{CORE}{% endif %}",
)
PROMPTS = (
    *(
        "",
        "<|im_start|>assistant\\n",
        "<u>",
        "<think>\\n",
        "[MASK]",
        "{{ bos_token }}",
        "assistant: ",
    ),
    "{{ raise_exception('no') }}",
)
ORDERS = (
    *("messages", "messages", "messages", "messages | reverse", "messages[1:]", "messages[-2:]"),
    *("messages + messages", "[]", "messages[0]"),
)


@st.composite
def sources(draw: st.DrawFn) -> str:
    """Draw the source of a template."""
    opening, content, end = (
        draw(st.sampled_from(OPENINGS)),
        draw(st.sampled_from(CONTENTS)),
        draw(st.sampled_from(ENDS)),
    )
    core = f"{opening}{{{{ {content} }}}}{end}"
    if draw(st.booleans()):
        opening, content, end = (
            draw(st.sampled_from(choices)) for choices in (OPENINGS, CONTENTS, ENDS)
        )
        other = f"{opening}{{{{ {content} }}}}{end}"
        core = f"{{% if m.role == 'assistant' %}}{core}{{% else %}}{other}{{% endif %}}"
    if draw(st.sampled_from((False, False, True))):
        core = (
            "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}" + core
        )
    body = draw(st.sampled_from(("{CORE}", *SKIPS))).replace("{CORE}", core)
    source = f"{{% for m in {draw(st.sampled_from(ORDERS))} %}}{body}{{% endfor %}}"
    prompt = draw(st.sampled_from(PROMPTS))
    source += (
        f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}" if draw(st.booleans()) else ""
    )
    source = draw(st.sampled_from(("", *GUARDS))) + source.replace("\\n", "\n")
    if draw(st.sampled_from((False,) * 31 + (True,))):
        source = draw(st.sampled_from(BOMBS)) + source
    if draw(st.sampled_from((False,) * 7 + (True,))):
        place = draw(st.integers(0, len(source)))
        source = source[:place] + draw(texts(3)) + source[place + draw(st.integers(0, 3)) :]
    return source


def fields() -> st.SearchStrategy[Any]:
    """Make values of chat_template in a tokenizer_config.json."""
    one = {"name": st.sampled_from(("default", "rag", "", 1)), "template": sources() | st.just(1)}
    named = st.lists(st.fixed_dictionaries(one), max_size=2)
    by_name = st.dictionaries(st.sampled_from(("default", "x")), sources(), max_size=2)
    return st.one_of(sources(), named, by_name, st.sampled_from((None, 1, "", True)))


@st.composite
def dialogues(draw: st.DrawFn) -> tuple[Turn, ...]:
    """Draw a chat as the product reads it: not empty, ending with an answer to be learned."""
    words = texts(4).filter(
        lambda text: text.strip() and text.encode("utf-8", "ignore").decode() == text
    )
    turns = [Turn("system", draw(words))] if draw(st.sampled_from((False, False, True))) else []
    for number in range(draw(st.integers(1, 3))):
        if number or draw(st.sampled_from((True, True, True, False))):
            turns.append(Turn("user", draw(words)))
        learn = draw(st.sampled_from((True, True, False)))
        turns.append(
            Turn("assistant", draw(words), draw(st.sampled_from(("", "", "Let me see."))), learn)
        )
    if not any(turn.role == "user" for turn in turns):
        turns.insert(0, Turn("user", draw(words)))
    return (*turns[:-1], Turn("assistant", turns[-1].text, turns[-1].thought))
