"""How much is silent: shares of inputs with a spike in a model that was calibrated."""

import statistics
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from mar_snn import SpikingConfig, calibrate, spikify
from mar_snn.assets import TINY_LLAMBA
from mar_snn.llamba import LlambaForCausalLM
from mar_snn.neurons import ATMNCoder
from mar_snn.spiking import coders

__all__ = ["calibrated_densities", "site_of"]

SOURCES = Path(__file__).parents[1] / "neurons"


@cache
def calibrated_densities(time_steps: int) -> dict[str, Any]:
    """Shares of inputs with a spike by site, in a model that reads our own sources."""
    model = LlambaForCausalLM.from_pretrained(TINY_LLAMBA, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMBA)
    seen, unseen = (
        tokenizer((SOURCES / name).read_text("utf-8"), return_tensors="pt").input_ids
        for name in ("atmn.py", "coder.py")
    )
    dense = perplexity(model, unseen)
    calibrate(
        spikify(model, SpikingConfig(time_steps=time_steps)), [{"input_ids": seen}]
    )
    shares: dict[str, list[float]] = {}

    def look(site: str, _: ATMNCoder, __: tuple[Tensor], decoded: Tensor) -> None:
        shares.setdefault(site, []).append((decoded != 0).float().mean().item())

    for name, coder in coders(model):
        coder.register_forward_hook(partial(look, site_of(name)))
    ratio = perplexity(model, unseen) / dense
    return {
        "time_steps": time_steps,
        "perplexity_ratio": ratio,
        "densities": {site: statistics.fmean(found) for site, found in shares.items()},
    }


@torch.inference_mode()
def perplexity(model: LlambaForCausalLM, ids: Tensor) -> float:
    """Of a text that is read at once."""
    return model(ids, labels=ids).loss.exp().item()


def site_of(coder: str) -> str:
    """Such as mlp.in, of the name of a coder."""
    _, owner, slot = coder.rsplit(".", 2)
    return f"{owner}.{slot.removesuffix('_neuron')}"
