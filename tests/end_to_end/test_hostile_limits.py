"""Inputs that ask for too much: each is refused in one short line, soon, before anything is
made.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.configs import SMALL
from helpers.support import ERROR, ROOT, TINY_CONFIG, child_env, run_main, try_out_here
from helpers.tiny import tiny_model

from plugin.base.errors import JobError, Problem
from plugin.cli import _config_file
from plugin.config.families import FAMILIES
from plugin.config.model_files import MOST_JSON, check_model_files, read_json
from plugin.config.params import Params
from plugin.config.parse import SCHEMA, parse
from plugin.data.files.columns import MAX_ROW
from plugin.data.files.readers import READERS, read_file
from plugin.data.mixture import parse_mixture
from plugin.data.sources import read_rows
from plugin.data.tokenizer import train_tokenizer
from plugin.models.checks.adapter_config import check_adapter_config
from plugin.models.checks.tokenizer_patterns import is_endless
from plugin.models.configuration import load_config, new_config
from plugin.models.load import check_builds
from plugin.models.lora import LoraSettings, add_adapter, with_adapter
from plugin.models.tokenizer import load_tokenizer
from plugin.parent import train
from plugin.parent.launch import count_processes

LONGEST = 300  # characters of an error's line
REQUIRED = {"dataset_name": "d.jsonl", "model_name": "m"}


def refused(job: Callable[[], object], within_s: float = 5) -> Problem:
    """The first problem of a job that is refused within so many seconds of CPU time."""
    began_s = time.process_time()
    with pytest.raises(JobError) as caught:
        job()
    assert time.process_time() - began_s < within_s
    for problem in caught.value.problems:
        assert ERROR.match(problem.line), problem.line
        assert len(problem.line) < LONGEST, problem.line
    return caught.value.problems[0]


# --- numbers


def bounds(name: str) -> tuple[str, float, bool] | None:
    """Kind, upper bound, and whether the bound itself is allowed, of a number; None for another
    kind.
    """
    for kind in SCHEMA[name].get("anyOf", [SCHEMA[name]]):
        if kind.get("type") in ("integer", "number"):
            most = kind.get("maximum", kind.get("exclusiveMaximum"))
            return kind["type"], most, "maximum" in kind
    return None


NUMBERS = {name: found for name in SCHEMA if (found := bounds(name))}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_ends_somewhere(name: str) -> None:
    """Audit 12: lora_alpha and hang_timeout_s took 10^400."""
    kind, most, allowed = NUMBERS[name]
    assert most is not None
    assert math.isfinite(most)
    beyond = most + (1 if kind == "integer" else 1e-3 * most) if allowed else most
    for value in (
        beyond,
        str(beyond),
        10**400,
        "1" + "0" * 400,
        1e308,
        -(10**400),
        "9" * 100_000,
        10**10_000,
    ):
        problem = refused(lambda value=value: parse({**REQUIRED, name: value}))
        assert (problem.field, problem.code) == (name, 2)
    assert Params.model_validate({name: most if allowed else 0})


def test_every_number_of_the_form_ends_somewhere() -> None:
    form = json.loads((ROOT / "index.json").read_text(encoding="utf-8"))["parameters"]
    numbers = {
        name: field for name, field in form.items() if field.get("type") in ("integer", "number")
    }
    assert len(numbers) > 10
    for name, field in numbers.items():
        assert "maximum" in field or "exclusiveMaximum" in field, name


def test_processes_of_a_cpu_end_at_its_cores() -> None:
    """Audit 12: 100000 processes were planned."""
    assert refused(lambda: parse({**REQUIRED, "num_processes": 100_000})).field == "num_processes"
    problem = refused(lambda: count_processes(Params(num_processes=1024), ()))
    assert (problem.field, problem.code) == ("num_processes", 2)
    assert str(max(8, 4 * (os.cpu_count() or 1))) in problem.expected
    assert count_processes(Params(num_processes=4), ()) == 4


def test_a_check_of_many_processes_answers_at_once(
    tmp_path: Path, tiny_config: Path, pairs_file: Path
) -> None:
    """Audit 12: `check` had no answer within a minute."""
    args = ("--model_config", tiny_config, "--dataset_name", pairs_file, "--num_processes", 100_000)
    done = run_main("check", *args, cwd=tmp_path, timeout_s=30)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error[2]: num_processes: expected 'auto' or an integer >= 1 and <= 1024, got '100000'."
    )


@pytest.mark.parametrize("value", ["0," * 70 + "0", "9" * 5000])
def test_gpu_ids_end_somewhere(value: str) -> None:
    assert refused(lambda: parse({**REQUIRED, "gpu_ids": value})).field == "gpu_ids"


# --- values that are no value


def laughs(levels: int = 9) -> list[Any]:
    value: list[Any] = ["x"] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    "name", ["seed", "run_dir", "advanced", "max_steps", "lora", "report_to", "nobody"]
)
def test_a_list_is_refused_before_it_is_quoted(name: str) -> None:
    """Audit 9: repr of nine levels of ten would have a billion words."""
    problem = refused(lambda: parse({**REQUIRED, "train_steps": 1, name: laughs()}))
    assert "list" in problem.line or name == "nobody"


def test_two_lists_for_one_parameter_are_not_compared() -> None:
    """Audit 9: so would comparing them."""
    refused(lambda: parse({**REQUIRED, "train_steps": laughs(), "max_steps": laughs()}))


def test_a_hosts_own_list_is_a_note() -> None:
    (note,) = parse({**REQUIRED, "their_list": laughs()}, unknown="note").notes
    assert note.startswith("their_list: not a parameter")


def aliases() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "seed: *a8", ""])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (aliases(), "an alias in line 2"),
        ("seed: &a 3\ntrain_steps: *a\n", "an alias in line 2"),
        ("a: &a [*a]\n", "an alias in line 1"),
        ("x: " + "[" * 3000 + "]" * 3000, "recursion"),
        ('{"x": ' + "[" * 3000 + "]" * 3000 + "}", "recursion"),
        ('{"a": ' * 3000 + "1" + "}" * 3000, "recursion"),
        ("- " * 3000 + "a", "recursion"),
        ("? " * 3000 + "a", ""),
        ("# " + "x" * (1 << 18), "more than 262144 bytes"),
        ("x" * 200_000, "holds a str"),
        ("!" * 100_000, ""),
    ],
)
def test_a_hostile_config_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    """Audit 9, 22: aliases ran for ever, 3,000 brackets were an internal error."""
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    with short_paths(tmp_path):
        problem = refused(lambda: _config_file("c.yaml"), within_s=10)
    assert (problem.field, problem.code) == ("config", 2)
    assert says in problem.line


@pytest.mark.parametrize("depth", [10, 200, 300, 500, 900, 990])
@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_brackets_of_any_depth_are_refused(opened: str, depth: int, tmp_path: Path) -> None:
    """Audit 22: few enough for JSON, too many for repr."""
    closed = "]" if opened == "[" else "}"
    file = tmp_path / "c.json"
    file.write_text(f'{{"seed": {opened * depth}1{closed * depth}}}', encoding="utf-8")
    with short_paths(tmp_path):
        refused(lambda: parse({**REQUIRED, **_config_file("c.json")}))


@contextmanager
def short_paths(folder: Path) -> Iterator[None]:
    """Lines are measured without the long names of pytest's folders."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("value", ["x" * 5_000_000, "a" * 200 + "\0", "a\ud800" * 999])
