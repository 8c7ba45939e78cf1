"""Field types of the parameters: what forms, files and shells may send for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

LOSS_WEIGHT = r"^(scheduler|uniform|cart\[geo_p:(0*\.\d*[1-9]\d*|0*1(\.0*)?)\])$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number, not a yes or no")
    return value


def yes_or_no(value: object) -> object:
    """Return `true` or `false` for every word that forms and files send for yes and no.

    Any other value of a switch, such as a path, stays as it is.
    """
    words = {
        "true": "true",
        "yes": "true",
        "on": "true",
        "1": "true",
        "false": "false",
        "no": "false",
        "off": "false",
        "0": "false",
    }
    return words.get(str(value).lower(), value) if isinstance(value, bool | str) else value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
# Every number has an upper bound, so that everything computed from it has one too.
MOST_STEPS = 10**9
MOST_DOCUMENTS = 2**14  # of a step, on each device
MOST_TOKENS = 2**20  # of one document
MOST_RUN_TOKENS = 10**15
MOST_PROCESSES = 2**10  # of one machine; also threads
# Bounds come before the validator; otherwise they are missing from the schema and from `expected`.
AutoThreads = (
    Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_PROCESSES), BeforeValidator(_no_bool)]
)
AutoDocuments = (
    Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_DOCUMENTS), BeforeValidator(_no_bool)]
)
AutoTokens = Literal["auto"] | Annotated[int, Field(ge=1, le=10**8), BeforeValidator(_no_bool)]
AutoBlock = Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_TOKENS), BeforeValidator(_no_bool)]
AutoCheckpoints = Literal["auto"] | Annotated[int, Field(ge=1, le=1000), BeforeValidator(_no_bool)]
AutoPort = Literal["auto"] | Annotated[int, Field(ge=1, le=65535), BeforeValidator(_no_bool)]


def parameter(
    default: Any, title: str, help: str, *, form: Mapping[str, Any] | bool = False, **bounds: Any
) -> Any:
    """Declare a parameter.

    `form`: it is on the GUI form; a mapping holds the form's own tighter bounds or fewer choices.
    """
    return Field(
        default,
        title=title,
        description=help,
        json_schema_extra={"form": dict(form) if isinstance(form, Mapping) else form},
        **bounds,
    )
