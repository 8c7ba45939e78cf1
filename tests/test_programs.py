"""Commands that are programs of their own: their table, and the start of their help."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from helpers.support import ROOT, run_python

from plugin.programs import PROGRAMS

HELP = """\
import contextlib, io, sys
sys.path.insert(0, {root!r})
import main
for words in {words!r}:
    sys.argv = ["main.py", *words]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        main.main()
    assert f"usage: main.py {{words[0]}}" in out.getvalue(), words
print(sorted({unwanted!r} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_of_the_table_exists(name: str) -> None:
    assert find_spec(f"plugin.commands.{PROGRAMS[name][0]}")


@pytest.mark.parametrize(
    ("names", "unwanted"),
    [
        (tuple(PROGRAMS), {"torch", "transformers", "plugin.parent.train"}),
        (("compare", "plot", "chat", "fuse", "probe"), {"pydantic", "rich", "numpy"}),
    ],
)
def test_help_imports_little(names: tuple[str, ...], unwanted: set[str]) -> None:
    """Half of the parent's imports are the models of its parameters, the rest what `train` needs."""
    words = [(name, "--help") for name in names]
    done = run_python(HELP.format(root=str(ROOT), words=words, unwanted=unwanted), cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
