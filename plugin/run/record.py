"""Base of every typed value of a run folder's files."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema


class NotARecord(ValueError):
    """JSON that does not hold what this program writes."""


def _encodable(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


# Rows and files may hold lone surrogates, which neither UTF-8 nor pydantic has.
Text = Annotated[str, BeforeValidator(_encodable)]
# An integer stays one. `to_json` writes what JSON lacks as a string.
Number = Annotated[
    int | float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]})
]


class Record(BaseModel):
    """A frozen value of a file.

    Unknown keys are an error when it is made and ignored when it is read: later versions add keys.
    """

    # Built at their first use: the parent starts faster.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def content(self) -> dict[str, Any]:
        """Return the keys that were set, in the order of their declaration."""
        return self.model_dump(exclude_unset=True)

    @classmethod
    def read(cls, content: object) -> Self:
        """Return the record in the parsed JSON `content`. Raises NotARecord."""
        try:
            return cls.model_validate(content, extra="ignore")
        except ValidationError as error:
            raise NotARecord(summary(error)) from error


def summary(error: ValidationError) -> str:
    """Return the first mistake of a validation as one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
