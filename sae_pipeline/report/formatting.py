"""Numbers as a person reads them: enough digits, never more than the interval supports."""

import math
from numbers import Integral, Real

MISSING = "—"
_MINUS = "\u2212"


def number(value: object, significant: int = 3) -> str:
    """A number with `significant` digits ("0.343", "2.5·10⁻⁵"), whole ones in full ("1,204"), other values as text."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return _signed(f"{int(value):,}")
    return _real(float(value), significant)


def _real(value: float, significant: int) -> str:
    if math.isnan(value):
        return MISSING
    if value.is_integer() and abs(value) < 1e9:
        return _signed(f"{int(value):,}")
    if math.isinf(value):
        return f"{_MINUS if value < 0 else ''}∞"
    if not 1e-4 <= abs(value) < 1e9:
        return _signed(power_of_ten(value))
    decimals = max(0, significant - 1 - _exponent(value, significant))
    return _signed(f"{value:,.{decimals}f}")


def measured(value: float, low: float, high: float) -> tuple[str, str]:
    """Value and half-width ("0.3432", "±0.0021") with the digits that two digits of the half-width allow.

    The half-width is "" where there is no interval or it is zero.
    """
    half = (high - low) / 2
    if math.isnan(value) or math.isnan(half) or half <= 0:
        return number(value), ""
    decimals = max(0, 1 - _exponent(half, 2))
    if decimals > 6:
        return number(value), f"±{number(half, 2)}"
    return _signed(f"{value:,.{decimals}f}"), f"±{half:.{decimals}f}"


def share(value: float) -> str:
    """A share as per cent: "0 %", "0.05 %", "12.5 %"."""
    if math.isnan(value):
        return MISSING
    return "0 %" if value == 0 else f"{number(100 * value, 3 if abs(value) >= 0.1 else 2)} %"


def readable(value: float) -> str:
    """A tick label: plain where it is short ("0.3", "1,024", "20k", "5M"), a power of ten elsewhere."""
    size = abs(value)
    if size >= 1e13 or 0 < size < 1e-3:
        return _signed(power_of_ten(value))
    for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return _signed(f"{value / (1e3 if suffix == 'k' else unit):.4g}{suffix}")
    return _signed(f"{value:,.4g}" if size < 1000 else f"{value:,.0f}")


def power_of_ten(value: float) -> str:
    """`value` (not 0) as a mantissa of up to three digits and a power of ten, e.g. "2.5·10⁻⁵", "10⁻⁴"."""
    mantissa = f"{value:.2e}".split("e")[0].rstrip("0").rstrip(".")
    power = "10" + str(_exponent(value, 3)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _exponent(value: float, significant: int) -> int:
    """The power of ten of the first digit, once `value` is rounded to `significant` digits."""
    return int(f"{value:.{significant - 1}e}".split("e")[1])


def _signed(text: str) -> str:
    return text.replace("-", _MINUS)
