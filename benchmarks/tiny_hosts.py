"""Random models of every class that spikify knows, small enough for any machine."""

import copy
import os
import warnings
from functools import cache
from typing import Any, NamedTuple

import mamba_ssm_stand_in as stand_in
import torch
import transformers
from torch import Tensor, nn

from mar_snn import LlambaConfig, LlambaForCausalLM, calibrate, spikify

__all__ = ["HOSTS", "Host", "make_dense", "make_spiking", "tokens"]

VOCABULARY = 48
#: 0, unless the tests run on other numbers
_SEED = int(os.environ.get("MAR_SNN_TEST_SEED", "0"))
_TOKENS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_STREAM = {"hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.2}
_FEED_FORWARD = {"intermediate_size": 24}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1}
_BLOCK = _STREAM | _FEED_FORWARD | _ATTENTION
_MIXER = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 4,
}
_EXPERTS = {"num_experts_per_tok": 1}


class Host(NamedTuple):
    """How to build one host, and what to know of it."""

    config: dict[str, Any]
    note: str = ""


#: class of the config, without "Config" -> the host
HOSTS: dict[str, Host] = {
    "Llamba": Host(
        {
            "d_model": 16,
            "n_layer": 2,
            "mlp_cfg": _FEED_FORWARD,
            "ssm_cfg": {"d_state": 4, "n_v_heads": 4, "n_qk_heads": 2},
            "initializer_range": 0.2,
        },
        "slots of its own",
    ),
    "Mamba": Host(_STREAM | {"state_size": 4}, "x_proj and dt_proj stay dense"),
    "FalconMamba": Host(_STREAM | {"state_size": 4}, "x_proj and dt_proj stay dense"),
    "Mamba2": Host(
        _STREAM
        | {"state_size": 4, "num_heads": 4, "head_dim": 8}
        | {"n_groups": 2, "chunk_size": 4}
    ),
    "Bamba": Host(
        _BLOCK | _MIXER | {"num_hidden_layers": 3, "attn_layer_indices": [1]}
    ),
    "Zamba2": Host(
        _BLOCK
        | {"num_key_value_heads": 2, "num_hidden_layers": 5, "adapter_rank": 2}
        | {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"]}
        | {"num_mem_blocks": 1, "chunk_size": 4, "n_mamba_heads": 4}
        | {"mamba_d_state": 4, "mamba_headdim": 8, "mamba_ngroups": 2},
        "feed-forwards share weights and coders; their adapters stay dense",
    ),
    "FalconH1": Host(
        _BLOCK
        | _MIXER
        | {"head_dim": 8, "mamba_d_ssm": 32, "mamba_rms_norm": True}
        | {"ssm_in_multiplier": 0.7},
        "the input of in_proj is scaled before it is coded",
    ),
    "NemotronH": Host(
        _STREAM
        | _FEED_FORWARD
        | _ATTENTION
        | _EXPERTS
        | {"layers_block_type": ["mamba", "mlp", "attention", "moe"]}
        | {"mamba_num_heads": 4, "mamba_head_dim": 8, "head_dim": 8}
        | {"ssm_state_size": 4, "n_groups": 2, "chunk_size": 4}
        | {"n_routed_experts": 2, "n_group": 1, "topk_group": 1}
        | {"moe_intermediate_size": 8, "moe_shared_expert_intermediate_size": 8},
        "shared experts spike",
    ),
    "GraniteMoeHybrid": Host(
        _BLOCK
        | _MIXER
        | _EXPERTS
        | {"layer_types": ["mamba", "attention"]}
        | {"shared_intermediate_size": 24, "num_local_experts": 2},
        "shared experts spike",
    ),
    "Jamba": Host(
        _BLOCK
        | _EXPERTS
        | {"mamba_d_state": 4, "mamba_dt_rank": 2, "num_experts": 2}
        | {"attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1},
        "x_proj and dt_proj stay dense",
    ),
    "Llama": Host(_BLOCK),
    "Qwen2": Host(_BLOCK),
    "Qwen3": Host(_BLOCK | {"head_dim": 8}),
    "mamba_ssm Mamba2": Host(
        {"ssm_cfg": {"layer": "Mamba2"}, "d_intermediate": 24},
        "a stand-in: the package needs CUDA",
    ),
    "mamba_ssm Mamba": Host(
        {"ssm_cfg": {"layer": "Mamba1"}},
        "a stand-in; multiplies with the weight of in_proj, which stays dense",
    ),
}


def make_dense(name: str, seed: int = _SEED) -> nn.Module:
    """The host with random weights, in eval mode."""
    torch.manual_seed(seed)
    config = HOSTS[name].config
    if name.startswith("mamba_ssm"):
        model = stand_in.MambaLMHeadModel(stand_in.MambaConfig(**config))
        nn.init.normal_(model.lm_head.weight, std=0.2)
    elif name == "Llamba":
        model = LlambaForCausalLM(LlambaConfig(**config | _TOKENS))
    else:
        config = getattr(transformers, f"{name}Config")(**config | _TOKENS)
        model = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def make_spiking(name: str) -> nn.Module:
    """The host with calibrated coders at every site."""
    return copy.deepcopy(_spiking(name, torch.get_default_dtype()))


@cache
def _spiking(name: str, _dtype: torch.dtype) -> nn.Module:
    model = make_dense(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "these experts stay dense")
        spikify(model)
    calibrate(model, [tokens(rows=8, length=32)])
    return model


def tokens(rows: int = 2, length: int = 12, seed: int = _SEED + 1) -> dict[str, Tensor]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    }