def test_what_is_quoted_of_a_text_is_cut(value: str) -> None:
    for name in (
        "seed",
        "training_method",
        "adaptor_name",
        "run_dir",
        "instruction_template",
        "advanced",
    ):
        refused(lambda name=name: parse({**REQUIRED, name: value}))
    with pytest.raises(JobError) as caught:
        parse({**REQUIRED, value: 1})
    assert all(len(problem.line) < 2 * LONGEST for problem in caught.value.problems)


def test_a_mixture_of_thousands_is_refused() -> None:
    """Which stretch of it is a path is asked of the disk, for every pair of separators."""
    assert refused(lambda: parse_mixture("|".join(["a"] * 20_000))).field == "dataset_name"


# --- files that are none


@pytest.mark.parametrize("suffix", READERS)
def test_a_pipe_as_data_is_refused(suffix: str, tmp_path: Path) -> None:
    """Opening one waits until somebody writes."""
    os.mkfifo(tmp_path / f"d{suffix}")
    with short_paths(tmp_path):
        assert refused(lambda: parse_mixture(f"d{suffix}")).code == 3
        assert refused(lambda: parse_mixture(".")).code == 3, "a folder of nothing else"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_in_a_model_is_refused_or_not_read(
    make: Callable[[Path], None], name: str, model_copy: Path
) -> None:
    (model_copy / name).unlink(missing_ok=True)
    make(model_copy / name)

    def load() -> None:
        check_model_files(str(model_copy))
        load_config(str(model_copy))
        load_tokenizer(str(model_copy))

    if name == "model.safetensors.index.json":
        load()
    else:
        with pytest.raises(JobError) as caught:
            load()
        assert caught.value.code == 4


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path), Path.mkdir]
)
def test_a_pipe_as_configuration_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "c.json")
    with short_paths(tmp_path):
        assert refused(lambda: new_config("c.json")).code == 4
        assert refused(lambda: _config_file("c.json")).code == 2
        assert read_json(Path("c.json")) == {}
        train.check_method(Params(model_config="c.json"))  # leaves it to the worker


