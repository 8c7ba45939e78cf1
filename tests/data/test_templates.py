"""Form templates: their output, their refusals, and their limits."""

from __future__ import annotations

import pickle
import time

import pytest

from plugin.base.errors import Code, JobError
from plugin.data.templates.form import (
    MAX_TEMPLATE,
    RowError,
    columns_used,
    compile_template,
    compile_templates,
    render,
)


def rendered(source: str, **values: object) -> str:
    return render(compile_template("output_template", source), values)


@pytest.mark.parametrize(
    ("source", "values", "expected"),
    [
        (
            "Q: {{ q }}\n",
            {"q": "été <b>"},
            "Q: été <b>\n",
        ),  # no HTML escaping, the last line end stays
        ("{{ q }}|{{ absent }}", {"q": None}, "|"),
        ("{% if input %}a{% else %}b{% endif %}", {"input": ""}, "b"),
        ("{{ a ~ '-' ~ n }}{{ a + a }}", {"a": "x", "n": 2.5}, "x-2.5xx"),
        ("{{ ['no', 'yes'][label] }}", {"label": 1}, "yes"),
        ("{{ {'0': 'no'}[label] }}", {"label": "0"}, "no"),
        ("{{ answer.split('####')[-1].strip() }}", {"answer": "3 #### 42 "}, "42"),
        (
            "{{ choices|join(', ') }} {{ choices|map('upper')|join }}",
            {"choices": ["a", "b"]},
            "a, b AB",
        ),
        (
            "{% for k, v in x.items() %}{{ loop.index }}{{ k }}{{ v }};{% endfor %}",
            {"x": {"a": 1, "b": 2}},
            "1a1;2b2;",
        ),
        ("{{ x|tojson }}", {"x": [{"é": "<"}]}, '[{"é": "<"}]'),
        ("{{ x|replace('a', 'bb') }}", {"x": "aca"}, "bbcbb"),
        ("{{ range }}", {"range": "a column of this name wins"}, "a column of this name wins"),
    ],
)
def test_template_renders_a_row(source: str, values: dict[str, object], expected: str) -> None:
    assert rendered(source, **values) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__ }}", "private attribute '__class__'"),
        ("{{ ''['__class__'] }}", "private attribute '__class__'"),
        ("{{ _budget }}", "private name '_budget'"),
        ("a\n{{ x ", "in line 2: unexpected end of template"),
        ("{{ 'a' * 1000000000 }}", "'mul', which templates may not use"),
        ("{{ '%1000000000d' % 1 }}", "'mod', which"),
        ("{{ '{:1000000000}'.format(1) }}", "a call other than range()"),
        ("{% set a = 'x' %}", "'assign', which"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "'macro', which"),
        ("{% for a in b recursive %}{{ loop(b) }}{% endfor %}", "a recursive loop"),
        ("{% include '/etc/passwd' %}", "'include', which"),
        ("{{ [x, x]|join }}", "a list of anything but constants"),
        ("{{ x|attr('y') }}", "the filter 'attr'"),
        ("{{ x|_counted }}", "the filter '_counted'"),
        ("{{ x is even }}", "the test 'even'"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
        ("{{ " + "9" * 5000 + " }}", "Exceeds the limit"),
        ("x" * (MAX_TEMPLATE + 1), "10001 characters"),
    ],
)
def test_bad_template_is_a_configuration_error_of_its_field(source: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        compile_template("input_template", source)
    [problem] = caught.value.problems
    assert (problem.field, problem.code) == ("input_template", Code.CONFIGURATION)
    assert message in str(problem)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ x['__cl' ~ 'ass__'] }}", "access to attribute '__class__'"),
        ("{{ [1]|map(attribute='__class__')|first }}", "access to attribute '__class__'"),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "more than 2 s of CPU time",
        ),
        ("{% for a in range(1000000000) %}{% endfor %}", "a range of more than 100000"),
        ("{% for a in range(9999) %}{{ x|upper|lower|upper|length }}{% endfor %}", "s of CPU time"),
        ("{{ x|list|map('list')|list|map('list')|list|count }}", "512 MB of memory"),
        ("{{ range(99999)|select('in', range(99999)|list)|list|count }}", "s of CPU time"),
        ("{{ x|replace('a', x) }}", "512 MB of memory"),
        ("{{ x|list|join(x) }}", "512 MB of memory"),
        ("{{ x|tojson" + "|tojson" * 60 + "|length }}", "512 MB of memory"),
    ],
)
def test_run_time_limit_is_an_error_of_the_template(source: str, message: str) -> None:
    started_s = time.thread_time()
    with pytest.raises(JobError, match=message) as caught:
        rendered(source, x='"a' * 450_000)
    assert (caught.value.problems[0].field, caught.value.code) == ("output_template", 2)
    assert time.thread_time() - started_s < 2


@pytest.mark.parametrize("operator", ["~", "+"])
def test_text_that_grows_tenfold_a_loop_exceeds_memory(operator: str) -> None:
    loops = ""
    for depth in range(15):
        tenfold = operator.join([f"a{depth - 1}" if depth else "'aaaaaaaaaa'"] * 10)
        loops += f"{{% for a{depth} in ({tenfold}).split('|') %}}"
    started_s = time.thread_time()
    with pytest.raises(JobError, match="512 MB of memory"):
        rendered(loops + "{{ a14 }}" + "{% endfor %}" * 15)
    assert time.thread_time() - started_s < 2


@pytest.mark.parametrize(
    ("source", "x", "reason"),
    [
        ("{{ x }}", ["a"], "template failed on this row: output_template: cannot print list"),
        (
            "{{ x|trim }}",
            {"a": 1},
            "template failed on this row: output_template: cannot print dict",
        ),
        ("{{ x.text }}", {"a": 1}, "has no attribute 'text'"),
        ("{{ x[3] }}", ["a"], "has no element 3"),
        ("{{ x + 1 }}", "a", "template failed on this row"),
        ("{{ x }}", "a" * 1_000_001, "rendered text too long"),
        ("{{ x|replace('a', 'aaaaaaaaaa') }}", "a" * 200_000, "rendered text too long"),
    ],
)
def test_row_that_does_not_fit_is_a_row_error(source: str, x: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        rendered(source, x=x)
    assert reason in str(caught.value)
    assert caught.value.reason in ("template failed on this row", "rendered text too long")


def test_columns_used_are_the_undeclared_names() -> None:
    source = (
        "{{ a.b }}{% for i in c %}{{ i }}{{ loop.index }}{% endfor %}{{ range(3)|list|length }}"
        "{% if d %}{% endif %}"
    )
    assert columns_used(compile_template("input_template", source)) == {"a", "c", "d"}


def test_blank_templates_are_absent() -> None:
    assert compile_templates("", " \n", "") is None
    templates = compile_templates("{{ q }}", "", "{{ a }}")
    assert templates is not None
    assert templates.input is None
    assert templates.columns() == {"q", "a"}
    assert pickle.loads(pickle.dumps(templates)) == templates


def test_every_bad_template_is_reported() -> None:
    with pytest.raises(JobError) as caught:
        compile_templates("", "{{ x.__class__ }}", "{% if %}")
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["instruction_template", "input_template", "output_template"]
    assert "because another one is given" in str(caught.value.problems[0])
