"""ATMN, the adaptive ternary multi-step neuron, as a SpikingJelly plug-in."""

from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.interop import (
    TernarySpikeCompressor,
    as_binary_planes,
    ternary_rules,
    warn_about_binary_tools,
)
from mar_snn.neurons.lif_coder import LIFCoder
from mar_snn.neurons.spikes import SpikeEvent, listen_to_spikes, record_spikes
from mar_snn.neurons.swap import replace_neurons

__all__ = [
    "ATMNCoder",
    "ATMNNode",
    "LIFCoder",
    "SpikeEvent",
    "TernarySpikeCompressor",
    "as_binary_planes",
    "listen_to_spikes",
    "record_spikes",
    "replace_neurons",
    "ternary_rules",
    "warn_about_binary_tools",
]
