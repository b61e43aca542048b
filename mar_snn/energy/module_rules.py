"""Prices of modules taken as a whole: neurons, norms, Llamba's scan and convolution.

Neurons, per element and step, with one more addition per spike for the reset:

    neuron                  charge          fire
    IF                      1 add           1 cmp
    LIF, ParametricLIF      1 mul, 1 add    1 cmp
    TernaryIF               1 add           2 cmp
    TernaryLIF, ATMNNode    1 mul, 1 add    2 cmp
    ATMNCoder, first step   nothing         2 cmp
    ATMNCoder, later step   1 mul           2 cmp

The membrane that a node keeps between calls may differ from zero, so its leak is paid
at every step; a coder starts from rest and is fed once. Constants that multiply the
input (1 / tau of a LIF node, the threshold of a unit spike) fold into the weights
beside the neuron.
"""

from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules import ModuleCall, register_module_rule
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.coder import ATMNCoder

# ---- neurons


@register_module_rule(neuron.IFNode)
def price_if(call: ModuleCall) -> Cost | None:
    """1 addition and 1 comparison an element and step."""
    return _price_node(call, add=1, cmp=1)


@register_module_rule(neuron.LIFNode, neuron.ParametricLIFNode)
def price_lif(call: ModuleCall) -> Cost | None:
    """1 multiplication, 1 addition and 1 comparison an element and step."""
    return _price_node(call, mul=1, add=1, cmp=1)


@register_module_rule(neuron.TernaryIFNode)
def price_ternary_if(call: ModuleCall) -> Cost | None:
    """1 addition and 2 comparisons an element and step."""
    return _price_node(call, add=1, cmp=2)


@register_module_rule(neuron.TernaryLIFNode, ATMNNode)
def price_ternary_lif(call: ModuleCall) -> Cost | None:
    """1 multiplication, 1 addition and 2 comparisons an element and step."""
    return _price_node(call, mul=1, add=1, cmp=2)


def _price_node(call: ModuleCall, *, add: int, cmp: int, mul: int = 0) -> Cost | None:
    """The table at the top; None for a node whose output is analogue."""
    module, spikes = call.module, call.output
    if not getattr(module.surrogate_function, "spiking", True):
        return None
    events = call.events
    if events is None:
        in_steps = spikes if module.step_mode == "m" else spikes.unsqueeze(0)
        events = call.declare(in_steps, spikes)
    size = spikes.numel()
    resets = events.pos + events.neg
    ops = {"add": resets + add * size, "mul": mul * size, "cmp": cmp * size}
    return Cost(ops, dense={})


@register_module_rule(ATMNCoder)
def price_coder(call: ModuleCall) -> Cost | None:
    """2 T comparisons and T - 1 multiplications an element, 1 addition a spike."""
    if call.events is None:  # an analogue surrogate, or nothing was declared
        return None
    size, steps = call.output.numel(), call.module.time_steps
    ops = {
        "cmp": 2 * steps * size,
        "mul": (steps - 1) * size,
        "add": call.events.pos + call.events.neg,
    }
    return Cost(ops, dense={})


# ---- norms


@register_module_rule(nn.RMSNorm, "mar_snn.llamba.modeling_llamba.LlambaRMSNorm")
def price_rms_norm(call: ModuleCall) -> Cost:
    """For a row of D: D squares, their mean plus epsilon, rsqrt, scale, weight.

    That is 3 D + 1 multiplications (2 D + 1 without weights), D additions and 1 special
    function.
    """
    x: Tensor = call.output
    weight = call.module.weight
    width = x.shape[-1] if weight is None else weight.numel()
    rows = x.numel() // width
    muls = (2 if weight is None else 3) * width + 1
    return Cost({"mul": rows * muls, "add": rows * width, "special": rows})


# ---- the parts of Llamba that are not products of matrices


@register_module_rule("mar_snn.llamba.modeling_llamba.CausalConv1d")
def price_causal_convolution(call: ModuleCall) -> Cost:
    """Token t multiplies min(t + 1, taps) inputs per channel, all taps with a state.

    A state is taken to hold taps - 1 real inputs.
    """
    x = call.argument(0, "x")
    batch, length, channels = x.shape
    taps = call.module.kernel_size[0]
    before = 0 if call.argument(1, "state") is None else taps - 1
    products = sum(min(t + 1 + before, taps) for t in range(length))
    macs = batch * channels * products
    biases = x.numel() if call.module.bias is not None else 0
    return Cost({"dense_mac": macs, "mac": macs, "bias_add": biases})


@register_module_rule("mar_snn.llamba.scan.LlambaScan")
def price_scan(call: ModuleCall) -> Cost:
    """The recurrence, whatever algorithm ran.

    Per token and head, with a state of P · N: 1 sigmoid for the decay, P N
    multiplications for decay · S, P N MACs for x ⊗ B, P N for S C, P for the skip D x.
    """
    batch, length, heads, head_size = call.argument(0, "x").shape
    states = head_size * call.argument(1, "b").shape[-1]
    scans = batch * length * heads
    macs = scans * (2 * states + head_size)
    return Cost(
        {"dense_mac": macs, "mac": macs, "mul": scans * states, "special": scans}
    )
