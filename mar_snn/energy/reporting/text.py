"""Numbers as a reader wants them: three digits, a unit, an interval if it is one."""

import math

__all__ = [
    "data_size",
    "interval",
    "joules",
    "number",
    "percent",
    "plain",
    "signed",
    "times",
]

_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_JOULES = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: float) -> str:
    """Three digits and k, M, G or T."""
    return _scaled(value, _COUNTS, "", "")


def joules(energy_pj: float) -> str:
    """Three digits and pJ, nJ, µJ, mJ or J."""
    return _scaled(energy_pj, _JOULES, " ", "pJ")


def data_size(count: float) -> str:
    """Three digits and B, kB, MB, GB or TB, by thousands."""
    return _scaled(count, _BYTES, " ", "B")


def times(value: float) -> str:
    """A ratio, or - where there is none."""
    return f"{value:.2f}x" if math.isfinite(value) and value else "-"


def percent(share: float) -> str:
    """A share in percent, or - where there is none."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def plain(value: float) -> str:
    """Four digits, or - where there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def signed(value: float) -> str:
    """Two places and a sign, or - where there is none."""
    return "-" if math.isnan(value) else f"{value:+.2f}"


def interval(low: str, high: str) -> str:
    """Both with a dash between them, or one of them where both are written alike."""
    if low == high:
        return low
    value, _, unit = low.rpartition(" ")
    if value and high.endswith(f" {unit}"):
        low = value
    return f"{low.removesuffix('x')}\N{EN DASH}{high}"


def _scaled(
    value: float, units: tuple[tuple[float, str], ...], gap: str, smallest: str
) -> str:
    if math.isnan(value):
        return "-"
    for factor, unit in units:
        # what rounds to a thousand of the smaller unit belongs to this one
        if float(f"{abs(value):.3g}") >= factor:
            return f"{value / factor:.3g}{gap}{unit}"
    return f"{value:.3g}{gap}{smallest}"