def test_files_that_no_library_reads_in_time_are_refused(model_copy: Path) -> None:
    for name, size in (
        ("tokenizer.json", 500_000_000),
        ("config.json", MOST_JSON + 1),
        ("chat_template.jinja", MOST_JSON + 1),
    ):
        file = model_copy / name
        before = file.read_bytes() if file.exists() else b"{}"
        with file.open("wb") as opened:
            opened.truncate(size)
        problem = refused_of(lambda: check_model_files(str(model_copy)))
        assert name in problem.got
        file.write_bytes(before)
    check_model_files(str(model_copy))


def refused_of(job: Callable[[], object]) -> Problem:
    with pytest.raises(JobError) as caught:
        job()
    assert caught.value.code == 4
    return caught.value.problems[0]


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "model.safetensors.index.json", "tokenizer.json"],
)
def test_brackets_in_a_models_files_are_a_refusal(name: str, model_copy: Path) -> None:
    """Audit 22: deep JSON is a problem of its file, not ours."""
    (model_copy / name).write_text('{"a":' * 50_000, encoding="utf-8")
    problems: tuple[Problem, ...] = ()
    try:
        check_model_files(str(model_copy))
        load_config(str(model_copy))
        load_tokenizer(str(model_copy))
    except JobError as error:
        problems = error.problems
    assert all(problem.code == 4 and len(problem.line.splitlines()) == 1 for problem in problems)
    assert problems or name == "model.safetensors.index.json"


# --- columns


BIG = "a" * (16 << 20)
FORTY = {"prompt": ["q"] * 40, "response": [BIG] * 40}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": BIG}]


