"""Put ATMN neurons in the place of a SpikingJelly model's own."""

import copy
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.hooks import hand_over_hooks
from mar_snn.neurons.interop import (
    TERNARY_NEURONS,
    checkpoint_options,
    warn_about_binary_tools,
)

__all__ = ["replace_neurons"]

_REPLACED = (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode)
_DYNAMICS = (
    "materialize_states",
    "single_step_functional_forward",
    "multi_step_functional_forward",
    "single_step_forward",
    "multi_step_forward",
    "forward",
)


def replace_neurons(
    net: nn.Module,
    neuron_class: Callable[..., nn.Module] = ATMNNode,
    *,
    soft_reset: bool = False,
    **kwargs: Any,
) -> int:
    """How many IF, LIF and PLIF nodes of `net` became `neuron_class`, in place.

    Each new node carries on with the threshold, time constant, surrogate, step mode,
    `detach_reset`, `store_v_seq`, training mode, device and hooks of the old one, at
    rest: a monitor that was attached before goes on.
    SpikingJelly keeps 1 - 1 / tau of the membrane for each step, an ATMN node keeps
    1 / tau: tau becomes tau / (tau - 1), and 1 for an IF node. Where the old node
    divides its input by tau (`decay_input=True`), the threshold is multiplied by tau
    instead, which fires the same spikes. A PLIF node's tau is frozen at its value.

    A node shared by two layers stays shared. Subclasses that change the dynamics
    (ILIF, LIAF, ...) are left alone. Build the optimiser afterwards, and pass the
    outermost model, so that `functional.reset_net` finds the new nodes. A UserWarning
    names each tool of the model that would lose the sign of a spike
    (`mar_snn.neurons.interop.binary_tools`).

    Args:
        net: a model that contains the nodes.
        neuron_class: `ATMNNode` or anything that takes its keyword arguments.
        soft_reset: accept that nodes with a hard reset get a soft one.
        kwargs: arguments of `neuron_class` that override what is carried over.

    Raises:
        ValueError: `net` is itself a node, or a node resets hard and `soft_reset` is
            False, or a checkpoint of SpikingJelly's memopt holds a node; the model is
            then as it was.
    """
    if _is_replaceable(net):
        raise ValueError(
            f"net is itself a {type(net).__name__}, which cannot be replaced inside "
            "itself: pass the model that contains it"
        )
    for wrapper in net.modules():
        if checkpoint_options(wrapper) and any(map(_is_replaceable, wrapper.modules())):
            raise ValueError(
                "a checkpoint of SpikingJelly's memopt goes on running the neuron that "
                "it was built with: replace the neurons first, then call "
                "optimize_memory or checkpoint_module"
            )
    slots = [
        (parent, name, node)
        for parent in net.modules()
        for name, node in parent._modules.items()
        if node is not None and _is_replaceable(node)
    ]
    replacements: dict[nn.Module, nn.Module] = {}
    for parent, name, node in slots:
        if node in replacements:
            continue
        if node.v_reset is not None and not soft_reset:
            raise ValueError(
                f"{name!r} of {type(parent).__name__} is a {type(node).__name__} that "
                f"resets to v_reset={node.v_reset}; an ATMN node resets by "
                "subtraction: build the model with v_reset=None, or accept the change "
                "with soft_reset=True"
            )
        settings = _settings(node) | copy.deepcopy(kwargs)
        replacements[node] = neuron_class(**settings).train(node.training)
    for node, new in replacements.items():
        hand_over_hooks(node, new)
    for parent, name, node in slots:
        setattr(parent, name, replacements[node].to(_device(node, parent, net)))
    for module in net.modules():
        functional.invalidate_reset_cache(module)
    if any(isinstance(new, TERNARY_NEURONS) for new in replacements.values()):
        warn_about_binary_tools(net, stacklevel=3)
    return len(replacements)


def _is_replaceable(module: nn.Module) -> bool:
    """Whether `module` is an IF, LIF or PLIF node with the dynamics of its family."""
    return any(
        isinstance(module, family)
        and all(
            getattr(type(module), method) is getattr(family, method)
            for method in _DYNAMICS
        )
        for family in _REPLACED
    )


def _settings(node: Any) -> dict[str, Any]:
    """The arguments of an ATMN node that carries on where `node` stands."""
    if isinstance(node, neuron.IFNode):
        tau, input_gain = 1.0, 1.0
    else:
        if isinstance(node, neuron.LIFNode):
            leak = 1.0 / node.tau
        else:
            leak = node.w.detach().double().sigmoid().item()
        tau = 1.0 / (1.0 - leak) if leak < 1.0 else math.inf
        input_gain = leak if node.decay_input else 1.0
    return {
        "tau": tau,
        "v_threshold": float(node.v_threshold) / input_gain,
        "surrogate_function": node.surrogate_function,
        "detach_reset": node.detach_reset,
        "step_mode": node.step_mode,
        "store_v_seq": node.store_v_seq,
    }


def _device(node: Any, *around: nn.Module) -> torch.device:
    """Where the first tensor of a node, or else of the modules around it, lives."""
    memories = (memory for memory in node.memories() if isinstance(memory, Tensor))
    parameters = (module.parameters() for module in (node, *around))
    for tensor in chain(memories, *parameters):
        return tensor.device
    return torch.device("cpu")
