"""Mean, standard deviation and 95 % interval of a few values.

interval = mean ± t · s / √n, with s the standard deviation with n - 1 degrees of
freedom and t the 97.5 % quantile of Student's distribution with as many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from mar_snn.energy.counts import CountedRun
from mar_snn.energy.reporting.figures import EnergyFigures, ratio

__all__ = [
    "Statistic",
    "batch_statistics",
    "student_t",
    "summarise",
    "units_of_batches",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistic:
    """What `n` values say; with one of them std and interval are nan."""

    mean: float
    std: float
    #: 95 % interval of the mean, by Student's t
    ci95: tuple[float, float]
    n: int


def summarise(values: Sequence[float]) -> Statistic:
    """Mean, standard deviation and interval of `values`.

    Raises:
        ValueError: for no values.
    """
    n = len(values)
    if not n:
        raise ValueError("a mean needs at least one value, got none")
    mean = math.fsum(values) / n
    if n == 1:
        return Statistic(mean=mean, std=math.nan, ci95=(math.nan, math.nan), n=1)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_t(n - 1) * std / math.sqrt(n)
    return Statistic(mean=mean, std=std, ci95=(mean - half, mean + half), n=n)


def batch_statistics(report: EnergyFigures) -> dict[str, Statistic]:
    """energy_pj, baseline_pj and ratio over the batches of the run, each per unit.

    The ratio is that of each batch, so what makes a batch dear on both sides cancels.
    Empty where no batches were kept; without the baseline's where it has other batches.
    """
    if not report.batches:
        return {}
    energies = [
        report.profile.energy_pj(batch.ops) / units
        for batch, units in zip(report.batches, report.batch_units, strict=True)
    ]
    statistics = {"energy_pj": summarise(energies)}
    baselines = report.baseline_batches_pj
    if baselines:
        ratios = [ratio(b, e) for b, e in zip(baselines, energies, strict=True)]
        statistics["baseline_pj"] = summarise(baselines)
        if all(math.isfinite(value) for value in ratios):
            statistics["ratio"] = summarise(ratios)
    return statistics


def units_of_batches(run: CountedRun, per: str, units: int) -> tuple[float, ...]:
    """How many of the `units` of a run belong to each of its batches.

    Per token, the tokens of each batch; otherwise, and where the tokens of the batches
    are not those of the run, equal parts.
    """
    tokens = tuple(float(batch.tokens) for batch in run.batches)
    if per == "token" and all(tokens) and sum(tokens) == units:
        return tokens
    return tuple(units / len(run.batches) for _ in run.batches)


@cache
def student_t(degrees: int) -> float:
    """T with P(-t < T < t) = 0.95 for Student's T with `degrees` degrees of freedom.

    Raises:
        ValueError: for less than one degree.
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}")
    low, high = 0.0, 13.0  # t(1) = 12.706 is the largest
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(-t < T < t), exactly: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