def arrow(path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 40), pa.array([BIG]))
    table = pa.table({"prompt": ["q"] * 40, "response": words})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as written:
        written.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.parquet", lambda path: pq.write_table(pa.table(FORTY), path, compression="zstd")),
        (
            "n.parquet",
            lambda path: pq.write_table(
                pa.table({"messages": [CHAT] * 40}), path, compression="zstd"
            ),
        ),
        (
            "r.parquet",
            lambda path: pq.write_table(
                pa.table(FORTY), path, use_dictionary=False, compression="zstd", row_group_size=1
            ),
        ),
        ("d.arrow", arrow),
    ],
)
def test_large_cells_are_read_one_after_another(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    """Audit 13: 1,195 bytes of 40 rows of 16 MiB took 674 MB to read."""
    write(tmp_path / name)
    code = (
        "import resource, sys, pyarrow.parquet\n"
        "from plugin.data.files.readers import read_file\n"
        "from pathlib import Path\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = sum(1 for _ in read_file(Path(sys.argv[1]), 'line'))\n"
        "print(rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        env=child_env({}),
        cwd=train.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows, grown = map(int, done.stdout.split())
    assert rows == 40
    assert grown < 250, "MB"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"prompt": ["q", "q"], "response": ["a", "a" * (65 << 20)]},
            "row 2, column 'response': 68157448 bytes",
        ),
        ({"prompt": ["q"], "response": [[BIG] * 40]}, "row 1, column 'response'"),
        ({"prompt": ["q"], "response": [{"a": {"b": [[BIG] * 9]}}]}, "row 1, column 'response'"),
        ({"prompt": ["q"], "response": [[None] * 10_000_000]}, "row 1, column 'response'"),
    ],
)
def test_a_cell_beyond_a_lines_limit_is_named(
    table: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Audit 13: a cell has the limit of a line of text, whatever it is packed into."""
    pq.write_table(pa.table(table), tmp_path / "d.parquet", compression="zstd")
    problem = refused(lambda: list(read_file(tmp_path / "d.parquet", "line")))
    assert (problem.field, problem.code) == ("dataset_name", 3)
    assert says in problem.got
    assert str(MAX_ROW) in problem.expected


def test_pages_that_unpack_a_thousandfold_are_refused(tmp_path: Path) -> None:
    """Audit 13: one page of 640 MB, packed into 21 KB, would be unpacked whole."""
    file = tmp_path / "d.parquet"
    pq.write_table(pa.table(FORTY), file, compression="zstd", use_dictionary=False)
    assert (
        "d.parquet, whose column 'response' packs 67108"
        in refused(lambda: list(read_file(file, "line"))).got
    )


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_batches_that_unpack_a_thousandfold_are_refused(
    make: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    """Audit 13: 21 KB of an arrow file unpack to 640 MB, before any of it is seen."""
    table, file = pa.table(FORTY), tmp_path / "d.arrow"
    options = pa.ipc.IpcWriteOptions(compression=kind)
    with (
        pa.OSFile(str(file), "wb") as opened,
        make(opened, table.schema, options=options) as written,
    ):
        written.write_table(table)
    assert (
        "d.arrow, whose batch 1 packs 67108" in refused(lambda: list(read_file(file, "line"))).got
    )


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 9, 100, 500, 1500])
def test_a_broken_arrow_file_is_refused(length: int, tmp_path: Path) -> None:
    """Its own account of its batches may be cut off, or nonsense."""
    table, file = pa.table({"prompt": ["q"] * 9, "response": ["a"] * 9}), tmp_path / "d.arrow"
    for make in (pa.ipc.new_stream, pa.ipc.new_file):
        with pa.OSFile(str(file), "wb") as opened, make(opened, table.schema) as written:
            written.write_table(table)
        whole = file.read_bytes()
        for content in (
            whole[:length],
            whole[:length] + b"\xff" * 64,
            whole[:length] + b"\x7f" * 64,
        ):
            file.write_bytes(content)
            try:
                rows = len(list(read_rows(str(file), "train")))
            except JobError as error:
                rows = -error.code
            assert rows in (-3, 0, 9), content


def test_ordinary_columns_read_as_before(tmp_path: Path) -> None:
    """Text is read as a dictionary of its words; what comes of it is what was written."""
    import datetime
    import decimal

    rows = [
        {
            "text": None if n % 7 == 0 else f"é{n % 5}",
            "many": [f"a{n}", None] if n % 3 else None,
            "chat": [{"role": "user", "content": f"{n}"}] if n % 4 else [],
            "raw": bytes([n % 256]),
            "number": n,
            "when": datetime.date(2026, 1, 1 + n % 28),
            "money": decimal.Decimal(n),
            "pairs": [("k", f"v{n}")],
            "none": None,
        }
        for n in range(1000)
    ]
    schema = pa.Table.from_pylist(rows[500:502]).schema
    schema = schema.set(
        schema.get_field_index("pairs"), pa.field("pairs", pa.map_(pa.string(), pa.string()))
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=300)
    for written in ("d.arrow", "f.arrow", "z.arrow"):
        make = pa.ipc.new_file if written == "f.arrow" else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(compression="zstd" if written == "z.arrow" else None)
        with (
            pa.OSFile(str(tmp_path / written), "wb") as file,
            make(file, table.schema, options=options) as out,
        ):
            out.write_table(table)
    for name in ("d.parquet", "d.arrow", "f.arrow", "z.arrow"):
        found = list(read_file(tmp_path / name, "line"))
        assert [number for number, _ in found] == list(range(1, 1001))
        assert [values for _, values in found] == table.to_pylist()


# --- config.json

HUGE = {
    ("num_hidden_layers", "n_layers"): (200_000, 4_096),
    ("hidden_size", "d_model"): (10**7,),
    ("vocab_size",): (2 * 10**9,),
    ("intermediate_size", "mlp_hidden_size"): (10**9,),
    ("max_position_embeddings", "max_sequence_length"): (10**12,),
    ("num_attention_heads", "n_heads"): (10**9, 10**400),
    ("num_labels",): (10**9,),
    ("anything",): (10**30, -(10**30)),
}


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("names", HUGE)
def test_huge_sizes_are_foretold(family: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Audit 24: 200,000 layers of a small file took half a minute and a gigabyte, unfinished."""
    name = next((name for name in names if name in SMALL[family]), names[0])
    folder = tmp_path / "m"
    tiny_model(family).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for value in HUGE[names]:
        (folder / "config.json").write_text(json.dumps({**saved, name: value}), encoding="utf-8")
        (tmp_path / "c.json").write_text(
            json.dumps({"model_type": family, **SMALL[family], name: value}), encoding="utf-8"
        )
        with short_paths(tmp_path):
            for job in (lambda: load_config("./m"), lambda: new_config("c.json")):
                problem = refused(job, within_s=2)
                assert problem.code == 4
                assert name in problem.expected


@pytest.mark.parametrize("family", SMALL)
def test_the_deepest_model_allowed_is_laid_out_soon(family: str, tmp_path: Path) -> None:
    name = "n_layers" if family == "llada" else "num_hidden_layers"
    fields = {"model_type": family, **SMALL[family], name: 512}
    if family == "modernbert":
        fields["pad_token_id"] = 0
    (tmp_path / "c.json").write_text(json.dumps(fields), encoding="utf-8")
    began_s = time.process_time()
    check_builds(new_config(str(tmp_path / "c.json")), "model_config")
    assert time.process_time() - began_s < 10


@pytest.mark.parametrize("family", ["llada", "Dream"])
@pytest.mark.parametrize("gone", ["d_model", "hidden_size", "vocab_size", "rope_theta"])
def test_a_size_left_out_is_named(family: str, gone: str, tmp_path: Path) -> None:
    """Audit 24: from scratch, a missing size was silently a published model's."""
    if gone not in SMALL[family]:
        return
    fields = {"model_type": family, **SMALL[family]}
    del fields[gone]
    (tmp_path / "c.json").write_text(json.dumps(fields), encoding="utf-8")
    with short_paths(tmp_path):
        problem = refused(lambda: new_config("c.json"))
    assert (problem.field, problem.code) == ("model_config", 4)
    assert gone in problem.got


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_a_deep_configuration_is_refused(opened: str, tmp_path: Path) -> None:
    """Audit 22: deep JSON in a config.json."""
    closed = "]" if opened == "[" else "}"
    for depth in (100, 900, 50_000):
        text = json.dumps({"model_type": "bert", **SMALL["bert"], "x": 0})[:-2]
        (tmp_path / "c.json").write_text(
            f"{text}{opened * depth}1{closed * depth}}}", encoding="utf-8"
        )
        with short_paths(tmp_path):
            assert refused(lambda: new_config("c.json")).code == 4


# --- adapters


def adapter(folder: Path, **fields: Any) -> Path:
    live = add_adapter(tiny_model("bert"), FAMILIES["bert"], LoraSettings(4, 8, 0.0, "auto"), [])
    live.save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), **fields}), encoding="utf-8"
    )
    return folder


