"""What every part of a study is built from: an immutable, strict base and the types of its values."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.config import JsonDict

from sae_pipeline.study.keys import SAFE_KEY
from sae_pipeline.study.quantities import Bytes, Count, Ratio, Seconds

__all__ = ["EXECUTION_ONLY", "Bytes", "Count", "Counts", "Name", "Part", "Ratio", "Ratios", "Seconds", "one_or_many"]

EXECUTION_ONLY: JsonDict = {"execution_only": True}
"""Marks a field that cannot change a result (device, micro-batch, paths): it stays out of every identity."""


class Part(BaseModel):
    """Base of every part: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def determining(self) -> dict[str, Any]:
        """Return the JSON values of the fields that determine results, nested parts included.

        A field that is not set (None) is left out, so that a new optional field leaves every identity as it was.
        """
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("execution_only"):
                continue
            if (value := getattr(self, name)) is not None:
                kept[name] = _determining(value)
        return kept


def _determining(value: Any) -> Any:
    if isinstance(value, Part):
        return value.determining()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_determining(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _determining(item) for key, item in value.items()}
    return value


def _safe_name(value: str) -> str:
    if not SAFE_KEY.match(value):
        raise ValueError(f"{value!r} may hold letters, digits, '.', '_' and '-' only")
    return value


def one_or_many(value: object) -> object:
    """A list as it is, anything else as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


Name = Annotated[str, BeforeValidator(_safe_name)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(one_or_many)]
Ratios = Annotated[tuple[Ratio, ...], BeforeValidator(one_or_many)]
