"""Running sums of counts, left on their device until somebody reads them."""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_snn.energy.counts import Cost, Firing, ModuleRow, OpCounts
from mar_snn.energy.groups import group_of
from mar_snn.energy.spike_trains import Events, SpikeTrain

__all__ = ["FiringTally", "RowTally"]


class _Sums:
    """Sums by field of OpCounts."""

    def __init__(self) -> None:
        self._known: Counter[str] = Counter()
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def add(self, ops: Any) -> None:
        for field, count in ops.items():
            if not isinstance(count, Tensor):
                self._known[field] += count
                continue
            key = (field, count.device)
            so_far = self._on_device.get(key)
            self._on_device[key] = count if so_far is None else so_far + count

    def read(self) -> OpCounts:
        total = Counter(self._known)
        for (field, _), count in self._on_device.items():
            total[field] += int(count)
        return OpCounts(**total)


class RowTally:
    """What one module did so far."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name = name
        self._type = type(module).__name__
        self._group = group_of(name, module)
        self._ops, self._dense = _Sums(), _Sums()
        self._time_steps, self._readout = 0, ""
        self.calls = 0

    def add(self, cost: Cost) -> None:
        """Add one call."""
        self._ops.add(cost.ops)
        self._dense.add(cost.dense)

    def note_input(self, train: SpikeTrain) -> None:
        """Remember what kind of spikes the module is fed."""
        self._time_steps = max(self._time_steps, len(train.planes))
        self._readout = train.readout

    def read(self) -> ModuleRow:
        """The sums as integers; waits for the device."""
        return ModuleRow(
            name=self._name,
            type=self._type,
            group=self._group,
            calls=self.calls,
            ops=self._ops.read(),
            dense_ops=self._dense.read(),
            time_steps=self._time_steps,
            readout=self._readout,
        )


class FiringTally:
    """What one neuron fired so far, by step."""

    def __init__(self, neuron: nn.Module) -> None:
        tau = getattr(neuron, "tau", None)
        self._tau = float(tau) if isinstance(tau, int | float) else None
        self._readout = str(getattr(neuron, "readout", "unit"))
        self._pos: Tensor | None = None
        self._neg: Tensor | None = None
        self._elements: list[int] = []

    def add(self, spike_seq: Tensor) -> Events:
        """Add the spikes [T, ...] of one call; returns how many there were."""
        by_step = spike_seq.unsqueeze(-1).flatten(1)
        pos, neg = (by_step > 0).sum(1), (by_step < 0).sum(1)
        self._pos, self._neg = _step_sum(self._pos, pos), _step_sum(self._neg, neg)
        steps, size = by_step.shape
        self._elements += [0] * (steps - len(self._elements))
        for step in range(steps):
            self._elements[step] += size
        return Events(pos.sum(), neg.sum())

    def read(self) -> Firing:
        """The sums as integers; waits for the device."""
        return Firing(
            pos=() if self._pos is None else tuple(self._pos.tolist()),
            neg=() if self._neg is None else tuple(self._neg.tolist()),
            elements=tuple(self._elements),
            tau=self._tau,
            readout=self._readout,
        )


def _step_sum(so_far: Tensor | None, counts: Tensor) -> Tensor:
    """The sum by step, of calls that need not have equally many steps."""
    if so_far is None:
        return counts
    steps = max(len(so_far), len(counts))
    counts = counts.to(so_far.device)
    return F.pad(so_far, (0, steps - len(so_far))) + F.pad(
        counts, (0, steps - len(counts))
    )
