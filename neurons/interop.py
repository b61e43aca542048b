"""Ternary counterparts of SpikingJelly's tools that take every spike for 0 or 1.

A compressor for its `memopt`, counting rules for its `op_counter`, two binary planes
for everything else, and a warning where a tool in a network would lose the sign.
Importing this module makes ATMNNode known to `distributed.vision.NeuronConfig`.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from spikingjelly.activation_based import layer, memopt, neuron, op_counter
from spikingjelly.activation_based.distributed import vision
from torch import Tensor, nn
from torch.nn import functional as F

from mar_snn.neurons.atmn import ATMNNode

__all__ = [
    "TERNARY_NEURONS",
    "TernarySpikeCompressor",
    "as_binary_planes",
    "atmn_state_rules",
    "binary_tools",
    "checkpoint_options",
    "ternary_energy_profiler",
    "ternary_rules",
    "warn_about_binary_tools",
]

vision.register_neuron_class(ATMNNode)

# ---- memopt


class TernarySpikeCompressor(memopt.SpikeCompressor):
    """Two bits for a spike of -1, 0 or +1, four of them to a byte, and no loss.

    For `memopt.checkpoint` and `memopt.checkpoint_module`, whose own compressors turn a
    -1 into something else:

        checkpoint_module(conv, compressor=TernarySpikeCompressor())

    `optimize_memory` chooses a compressor by itself, from whether one batch held no -1:
    call it with `compress=False`. Compressing waits for the device once, to look at the
    values.
    """

    def compress(
        self, x: Shaped[Tensor, "..."]
    ) -> tuple[UInt8[Tensor, " bytes"], torch.dtype, torch.Size]:
        """(packed, dtype, shape) of spikes of any shape, on the device of `x`.

        Raises:
            ValueError: for other values than -1, 0 and +1.
        """
        fits = _unit(x)
        if not fits.all():
            other = x[~fits][0].item()
            raise ValueError(
                f"only spikes of -1, 0 and +1 fit into two bits, got {other:.4g}: "
                "compress the input of a layer that follows a ternary neuron directly, "
                "or checkpoint this one with compressor=None"
            )
        # the two lowest bits of -1, 0 and +1 in two's complement: 11, 00 and 01
        bits = x.detach().to(torch.int8).flatten().view(torch.uint8) & 3
        quads = F.pad(bits, (0, -bits.numel() % 4)).view(-1, 4)
        packed = quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6
        return packed, x.dtype, x.shape

    def decompress(
        self, packed: tuple[UInt8[Tensor, " bytes"], torch.dtype, torch.Size]
    ) -> Shaped[Tensor, "..."]:
        """The spikes that `compress` was given, in their shape and dtype."""
        data, dtype, shape = packed
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=data.device)
        bits = (data[:, None] >> shifts & 3).flatten()[: shape.numel()]
        return ((bits.view(torch.int8) ^ 2) - 2).to(dtype).view(shape)


# ---- whatever knows only 0 and 1


def as_binary_planes(
    spike_seq: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """(positive, negative) spikes of 0 and 1, with positive - negative = spike_seq.

    What knows only binary spikes (`visualizing.plot_1d_spikes`, `SpikeCountToBinary`,
    `functional.bit_spike_compress`) takes one after the other; a linear layer of the
    spikes is that of the positive less that of the negative. The gradient of the
    difference is that of the spikes.

    Raises:
        ValueError: for other values than -1, 0 and +1.
    """
    if not _unit(spike_seq).all():
        raise ValueError(
            "only spikes of -1, 0 and +1 split into two planes of 0 and 1: pass unit "
            "spikes such as those of an ATMNNode, not currents or decoded values"
        )
    fired = spike_seq.abs()
    return (fired + spike_seq) / 2, (fired - spike_seq) / 2


def _unit(values: Shaped[Tensor, "..."]) -> Bool[Tensor, "..."]:
    """Where `values` are -1, 0 or +1."""
    fits = (values == 0) | (values == 1)
    # an unsigned 255 is equal to -1
    return fits | (values == -1) if values.is_signed() else fits


# ---- op_counter

Rule = Callable[..., Any]

_SPIKE_COUNTERS = (
    op_counter.SynOpCounter,
    op_counter.ACCounter,
    op_counter.MACCounter,
    op_counter.NeuromorphicMemoryAccessCounter,
)
_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.bmm.default)
#: what SpikingJelly's rules treat differently where they find binary spikes
_SPIKE_DRIVEN = {
    *_PRODUCTS,
    _aten.addmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten.add.Tensor,
    _aten.sub.Tensor,
    *(("forward", kind) for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)),
}


def ternary_rules(counter: op_counter.BaseCounter) -> dict[Any, Rule]:
    """The rules of `counter` for spike-driven operations, where -1 is a spike as well.

    A -1 costs what a +1 costs, a subtraction in place of an addition. So each rule is
    the counter's own, shown the magnitudes of its ternary operands: binary and dense
    tensors count as before. For a product of two ternary tensors that is the number of
    pairs of spikes that meet.

        SynOpCounter(extra_rules=ternary_rules(SynOpCounter()))

    and likewise `ACCounter` and `MACCounter`; any counter that is there already takes
    `counter.rules.update(ternary_rules(counter))`. Like SpikingJelly, these rules go by
    the values: a float tensor, or weights, that happen to hold nothing but -1, 0 and +1
    cannot be told from spikes. `mar_snn.SpikeOpCounter` goes by what neurons declare.

    Raises:
        ValueError: for a counter without such rules.
    """
    if not isinstance(counter, _SPIKE_COUNTERS):
        raise ValueError(
            f"{type(counter).__name__} does not tell spikes from other values: pass a "
            "SynOpCounter, ACCounter, MACCounter or NeuromorphicMemoryAccessCounter"
        )
    own = counter.rules
    return {key: _of_magnitudes(key, own[key]) for key in _SPIKE_DRIVEN & own.keys()}


def _of_magnitudes(key: Any, rule: Rule) -> Rule:
    """`rule`, for what the operation would have been with 1 in the place of -1."""

    def count(*call: Any) -> Any:
        # (args, kwargs, out) of an operator; (module, args, kwargs, out) of a module
        *module, args, kwargs, out = call
        args = tuple(_magnitudes(value) for value in args)
        kwargs = {name: _magnitudes(value) for name, value in kwargs.items()}
        if key in _PRODUCTS and all(_unit(value).all() for value in args):
            # SpikingJelly sums the product, in which +1 and -1 cancel: this has the
            # sum that the product of the magnitudes has, and is exact in any dtype
            x, y = args
            out = x.sum(-2, dtype=torch.float64) * y.sum(-1, dtype=torch.float64)
        return rule(*module, args, kwargs, out)

    return count


def _magnitudes(value: Any) -> Any:
    """The magnitudes of a ternary tensor; anything else, as it is."""
    if isinstance(value, Tensor) and value.is_signed() and _unit(value).all():
        return value.abs()
    return value


def ternary_energy_profiler(
    config: op_counter.SimpleEnergyConfig | None = None,
) -> op_counter.SimpleEnergyProfiler:
    """SpikingJelly's energy profiler, whose counters take -1 for a spike as well.

    `estimate_simple_energy` makes its own profiler and offers no place for rules; what
    it does is

        profiler = ternary_energy_profiler(config)
        profiler.bind_model(net)
        with profiler, torch.no_grad():
            net(x)
        profiler.get_report()
    """
    profiler = op_counter.SimpleEnergyProfiler(config=config)
    for counter in (
        profiler.synop_counter,
        profiler.ac_counter,
        profiler.mac_counter,
        profiler.memory_counter,
    ):
        counter.rules.update(ternary_rules(counter))
    return profiler


def atmn_state_rules() -> dict[type[nn.Module], Rule]:
    """How `NeuronStateCounter` counts ATMN's operator: for its `extra_state_rules`.

    To SpikingJelly the operator is opaque. By the equations in `reference`, a neuron
    and step is one multiplication, one addition, two comparisons, and a subtraction for
    a spike; the membrane is read and written once. With a surrogate that has no kernel
    there is no operator, and SpikingJelly counts the primitives it sees. It looks rules
    up by the exact class: a subclass of ATMNNode needs an entry of its own.
    """
    return {ATMNNode: _count_multi_step}


def _count_multi_step(
    module: nn.Module,  # noqa: ARG001  SpikingJelly passes it
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],  # noqa: ARG001  the same
    out: Any,
    *_: object,
) -> dict[str, int] | None:
    """The metrics of one call of our operator; None if `func` is another."""
    if func is not torch.ops.mar_snn.atmn_multi_step.default:
        return None
    x_seq, v = args[:2]
    neuron_steps, fired = x_seq.numel(), int(out[0].count_nonzero())
    return {
        "state_reads": neuron_steps * v.element_size(),
        "state_writes": neuron_steps * v.element_size(),
        "state_muls": neuron_steps,
        "state_adds": neuron_steps + fired,
        "state_comps": 2 * neuron_steps,
        "state_reset_ops": fired,
        "spike_triggered_ops": fired,
        "neuron_logical_steps": neuron_steps,
    }


# ---- tools that lose the sign

#: neurons that fire -1, 0 and +1
TERNARY_NEURONS = (ATMNNode, neuron.TernaryIFNode, neuron.TernaryLIFNode)
_BINARY_COMPRESSORS = (
    memopt.BooleanSpikeCompressor,
    memopt.Uint8SpikeCompressor,
    memopt.BitSpikeCompressor,
    memopt.SparseSpikeCompressor,
)
_MAX_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_SPIKINGJELLY = "spikingjelly.activation_based"
#: connection of a SEW block -> what it makes of -1
_CONNECTIONS = {
    "AND": "the connection AND multiplies spikes, so that -1 and -1 make +1",
    "IAND": "the connection IAND is x * (1 - y), so that y = -1 doubles x",
}


def warn_about_binary_tools(net: nn.Module, *, stacklevel: int = 2) -> list[str]:
    """The warnings it issued: one for each kind of tool in `binary_tools(net)`."""
    sentences = binary_tools(net)
    for sentence in sentences:
        warnings.warn(sentence, UserWarning, stacklevel=stacklevel)
    return sentences


def binary_tools(net: nn.Module) -> list[str]:
    """What in `net` would lose the sign of a ternary spike, and the way out.

    One sentence for each kind, with the places. Found are the modules that do so for
    certain: `SpikeCountToBinary`, memopt wrappers with a binary compressor, the
    connections AND and IAND of SEW-ResNet, the scalers of an ann2snn conversion, and a
    max-pool right behind a ternary neuron in a Sequential. What a `forward` does by
    itself, or a function such as `functional.bit_spike_compress`, is not.
    """
    places: dict[str, dict[str, None]] = {}
    for path, module in net.named_modules():
        if sentence := _complaint(module):
            places.setdefault(sentence, {})[path] = None
        # a part of a Sequential is seen again inside the whole: the dict keeps it once
        for (_, before), (inner, pool) in pairwise(_leaves(module, path)):
            if isinstance(before, TERNARY_NEURONS) and isinstance(pool, _MAX_POOLS):
                places.setdefault(_max_pool(pool), {})[inner] = None
    return [f"{sentence} ({_where([*at])})" for sentence, at in places.items()]


def _complaint(module: nn.Module) -> str | None:
    """What `module` does to a -1, and the way out; None if it does no harm."""
    if isinstance(module, layer.SpikeCountToBinary):
        return (
            "SpikeCountToBinary makes no event of a spike of -1: take it and its "
            "TemporalBinSum out, ternary spikes are single events already, or send the "
            "two planes of mar_snn.neurons.interop.as_binary_planes through them"
        )
    compressor = checkpoint_options(module).get("compressor")
    if isinstance(compressor, _BINARY_COMPRESSORS):
        return (
            f"{type(compressor).__name__} does not give a spike of -1 back: call "
            "optimize_memory(..., compress=False), or checkpoint_module(module, "
            "compressor=TernarySpikeCompressor()), from mar_snn.neurons.interop"
        )
    if _is_from(module, "model.sew_resnet"):
        effect = _CONNECTIONS.get(getattr(module, "cnf", ""))
        return effect and f"{effect}: build the model with cnf='ADD'"
    if _is_from(module, "ann2snn.modules") and type(module).__name__ != "VoltageHook":
        return (
            f"{type(module).__name__} comes from ann2snn, whose IF neurons stand for "
            "ReLU and never fire below zero, but ternary neurons do: keep the IF "
            "neurons of a converted network, or train it on after the swap"
        )
    return None


def _max_pool(pool: nn.Module) -> str:
    name = type(pool).__name__
    return (
        f"{name} behind a ternary neuron passes a -1 on only where its whole window "
        f"fires -1: pool before the neuron, or use {name.replace('Max', 'Avg')}"
    )


def checkpoint_options(module: nn.Module) -> dict[str, Any]:
    """What `memopt.checkpoint_module` wrapped `module` with; nothing if it did not."""
    run = vars(module).get("checkpoint_fn")
    options = run.keywords if isinstance(run, functools.partial) else {}
    return options if "functional_forward" in options else {}


def _is_from(module: nn.Module, home: str) -> bool:
    """Whether `module` is of a class of SpikingJelly's `home`, which stays unloaded."""
    homes = {kind.__module__ for kind in type(module).__mro__}
    return f"{_SPIKINGJELLY}.{home}" in homes


def _leaves(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) in the order in which a Sequential, however nested, runs them."""
    if not isinstance(module, nn.Sequential):
        yield path, module
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _leaves(child, f"{path}.{name}".lstrip("."))


def _where(places: list[str]) -> str:
    """The first places, and how many more."""
    named = ", ".join(repr(place) if place else "the root" for place in places[:3])
    more = len(places) - 3
    return f"at {named}" + (f" and {more} more" if more > 0 else "")
