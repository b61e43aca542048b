"""Spiking neurons for SpikingJelly and spiking Mamba-2 language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mar_snn.distill import SBDSConfig, SBDSTrainer
    from mar_snn.energy import EnergyReport, SpikeOpCounter
    from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
    from mar_snn.loading import load
    from mar_snn.neurons import ATMNCoder, ATMNNode, replace_neurons
    from mar_snn.spiking import SpikingConfig, calibrate, spikify

__version__ = "0.1.0"

#: public name -> the module that holds it, imported at first use
_HOMES = {
    "ATMNCoder": "mar_snn.neurons",
    "ATMNNode": "mar_snn.neurons",
    "EnergyReport": "mar_snn.energy",
    "LlambaConfig": "mar_snn.llamba",
    "LlambaForCausalLM": "mar_snn.llamba",
    "SBDSConfig": "mar_snn.distill",
    "SBDSTrainer": "mar_snn.distill",
    "SpikeOpCounter": "mar_snn.energy",
    "SpikingConfig": "mar_snn.spiking",
    "calibrate": "mar_snn.spiking",
    "load": "mar_snn.loading",
    "replace_neurons": "mar_snn.neurons",
    "spikify": "mar_snn.spiking",
}

__all__ = [
    "ATMNCoder",
    "ATMNNode",
    "EnergyReport",
    "LlambaConfig",
    "LlambaForCausalLM",
    "SBDSConfig",
    "SBDSTrainer",
    "SpikeOpCounter",
    "SpikingConfig",
    "calibrate",
    "load",
    "replace_neurons",
    "spikify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
