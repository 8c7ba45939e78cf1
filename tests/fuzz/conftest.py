"""Fuzzing settings: EXAMPLES inputs for each test, the same inputs for the same seed."""

from __future__ import annotations

import logging
import os

from hypothesis import HealthCheck, Phase, settings

# promise.py limits the time of using an input; making it up may take longer.
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
