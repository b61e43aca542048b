"""The groups that a report sums its rows by."""

import re

from spikingjelly.activation_based.neuron import BaseNode
from torch import nn

from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.lif_coder import LIFCoder

__all__ = ["group_of"]

#: Blocks whose forward writes out what Llamba has a module for.
_BY_CLASS = {
    "MambaMixer": "mixer.scan",
    "Mamba2Mixer": "mixer.scan",
    "Mamba": "mixer",
    "Mamba2": "mixer",
}
#: The end of a module's name -> its group, first match first. The names are those of
#: Llamba and of transformers' Llama and Mamba; "mixer" and "mlp" themselves are the
#: operations written in their forward.
_BY_NAME = tuple(
    (re.compile(rf"(^|\.)({pattern})$"), group)
    for pattern, group in (
        (r"lm_head", "lm_head"),
        (r"mixer\.in_proj", "mixer.in_proj"),
        (r"mixer\.(conv1d|activation)", "mixer.conv1d"),
        (r"mixer\.scan", "mixer.scan"),
        (r"mixer\.(x_proj|dt_proj)", "mixer.x_proj"),
        (r"mixer\.norm", "mixer.gate"),
        (r"mixer\.out_proj", "mixer.out_proj"),
        (r"layers\.\d+\.mixer", "mixer.gate"),
        (r"layers\.\d+\.mlp(\.(gate_proj|up_proj|down_proj|act_fn))?", "ffn"),
        (r"layers\.\d+\.self_attn(\.[qkvo]_proj)?", "attention"),
        (r"rotary_emb", "attention"),
        (r"layers\.\d+", "residual"),
        (r"(input|post_attention|final)_layernorm", "norm"),
        (r"((model|backbone|layers\.\d+)\.)(norm|norm_f)", "norm"),
    )
)


def group_of(name: str, module: nn.Module) -> str:
    """The group of a row.

    Neurons are one group wherever they stand. What has none of the names above is
    grouped by its class; what stands in the model's own forward is "other".
    """
    if isinstance(module, BaseNode | ATMNCoder | LIFCoder):
        return "neuron"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if type(module).__name__ in _BY_CLASS:
        return _BY_CLASS[type(module).__name__]
    for pattern, group in _BY_NAME:
        if pattern.search(name):
            return group
    if not name and any(True for _ in module.children()):
        return "other"
    return type(module).__name__
