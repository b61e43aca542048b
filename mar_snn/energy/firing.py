"""How often neurons fired: by step, by sign and by channel, left on the device."""

from collections import Counter

import torch.nn.functional as F
from torch import Tensor, nn

from mar_snn.energy.counts import Firing
from mar_snn.energy.spike_trains import Counts, Events, SpikeTrain, count_by_sign
from mar_snn.neurons.spikes import SpikeEvent

__all__ = ["FiringTally"]


class FiringTally:
    """What one neuron fired so far.

    Args:
        neuron: the node or coder. Its channels are its axis `channel_dim` where it has
            `num_channels`; else the last axis of a step, or axis 1 of a step of four or
            more axes (images, volumes).
    """

    def __init__(self, neuron: nn.Module) -> None:
        self._neuron = neuron
        tau = getattr(neuron, "tau", None)
        self._tau = float(tau) if isinstance(tau, int | float) else None
        self._readout = "unit"
        self._elements: list[int] = []
        #: number of channels C -> spikes by sign, step and channel, [2, T, C]
        self._fired: dict[int, Tensor] = {}
        #: C -> elements that one channel had in all calls and steps
        self._chances: Counter[int] = Counter()

    def add(self, event: SpikeEvent, readout: str | None = None) -> SpikeTrain:
        """Add the spikes of one call; returns them as what the output carries.

        `readout` is that of SpikeTrain; None asks the neuron's attribute of this name.

        Raises:
            ValueError: for spikes that do not fit the output, or an unknown readout.
        """
        spike_seq, output = event.spike_seq.detach(), event.output
        in_steps = spike_seq.shape == output.shape
        if not in_steps and spike_seq.shape[1:] != output.shape:
            raise ValueError(
                f"{type(self._neuron).__name__} declares spikes [T, ...] of shape "
                f"{tuple(spike_seq.shape)} for an output of shape "
                f"{tuple(output.shape)}; expected that shape, with or without T before"
            )
        planes = [spike_seq] if in_steps else spike_seq.unbind()
        readout = _readout_of(self._neuron, readout, len(planes))
        self._readout = str(getattr(self._neuron, "readout", readout))
        axis, by_channel = self._add(spike_seq, graded=readout == "graded")
        if readout == "graded":  # those are firings, and not unit spikes
            return SpikeTrain(planes, readout)
        counts: Counts = {(): Events(*by_channel.sum(1))}
        if spike_seq.dim() > 1:
            counts[(axis + in_steps,)] = Events(*by_channel)
        return SpikeTrain(planes, readout, counts)

    def _add(self, spike_seq: Tensor, *, graded: bool) -> tuple[int, Tensor]:
        """The channel axis of a step, and the firings by sign and channel, [2, C]."""
        if spike_seq.dim() == 1:
            spike_seq = spike_seq.unsqueeze(1)
        axis = self._channel_axis(spike_seq.dim() - 1)
        others = [dim for dim in range(1, spike_seq.dim()) if dim != axis + 1]
        by_step = count_by_sign(spike_seq.sign() if graded else spike_seq, others)
        _, steps, channels = by_step.shape
        so_far = self._fired.get(channels)
        self._fired[channels] = by_step if so_far is None else _sum(so_far, by_step)
        size = spike_seq.numel() // max(steps, 1)
        self._chances[channels] += spike_seq.numel() // max(channels, 1)
        self._elements += [0] * (steps - len(self._elements))
        for step in range(steps):
            self._elements[step] += size
        return axis, by_step.sum(1)

    def _channel_axis(self, ndim: int) -> int:
        """The channel axis of a step of `ndim` axes."""
        if getattr(self._neuron, "num_channels", None) is not None:
            axis = getattr(self._neuron, "channel_dim", -1)
            if -ndim <= axis < ndim:
                return axis % ndim
        return 1 if ndim > 3 else ndim - 1

    def read(self) -> Firing:
        """The sums as integers; waits for the device."""
        pos, neg = [0] * len(self._elements), [0] * len(self._elements)
        channels = silent = saturated = 0
        for width, fired in self._fired.items():
            for by_step, counts in zip((pos, neg), fired.sum(2).tolist(), strict=True):
                for step, count in enumerate(counts):
                    by_step[step] += count
            of_channel = fired.sum((0, 1))
            channels += width
            silent += int((of_channel == 0).sum())
            saturated += int((of_channel == max(self._chances[width], 1)).sum())
        return Firing(
            pos=tuple(pos),
            neg=tuple(neg),
            elements=tuple(self._elements),
            tau=self._tau,
            readout=self._readout,
            channels=channels,
            silent_channels=silent,
            saturated_channels=saturated,
        )


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """The sum by step, of calls [2, T, C] that need not have equally many steps."""
    b = b.to(a.device)
    missing = a.shape[1] - b.shape[1]
    if missing > 0:
        b = F.pad(b, (0, 0, 0, missing))
    elif missing < 0:
        a = F.pad(a, (0, 0, 0, -missing))
    return a + b


def _readout_of(neuron: nn.Module, said: str | None, planes: int) -> str:
    """What the neuron's output is made of."""
    readout = getattr(neuron, "readout", None) if said is None else said
    if planes == 1 and said is None:
        return "graded" if readout == "graded" else "unit"
    known = ("unit", "graded") if planes == 1 else ("sum", "geometric")
    if readout not in known:
        several = "one spike plane" if planes == 1 else "several spike planes"
        raise ValueError(
            f"{type(neuron).__name__} declares {several} for one output, so its "
            f"readout must be {known[0]!r} or {known[1]!r}, an attribute that says "
            f"what the output is made of; got {readout!r}"
        )
    return str(readout)
