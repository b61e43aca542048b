"""The groups that a report sums its rows by."""

import re

from spikingjelly.activation_based.neuron import BaseNode
from torch import nn

from mar_snn.neurons.coder import ATMNCoder

__all__ = ["group_of"]

#: The end of a module's name -> its group, first match first. The names are Llamba's;
#: "mixer" and "mlp" themselves are the operations written in their forward.
_BY_NAME = tuple(
    (re.compile(rf"(^|\.)({pattern})$"), group)
    for pattern, group in (
        (r"lm_head", "lm_head"),
        (r"mixer\.in_proj", "mixer.in_proj"),
        (r"mixer\.(conv1d|activation)", "mixer.conv1d"),
        (r"mixer\.scan", "mixer.scan"),
        (r"mixer\.out_proj", "mixer.out_proj"),
        (r"layers\.\d+\.mixer", "mixer.gate"),
        (r"layers\.\d+\.mlp(\.(gate_proj|up_proj|down_proj|act_fn))?", "ffn"),
        (r"layers\.\d+", "residual"),
        (r"(input|post_attention|final)_layernorm", "norm"),
    )
)


def group_of(name: str, module: nn.Module) -> str:
    """The group of a row.

    Neurons are one group wherever they stand. What is not named as in Llamba is grouped
    by its class; what stands in the model's own forward is "other".
    """
    if isinstance(module, BaseNode | ATMNCoder):
        return "neuron"
    if isinstance(module, nn.Embedding):
        return "embedding"
    for pattern, group in _BY_NAME:
        if pattern.search(name):
            return group
    if not name and any(True for _ in module.children()):
        return "other"
    return type(module).__name__
