"""Diffusion LLM Trainer: `python main.py train|check|chat|fuse --help`.

A host imports this file and calls `main()`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> int:
    # Hosts append our folder LAST to sys.path and have their own package named `plugin`.
    sys.path.insert(0, str(ROOT))
    import plugin

    if Path(plugin.__file__ or "").resolve().parent.parent != ROOT:
        raise ImportError(
            f"the package `plugin` came from {plugin.__file__}; {ROOT / 'plugin'} was expected"
        )
    from plugin.base.environment import problem

    if line := problem(ROOT):
        print(line, file=sys.stderr)
        return 2
    from plugin import programs

    if programs.is_program(sys.argv[1:]):
        return programs.run_program(sys.argv[1:])
    from plugin import cli  # whose imports take longer

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before a run begins there is nothing to save and nothing to explain
        sys.exit(130)
