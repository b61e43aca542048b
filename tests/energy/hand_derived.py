"""Cases whose operations are worked out by hand, for our counter and for others.

`expected` is derived in the comment beside it; `again` derives it once more by doing
every operation (`tests.energy.brute`). Identifiers such as C03 are those of the survey
of counters in `docs/energy.md`. Weights do not matter: none is looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mar_snn.neurons.spikes import declare_spikes, is_listening


class Fire(nn.Module):
    """Declares its input as its unit spikes; costs nothing itself."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.clone()
        if is_listening():
            declare_spikes(self, spikes.unsqueeze(0), spikes)
        return spikes


class Fed(nn.Module):
    """A layer, some of whose inputs are declared to be spikes."""

    def __init__(self, layer: nn.Module, spiking: tuple[bool, ...]) -> None:
        super().__init__()
        self.neurons = nn.ModuleList(
            Fire() if fires else nn.Identity() for fires in spiking
        )
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Any:
        fed = (n(x) for n, x in zip(self.neurons, inputs, strict=True))
        return self.layer(*fed)


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of one layer and what it costs.

    Attributes:
        name: an identifier.
        layer: makes the layer.
        inputs: what it is called with, as nested lists.
        expected: the numbers that are not zero, by field of OpCounts.
        again: derives `expected` by plain loops.
        spiking: which inputs are declared spikes.
        dtype: of the inputs.
        settings: keyword arguments of SpikeOpCounter.
    """

    name: str
    layer: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    expected: Mapping[str, int]
    again: Callable[[], Mapping[str, int]]
    spiking: tuple[bool, ...] = (True,)
    dtype: torch.dtype = torch.float32
    settings: Mapping[str, str] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The layer behind neurons that declare its spiking inputs."""
        return Fed(self.layer(), self.spiking).eval()

    def tensors(self) -> tuple[Tensor, ...]:
        """The inputs."""
        return tuple(torch.tensor(x, dtype=self.dtype) for x in self.inputs)


def cases() -> list[Case]:
    """All of them."""
    # imported here: these modules use Case
    from tests.energy.hand_derived_attention import ATTENTION
    from tests.energy.hand_derived_convolutions import CONVOLUTIONS
    from tests.energy.hand_derived_neurons import NEURONS
    from tests.energy.hand_derived_products import PRODUCTS

    return [*PRODUCTS, *CONVOLUTIONS, *ATTENTION, *NEURONS]
