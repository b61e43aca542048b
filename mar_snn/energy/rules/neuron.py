"""Prices of neurons: SpikingJelly's, ours, and our two operations called directly.

Per element and step, with one more addition per spike for the reset:

    neuron                  charge          fire
    IF                      1 add           1 cmp
    LIF, ParametricLIF      1 mul, 1 add    1 cmp
    KLIF                    2 mul, 1 add    2 cmp (ReLU and threshold)
    ILIF, D levels          1 mul, 1 add    D cmp
    TernaryIF               1 add           2 cmp
    TernaryLIF, ATMNNode    1 mul, 1 add    2 cmp
    ATMNCoder, first step   nothing         2 cmp
    ATMNCoder, later step   1 mul           2 cmp
    LIFCoder, first step    nothing         1 cmp
    LIFCoder, later step    1 mul, 1 add    1 cmp

The membrane that a node keeps between calls may differ from zero, so its leak is paid
at every step; a coder starts from rest, and an ATMNCoder is fed once. A KLIF node that
scales its reset pays 1 mul more. An integer spike k of ILIF is k spikes: k
subtractions. Constants that multiply the input (1 / tau of a LIF node, the threshold of
a unit spike) fold into the weights beside the neuron.

Bytes: the input is read and the spikes are written; a node reads and writes its
membrane at every step, a coder between its T steps only. In the dense twin no neuron
is there, and nothing moves.
"""

import torch
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.registry import (
    ModuleCall,
    OpCall,
    register_module_rule,
    register_op_rule,
)
from mar_snn.energy.rules.traffic import bitmap_bytes, size_in_bytes, weight_traffic
from mar_snn.energy.spike_trains import Events
from mar_snn.neurons import ops as _registered  # noqa: F401  registers mar_snn::
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.lif_coder import LIFCoder
from mar_snn.neurons.reference import atmn_encode, membrane_dtype

_ops = torch.ops.mar_snn


@register_module_rule(neuron.IFNode)
def price_if(call: ModuleCall) -> Cost | None:
    """1 addition and 1 comparison an element and step."""
    return _price_node(call, add=1, cmp=1)


@register_module_rule(neuron.LIFNode, neuron.ParametricLIFNode)
def price_lif(call: ModuleCall) -> Cost | None:
    """1 multiplication, 1 addition and 1 comparison an element and step."""
    return _price_node(call, mul=1, add=1, cmp=1)


@register_module_rule(neuron.KLIFNode)
def price_klif(call: ModuleCall) -> Cost | None:
    """LIF with a gain, a ReLU, and a division of the membrane where it is scaled."""
    return _price_node(call, mul=2 + call.module.scale_reset, add=1, cmp=2)


@register_module_rule(neuron.ILIFNode)
def price_ilif(call: ModuleCall) -> Cost | None:
    """LIF with as many thresholds as it has levels."""
    levels = call.module.surrogate_function.max_spike_count
    return _price_node(call, mul=1, add=1, cmp=levels, readout="graded")


@register_module_rule(neuron.TernaryIFNode)
def price_ternary_if(call: ModuleCall) -> Cost | None:
    """1 addition and 2 comparisons an element and step."""
    return _price_node(call, add=1, cmp=2)


@register_module_rule(neuron.TernaryLIFNode, ATMNNode)
def price_ternary_lif(call: ModuleCall) -> Cost | None:
    """1 multiplication, 1 addition and 2 comparisons an element and step."""
    return _price_node(call, mul=1, add=1, cmp=2)


def _price_node(
    call: ModuleCall, *, add: int, cmp: int, mul: int = 0, readout: str = "unit"
) -> Cost | None:
    """The table at the top; None for a node whose output is analogue."""
    module, spikes = call.module, call.output
    if not getattr(module.surrogate_function, "spiking", True):
        return None
    events = call.events
    in_steps = spikes if module.step_mode == "m" else spikes.unsqueeze(0)
    if events is None:
        events = call.declare(in_steps, spikes, readout=readout)
    membrane = module.v if isinstance(module.v, Tensor) else in_steps[0]
    moved = _node_traffic(call.args[0], in_steps, membrane.dtype, readout)
    _add_threshold(moved, *module.parameters())
    return _node_cost(events, spikes.numel(), moved, add=add, cmp=cmp, mul=mul)


