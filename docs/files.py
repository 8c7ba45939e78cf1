"""Maps of plugin/: the folders in README.md and every file in docs/files.md, from their docstrings.

`python docs/files.py` writes both; `--check` fails where one is stale.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# From the entry to the foundations; an import goes down only.
ORDER = [
    "cli.py",
    "programs.py",
    "hosts",
    "commands",
    "studio",
    "queue",
    "dialogue",
    "player",
    "comparison",
    "planning",
    "parent",
    "worker",
    "assembly",
    "training",
    "evaluation",
    "inference",
    "sampling",
    "models",
    "objectives",
    "corpus",
    "data",
    "batch.py",
    "run",
    "config",
    "base",
]
TABLE = re.compile(r"(?s)(?<=<!-- folders -->\n).*?(?=<!-- end -->)")


def caption(path: Path) -> str:
    """Return the first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path} has no caption"
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def folders() -> str:
    """Return the table of what lies directly below plugin/."""
    rows = ["| folder | content |", "|---|---|"]
    for name in ORDER:
        path = ROOT / "plugin" / name
        shown = f"plugin/{name}" + ("/" if path.is_dir() else "")
        rows.append(f"| `{shown}` | {caption(path / '__init__.py' if path.is_dir() else path)} |")
    return "\n".join(rows) + "\n"


def files() -> str:
    """Return the page with a caption for every file below plugin/."""
    parts = ["# Files\n\nWritten by `make manifest` from the files' own captions.\n"]
    for name in ORDER:
        path = ROOT / "plugin" / name
        if path.is_file():
            parts.append(f"\n## `plugin/{name}`\n\n{caption(path)}.\n")
            continue
        for folder in (path, *sorted(inner for inner in path.iterdir() if _is_package(inner))):
            shown = folder.relative_to(ROOT).as_posix()
            parts.append(f"\n## `{shown}/`\n\n{caption(folder / '__init__.py')}.\n\n")
            parts.append("| file | content |\n|---|---|\n")
            for file in sorted(folder.glob("*.py")):
                if file.name != "__init__.py":
                    parts.append(f"| `{file.name}` | {caption(file)} |\n")
    return "".join(parts)


def pages() -> dict[Path, str]:
    """Return the content that README.md and docs/files.md should have."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    return {readme: TABLE.sub(lambda _: folders(), text), ROOT / "docs" / "files.md": files()}


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def main() -> int:
    stale = [
        path
        for path, content in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.name} is stale; run `make manifest`", file=sys.stderr)
        return int(bool(stale))
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