ENDLESS = "(.*.*.*.*.*.*.*.*)*zz"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ENDLESS},
        {"target_modules": [ENDLESS]},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 4}},
        {"alpha_pattern": {ENDLESS: 4}},
        {"layers_pattern": ENDLESS, "layers_to_transform": [0]},
        {"layers_to_transform": [10**30]},
        {"modules_to_save": ["(a+)+"]},
        {"r": 10**9},
        {"r": -1},
        {"r": "4"},
        {"r": 10**400},
        {"rank_pattern": {"query": 10**9}},
        {"lora_alpha": 10**400},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9},
    ],
)
def test_an_adapter_that_asks_too_much_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    """Audit 24: a regular expression ran for ever, r 10^9 asked for 64 GB."""
    adapter(tmp_path / "a", **fields)
    model = tiny_model("bert")
    with short_paths(tmp_path):
        problem = refused(lambda: with_adapter(model, Path("a")))
    assert (problem.field, problem.code) == ("adapter", 4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "query"},
        {"target_modules": ["query", "value"], "rank_pattern": {"query": 4}},
    ],
)
def test_an_adapter_of_names_is_taken(fields: dict[str, Any], tmp_path: Path) -> None:
    check_adapter_config(adapter(tmp_path / "a", **fields) / "adapter_config.json")


