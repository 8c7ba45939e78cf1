"""First page of the studio: what is loaded for it, and what no page needs."""

from __future__ import annotations

from helpers.support import ROOT, run_python

START = """\
import sys
sys.path.insert(0, {root!r})
import plugin.studio.application
heavy = {{"torch", "numpy", "pandas", "transformers", "requests", "aiohttp", "yaml", "matplotlib"}}
ours = {{name for name in sys.modules if name.startswith("plugin.")}}
print(sorted(heavy & set(sys.modules)), sorted(name for name in ours if "config.params" in name))
import requests, aiohttp  # later than the pages, whoever needs them has them
"""


def test_first_page_loads_no_client_library_and_no_form(tmp_path: object) -> None:
    done = run_python(START.format(root=str(ROOT)), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] []\n"
