"""A neuron that fires what it is given, and counting in every grad mode at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.neurons.spikes import declare_spikes, is_listening


@torch.library.custom_op("mar_snn_tests::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """An operation that no rule knows."""
    return x.flip(0) * x


class Fire(nn.Module):
    """Declares its input as its unit spikes; costs nothing itself."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.clone()
        if is_listening():
            declare_spikes(self, spikes.unsqueeze(0), spikes)
        return spikes


class Decode(nn.Module):
    """Takes T spike planes, declares them, hands on their weighted sum."""

    def __init__(self, readout: str | None, tau: float = 0.5) -> None:
        super().__init__()
        self.readout, self.tau = readout, tau

    def forward(self, planes: Tensor) -> Tensor:
        base = self.tau if self.readout == "geometric" else 1.0
        value = sum(base**t * plane for t, plane in enumerate(planes))
        if is_listening():
            declare_spikes(self, planes, value)
        return value


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def count(model: nn.Module, *inputs: Tensor) -> SpikeOpCounter:
    """The counter of one forward pass, the same in every grad mode and complete."""
    counters = []
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode(), SpikeOpCounter(model) as counter:
            model(*inputs)
        counters.append(counter)
    first, *others = counters
    for other in others:
        assert other.rows() == first.rows()
        assert other.run().firing == first.run().firing
    assert first.run().uncounted == {}
    return first


@pytest.fixture
def count_model() -> Callable[..., SpikeOpCounter]:
    return count


@pytest.fixture
def count_spikes() -> Callable[..., OpCounts]:
    """count_spikes(layer, spikes): what the layer costs on declared unit spikes."""

    def of(layer: nn.Module | Callable[..., Any], spikes: Any, **kind: Any) -> OpCounts:
        layer = layer if isinstance(layer, nn.Module) else Call(layer)
        return count(nn.Sequential(Fire(), layer), torch.tensor(spikes, **kind)).total()

    return of


@pytest.fixture
def count_dense() -> Callable[..., OpCounts]:
    """count_dense(layer, *inputs): what the layer costs on undeclared values."""

    def of(layer: nn.Module | Callable[..., Any], *inputs: Tensor) -> OpCounts:
        layer = layer if isinstance(layer, nn.Module) else Call(layer)
        return count(layer, *inputs).total()

    return of


@pytest.fixture
def fire() -> type[Fire]:
    return Fire


@pytest.fixture
def decode() -> type[Decode]:
    return Decode


@pytest.fixture
def call() -> type[Call]:
    return Call


@pytest.fixture
def unpriced() -> Callable[[Tensor], Tensor]:
    """An operation without a rule, mar_snn_tests.twist.default."""
    return twist
