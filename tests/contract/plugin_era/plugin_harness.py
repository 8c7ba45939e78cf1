"""Start sequence of the harness: our folder last on the path, `import main`, `main.main()`.

The answer of `main.main()` is unused.
"""

import argparse
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--plugin_dir", required=True)
known, _ = parser.parse_known_args()
sys.path.append(known.plugin_dir)

import main  # noqa: E402

if callable(main.main):
    main.main()
