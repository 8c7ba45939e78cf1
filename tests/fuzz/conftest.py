"""How inputs are made up: a number of them a test (EXAMPLES), the same ones for the same seed."""

from __future__ import annotations

import logging
import os

from hypothesis import HealthCheck, Phase, settings

# promise.py measures the time of an input; making one up may take longer than using it.
settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("EXAMPLES", "100")),
    database=None,
    deadline=None,
    phases=(
        Phase.explicit,
        Phase.generate,
        *((Phase.shrink,) if "NO_SHRINK" not in os.environ else ()),
    ),
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
    print_blob=False,
)
settings.load_profile("fuzz")
logging.getLogger("transformers").setLevel(logging.ERROR)
