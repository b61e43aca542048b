"""Counting what a spiking model computes, and what that would cost in energy."""

from mar_snn.energy.counter import SpikeOpCounter
from mar_snn.energy.counts import OpCounts
from mar_snn.energy.profiles import EnergyProfile, register_profile
from mar_snn.energy.report import EnergyReport
from mar_snn.energy.rules import register_module_rule, register_op_rule

__all__ = [
    "EnergyProfile",
    "EnergyReport",
    "OpCounts",
    "SpikeOpCounter",
    "register_module_rule",
    "register_op_rule",
    "register_profile",
]
