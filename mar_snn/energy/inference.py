"""Spikes that nobody declares, known by their values: for models of other packages.

Values cannot prove spikes: a ReLU leaves zeros and ones by chance. So a place in the
model is taken for spiking only if every batch allows it, and its rows say "inferred".
A place is the n-th question that the rule of the n-th call of an operation in a module
asks about an operand; weights are never spikes. A batch allows

    unit      all values in {-a, 0, a}, with a > 0
    graded    all values integers of at most 16

and a place is spiking where all batches allow one of the two (unit first), some value
was zero and some was not. A place that was spikes in one batch and dense in another is
dense in both: each call is priced in every way that is still open, and the report takes
the one that remained. Values are read from the device while the model runs.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from mar_snn.energy.accumulate import Key, RowTally, Sums
from mar_snn.energy.spike_trains import SpikeTrain

__all__ = ["Inference", "Open", "Site", "Spikes"]

#: The largest payload that is taken for a spike.
MAX_LEVEL = 16

Spikes = Callable[[object], SpikeTrain | None]
Numbers = list[tuple[Key, int | Tensor]]


class Site(NamedTuple):
    """A call that can be found again in the next batch."""

    module: str
    operation: str
    #: the how many-th call of this operation in one forward of the module
    number: int


class _Verdict:
    """What is still possible at one place."""

    def __init__(self) -> None:
        self._open = {"unit", "graded"}
        self._zeros = self._others = False

    @property
    def readout(self) -> str:
        """What to take it for: "unit" or "graded" spikes, or "" for dense values."""
        if not (self._zeros and self._others and self._open):
            return ""
        return "unit" if "unit" in self._open else "graded"

    def see(self, x: Tensor) -> list[str]:
        """Learn from the values of one batch; returns the readouts that are left."""
        if self._open and x.numel():
            size = x.abs()
            top = size.amax()
            seen = torch.stack(
                [
                    (size == 0).any(),
                    top > 0,
                    ((size == 0) | (size == top)).all() & top.isfinite(),
                    (size == size.round()).all() & (top <= MAX_LEVEL),
                ]
            )
            zeros, others, unit, graded = seen.tolist()
            self._zeros |= zeros
            self._others |= others
            self._open &= {
                name for name, ok in (("unit", unit), ("graded", graded)) if ok
            }
        return sorted(self._open)


class Open:
    """One call, priced in every way that is still open."""

    def __init__(self, verdicts: list[_Verdict]) -> None:
        self._verdicts = verdicts
        self.sums: dict[tuple[str, ...], Sums] = {}

    @property
    def readouts(self) -> tuple[str, ...]:
        """What remained, for each operand."""
        return tuple(verdict.readout for verdict in self._verdicts)

    def read(self, row: RowTally) -> Sums:
        """The numbers of the way that remained; notes in the row what it was."""
        for readout in filter(None, self.readouts):
            row.time_steps, row.readout, row.detection = 1, readout, "inferred"
        return self.sums[self.readouts]


class Inference:
    """The verdicts of one counter, by place."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[Site, int], _Verdict] = {}

    def price(
        self,
        site: Site,
        price: Callable[[Spikes], Numbers | None],
        is_weight: Callable[[object], bool],
    ) -> "Numbers | Open | None":
        """What a call costs, or what it costs in every way that is still open.

        Args:
            site: where the call is made.
            price: the numbers of the call, given which of its tensors carry spikes;
                None where it has no price.
            is_weight: whether a tensor is a weight.
        """
        asked: list[Tensor] = []

        def ask(tensor: object) -> None:
            if (
                isinstance(tensor, Tensor)
                and tensor.is_floating_point()
                and not any(tensor is known for known in asked)
                and not is_weight(tensor)
            ):
                asked.append(tensor)

        dense = price(ask)
        if dense is None or not asked:
            return dense
        verdicts = [
            self._verdicts.setdefault((site, i), _Verdict()) for i in range(len(asked))
        ]
        ways = [
            ["", *verdict.see(x)] for verdict, x in zip(verdicts, asked, strict=True)
        ]
        if not any(len(way) > 1 for way in ways):
            return dense
        call = Open(verdicts)
        for readouts in product(*ways):
            trains = {
                id(x): _train_of(x, readout)
                for x, readout in zip(asked, readouts, strict=True)
            }
            carried = partial(_look_up, trains)

            call.sums[readouts] = _summed(price(carried) or dense)
        return call


def _look_up(trains: dict[int, SpikeTrain | None], tensor: object) -> SpikeTrain | None:
    return trains.get(id(tensor))


def _train_of(x: Tensor, readout: str) -> SpikeTrain | None:
    if not readout:
        return None
    return SpikeTrain([x.sign() if readout == "unit" else x], readout)


def _summed(numbers: Numbers) -> Sums:
    sums: Sums = Counter()
    for key, number in numbers:
        sums[key] += int(number)
    return sums
