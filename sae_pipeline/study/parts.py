"""What every part of a study is built from: an immutable, strict base and the types of its values."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from sae_pipeline.study.keys import SAFE_KEY
from sae_pipeline.study.quantities import Bytes, Count, Ratio, Seconds

__all__ = [
    "EXECUTION_ONLY",
    "Bytes",
    "Count",
    "Counts",
    "Name",
    "Names",
    "Part",
    "Ratio",
    "Ratios",
    "Seconds",
    "Seed",
    "Seeds",
]

EXECUTION_ONLY: JsonDict = {"execution_only": True}
"""Marks a field that cannot change a result (device, micro-batch, paths): it stays out of every identity."""

_LONGEST_NAME = 100  # folders join names and an identity; file systems end at 255


class Part(BaseModel):
    """Base of every part: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

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
                kept[field.alias or name] = _determining(value)
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


def _safe_name(value: object) -> str:
    """Names become folders and partition keys; YAML reads `2026` or `2026-11-21` as a number or a date."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text; write it in quotes")
    if not SAFE_KEY.fullmatch(value):
        raise ValueError(f"{value!r} may hold letters, digits, '.', '_' and '-' only, and not begin with a dot")
    if len(value) > _LONGEST_NAME:
        raise ValueError(f"{value[:20]!r}… has {len(value)} characters; shorten it to {_LONGEST_NAME}")
    return value


def one_or_many(value: object) -> object:
    """A list as it is, anything else as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


Name = Annotated[str, BeforeValidator(_safe_name)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(one_or_many), Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(one_or_many), Field(min_length=1)]
Ratios = Annotated[tuple[Ratio, ...], BeforeValidator(one_or_many), Field(min_length=1)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(one_or_many), Field(min_length=1)]