# --- tokenizers


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(?:a*)*b",
        "((a|b+)c?)*",
        "(x(a+)y)+",
        r"(\p{L}+\s?)+",
        "([ab]{2,})*",
        "(?:[a-z]+){100}",
    ],
)
def test_an_endless_pattern_is_known(pattern: str) -> None:
    assert is_endless(pattern)


PUBLISHED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" ?[^(\s|[.,!?…。,、।۔،])]+",
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    " {2,}",
)


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_are_taken(pattern: str) -> None:
    assert not is_endless(pattern)


def test_a_tokenizer_with_an_endless_pattern_is_refused(tmp_path: Path) -> None:
    """It ran over thirty letters for minutes, in code that no signal reaches."""
    train_tokenizer(["one two"], 300).save_pretrained(tmp_path / "t")
    file = tmp_path / "t" / "tokenizer.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    fields["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, fields["pre_tokenizer"]],
    }
    file.write_text(json.dumps(fields), encoding="utf-8")
    with short_paths(tmp_path):
        problem = refused(lambda: load_tokenizer("./t"))
    assert (problem.field, problem.code) == ("model_name", 4)


# --- check


def test_a_check_that_hangs_says_at_what(
    monkeypatch: pytest.MonkeyPatch, tiny_config: Path, pairs_file: Path
) -> None:
    monkeypatch.setattr(train, "CHECK_S", 0.05)
    monkeypatch.setattr(train, "CHECK_S_PER_MB", 0)
    params = Params(model_config=str(tiny_config), dataset_name=str(pairs_file))
    problem = refused(lambda: train._try_out(params, 1, download=False))
    assert (problem.code, problem.field) == (9, "check")
    assert "starting" in problem.got


def test_the_time_for_a_check_grows_with_its_data(pairs_file: Path) -> None:
    few, hub, none = (
        Params(dataset_name=name) for name in (str(pairs_file), "some/hub", "missing.jsonl")
    )
    assert train.longest_check_s(few) == pytest.approx(train.CHECK_S, rel=0.01)
    assert train.longest_check_s(hub) is None
    assert train.longest_check_s(none) == train.CHECK_S


@pytest.mark.parametrize(
    "changes",
    [
        {"train_steps": 10**9},
        {"num_train_epochs": 1e6},
        {"batch_size": 1024, "train_steps": 1},
        {"max_length": 128, "eos_block_length": 1 << 20},
        {"warmup_steps": 10**9, "logging_steps": 10**9, "save_total_limit": 10**6},
    ],
)
def test_a_check_of_the_largest_numbers_answers(
    changes: dict[str, Any], tiny_config: Path, pairs_file: Path
) -> None:
    """The bounds are such that what is computed of them ends."""
    assert TINY_CONFIG["max_position_embeddings"] == 128
    job = {
        "model_config": str(tiny_config),
        "dataset_name": str(pairs_file),
        "max_length": 64,
        "train_device": "cpu",
    }
    began_s = time.process_time()
    try_out_here(parse({**job, **changes}).params, 1)
    assert time.process_time() - began_s < 30
