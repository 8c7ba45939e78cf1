"""Program of `main.py studio`. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ...base.errors import guarded
from ...base.redact import guard_streams
from ...studio.server import serve
from .arguments import studio_options


def main(argv: Sequence[str]) -> int:
    guard_streams()
    return guarded(lambda: _serve(argv))


def _serve(argv: Sequence[str]) -> int:
    request = studio_options(argv)
    return serve(
        request.root,
        host=request.host,
        port=request.port,
        opens=request.opens,
        as_json=request.json,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