def _node_cost(
    events: Events,
    size: int,
    moved: dict[str, int],
    *,
    add: int,
    cmp: int,
    mul: int,
) -> Cost:
    resets = events.pos + events.neg
    ops: dict[str, int | Tensor] = {"mul": mul * size, "cmp": cmp * size}
    ops["add"] = resets + add * size
    return Cost(ops, dense={}, moved=moved, dense_moved={})


def _node_traffic(
    x: Tensor, in_steps: Tensor, membrane: torch.dtype, readout: str = "unit"
) -> dict[str, int]:
    steps, size = len(in_steps), in_steps.numel()
    graded = readout == "graded"
    return {
        "activation": size_in_bytes(x),
        "spike_bitmap": size if graded else bitmap_bytes(size // max(steps, 1), steps),
        "neuron_state": 2 * size * membrane.itemsize,
    }


def _add_threshold(moved: dict[str, int], *thresholds: Tensor) -> None:
    moved.update(weight_traffic(*thresholds))


# ---- the coder


@register_module_rule(ATMNCoder)
def price_coder(call: ModuleCall) -> Cost | None:
    """2 T comparisons and T - 1 multiplications an element, 1 addition a spike."""
    if call.events is None:  # an analogue surrogate, or nothing was declared
        return None
    x = call.args[0]
    return _coder_cost(x, call.module.neuron.a, call.module.time_steps, call.events)


def _coder_cost(
    x: Tensor,
    threshold: Tensor,
    steps: int,
    events: Events,
    *,
    cmp: int = 2,
    feeds: int = 1,
) -> Cost:
    """`feeds`: at how many steps the input is read; added at all but the first."""
    size = x.numel()
    state = membrane_dtype(x.dtype).itemsize
    moved = {
        "activation": feeds * size_in_bytes(x),
        "spike_bitmap": bitmap_bytes(size, steps),
        "neuron_state": 2 * (steps - 1) * size * state,
    }
    _add_threshold(moved, threshold)
    ops: dict[str, int | Tensor] = {
        "cmp": cmp * steps * size,
        "mul": (steps - 1) * size,
        "add": events.pos + events.neg + (feeds - 1) * size,
    }
    return Cost(ops, dense={}, moved=moved, dense_moved={})


@register_module_rule(LIFCoder)
def price_lif_coder(call: ModuleCall) -> Cost | None:
    """T comparisons, T - 1 multiplications and additions, 1 addition a spike."""
    if call.events is None:
        return None
    coder = call.module
    return _coder_cost(
        call.args[0],
        coder.v_threshold,
        coder.time_steps,
        call.events,
        cmp=1,
        feeds=coder.time_steps,
    )


# ---- our operations, where no module of the above calls them


@register_op_rule(_ops.atmn_multi_step.default)
def price_multi_step(call: OpCall) -> Cost:
    """As an ATMNNode; its result is no declared spike, whoever called it knows."""
    spike_seq, v = call.output[:2]
    moved = _node_traffic(call.args[0], spike_seq, v.dtype)
    _add_threshold(moved, call.args[2])
    return _node_cost(_signs(spike_seq), spike_seq.numel(), moved, add=1, cmp=2, mul=1)


@register_op_rule(_ops.atmn_code.default)
def price_code(call: OpCall) -> Cost:
    """As an ATMNCoder; the spikes are encoded once more to be counted."""
    x, threshold, weights, tau, fire_ratio = call.args[:5]
    spike_seq = atmn_encode(
        x.detach(),
        threshold.detach(),
        time_steps=len(weights),
        tau=tau,
        fire_ratio=fire_ratio,
        surrogate_function=surrogate.ATan(),
    )
    return _coder_cost(x, threshold, len(weights), _signs(spike_seq))


def _signs(spikes: Tensor) -> Events:
    return Events((spikes > 0).sum(), (spikes < 0).sum())
