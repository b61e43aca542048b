"""Counting what a spiking model computes, pricing it in energy, measuring energy."""

from mar_snn.energy.counter import SpikeOpCounter
from mar_snn.energy.counts import OpCounts
from mar_snn.energy.measured.measure import EnergyMeter, TrialPlan
from mar_snn.energy.measured.measurement import Measurement
from mar_snn.energy.reporting.profiles import EnergyProfile, register_profile
from mar_snn.energy.reporting.report import EnergyReport
from mar_snn.energy.rules.registry import register_module_rule, register_op_rule

__all__ = [
    "EnergyMeter",
    "EnergyProfile",
    "EnergyReport",
    "Measurement",
    "OpCounts",
    "SpikeOpCounter",
    "TrialPlan",
    "register_module_rule",
    "register_op_rule",
    "register_profile",
]
