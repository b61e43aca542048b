"""What the trainer does with a student's coders: watch, hold back, make sparser."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mar_snn.hosts.slots import owners
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.spikes import SpikeEvent
from mar_snn.spiking import coders

__all__ = ["FiringRates", "SiteWarmup", "SpikeStatistics"]


class SpikeStatistics:
    """Firing and thresholds of every site since the last reading, on the device.

    Pass it to `listen_to_spikes`. A *site* is one of those of the module's plan, as in
    "mixer.in", or else the last two words of a coder's name: the coders of all layers
    are taken together.
    """

    def __init__(self, model: nn.Module) -> None:
        self._site_of: dict[Any, str] = {
            coder: ".".join(name.removesuffix("_neuron").split(".")[-2:])
            for name, coder in coders(model)
        }
        for owner in owners(model):
            for site in owner.plan.sites:
                coder = getattr(owner.module, owner.plan.slot(site), None)
                if coder in self._site_of:
                    self._site_of[coder] = site
        self._fired: dict[Any, Float[Tensor, " channels"]] = {}
        self._chances: Counter[Any] = Counter()

    @torch.no_grad()
    def __call__(self, event: SpikeEvent) -> None:
        """Add the spikes of one call of one coder."""
        if event.neuron not in self._site_of:
            return
        fired = event.spike_seq.abs().flatten(0, -2).sum(0, dtype=torch.float64)
        so_far = self._fired.get(event.neuron)
        self._fired[event.neuron] = fired if so_far is None else so_far.add_(fired)
        self._chances[event.neuron] += event.spike_seq[..., 0].numel()

    @torch.no_grad()
    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """(sum, count) of every figure, and start anew.

        Args:
            reduce: sums a tensor over all processes.

        Returns:
            `firing_rate`, of all sites and of each; `threshold/<site>`, its mean;
            `dead/<site>` and `saturated/<site>`, the shares of channels that never
            fired and that fired at every chance.
        """
        pairs: dict[str, Tensor] = {}
        for coder, fired in self._fired.items():
            site, channels = self._site_of[coder], len(fired)
            sums = reduce(torch.cat([fired, fired.new_tensor([self._chances[coder]])]))
            fired, chances = sums[:-1], sums[-1]
            v_threshold = _whole(coder.v_threshold)
            every, each = chances * channels, fired.new_tensor(channels)
            for name, value, count in (
                ("firing_rate", fired, every),
                (f"firing_rate/{site}", fired, every),
                (f"threshold/{site}", v_threshold, each),
                (f"dead/{site}", fired == 0, each),
                (f"saturated/{site}", fired == chances, each),
            ):
                pair = torch.stack([value.sum(dtype=torch.float64), count])
                pairs[name] = pairs[name] + pair if name in pairs else pair
        self._fired.clear()
        self._chances.clear()
        return pairs


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 may have sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class SiteWarmup:
    """Lets the coders of a model start to spike one after the other while it trains.

    In the order of the model, spread evenly over `steps` steps; a coder whose turn has
    not come hands on its input. In evaluation all coders spike.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self._coders = [coder for _, coder in coders(model)]
        self._steps = steps
        # tensors, not branches: a compiled model stays compiled when one changes
        self._spiking = [
            torch.tensor(True, device=coder.v_threshold.device)
            for coder in self._coders
        ]
        self.at(0)

    def at(self, step: int) -> None:
        """Set the coders for a step, counted from 0."""
        count = len(self._coders)
        spiking = count
        if step < self._steps:
            spiking = math.ceil(count * (step + 1) / (self._steps + 1))
        for i, flag in enumerate(self._spiking):
            flag.fill_(i < spiking)
        #: share of the coders that spike
        self.share = spiking / max(count, 1)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold coders back inside the block."""
        with ExitStack() as hooks:
            held_back = zip(self._coders, self._spiking, strict=True)
            for coder, flag in held_back if self._steps else ():
                handle = coder.register_forward_hook(_held_back_until(flag))
                hooks.callback(handle.remove)
            yield


def _held_back_until(spiking: Tensor) -> Callable[[nn.Module, Any, Tensor], Any]:
    def hook(coder: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        # where, not a branch: the thresholds keep their place in the graph, with
        # gradient zero, which DistributedDataParallel waits for
        return torch.where(spiking, output, args[0]) if coder.training else None

    return hook


class FiringRates:
    """The firing rate of every token at every coder of a model, with gradients.

    Raises:
        ValueError: where a coder is no ATMNCoder.
    """

    def __init__(self, model: nn.Module) -> None:
        self._coders = dict(coders(model))
        for name, coder in self._coders.items():
            if not isinstance(coder, ATMNCoder):
                raise ValueError(
                    "firing_rate_target draws learnable thresholds, and those of "
                    f"{name}, a {type(coder).__name__}, are fixed: leave it out"
                )
        self.clear()

    def clear(self) -> None:
        """Forget the rates of the last pass."""
        self._rates: dict[str, Tensor] = {}

    def distances(self, target: float) -> list[Float[Tensor, "batch length"]]:
        """(rate - target)² of the last pass, one tensor for each coder."""
        return [(rate - target).square() for rate in self._rates.values()]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Take rates inside the block; backward must come before it ends."""
        with ExitStack() as hooks:
            for name, coder in self._coders.items():
                hooks.callback(coder.register_forward_hook(self._taker(name)).remove)
            yield

    def _taker(self, name: str) -> Callable[[Any, tuple[Tensor], Tensor], None]:
        def hook(coder: Any, args: tuple[Tensor], _output: Tensor) -> None:
            if coder.training:
                self._rates.setdefault(name, coder.firing_rate(args[0]))

        return hook
