"""Llamba: Llama with Mamba-2 mixers, dense or spiking, as transformers classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mar_snn.llamba.cache import LlambaCache
from mar_snn.llamba.configuration_llamba import LlambaConfig
from mar_snn.llamba.modeling_llamba import (
    LlambaForCausalLM,
    LlambaModel,
    LlambaPreTrainedModel,
)

__all__ = [
    "LlambaCache",
    "LlambaConfig",
    "LlambaForCausalLM",
    "LlambaModel",
    "LlambaPreTrainedModel",
]

AutoConfig.register("llamba", LlambaConfig)
AutoModel.register(LlambaConfig, LlambaModel)
AutoModelForCausalLM.register(LlambaConfig, LlambaForCausalLM)
