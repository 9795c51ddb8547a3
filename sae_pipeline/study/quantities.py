"""Numbers as people write them in a study: `2M` tokens, `64Ki` rows, `400GB`, `10min`, `1/32`."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field

_COUNT = {
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "B": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
}
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*$")


def _scaled(value: object, units: dict[str, int], what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {what}")
    if not isinstance(value, str):
        return _finite(value, what)
    match = _NUMBER.match(value)
    if match is None or match.group(2) not in {"", *units}:
        raise ValueError(f"{value!r} is not {what}; write a number with one of {', '.join(u for u in units if u)}")
    return _finite(float(match.group(1)) * units.get(match.group(2), 1), what)


def _finite(value: float, what: str) -> float:
    """The value as a float; YAML also knows `.inf`, `.nan` and integers of any length."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{number} is not {what}; write a finite number")
    return number


def parse_count(value: object) -> int:
    """Turn `2M`, `100k`, `64Ki` or a number into an integer; raises ValueError when it is not whole."""
    number = _scaled(value, _COUNT, "a count")
    if number != int(number):
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


def parse_bytes(value: object) -> int:
    """Turn `400GB` or a number into bytes."""
    return int(_scaled(value, _BYTES, "a size in bytes"))


def parse_seconds(value: object) -> float:
    """Turn `60s`, `10min` or a number into seconds."""
    return _scaled(value, _SECONDS, "a duration")


def parse_ratio(value: object) -> float:
    """Turn `1/32` or a number into a float."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        if float(denominator) == 0:
            raise ValueError(f"{value!r} divides by 0")
        return _finite(float(numerator) / float(denominator), "a ratio")
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    return _finite(float(value) if isinstance(value, str) else value, "a ratio")


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0)]
Ratio = Annotated[float, BeforeValidator(parse_ratio), Field(ge=0)]
