"""Tokens a second of training: dense and spiking, eager and compiled, bfloat16."""

import copy
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from gpu.timing import peak_bytes, wall_milliseconds
from mar_snn import SpikingConfig, calibrate, spikify
from mar_snn.assets import TINY_LLAMBA
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.llamba.scan_backends import ENVIRONMENT as SCAN_BACKEND

#: the shape of SmolLM2-135M
LLAMBA_135M = LlambaConfig(
    vocab_size=49152,
    d_model=576,
    n_layer=30,
    mlp_cfg={"intermediate_size": 1536},
    ssm_cfg={"d_state": 64, "n_v_heads": 9, "n_qk_heads": 9},
)
#: rows and tokens of a step
BATCHES = {
    "cuda": {"tiny Llamba": (32, 512), "Llamba 135M": (8, 1024)},
    "cpu": {"tiny Llamba": (1, 16)},
}


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """A step is forward, backward and AdamW, with float32 parameters under autocast."""
    # fla would tune its kernels for a minute; the scans have a part of their own
    os.environ[SCAN_BACKEND] = "torch"
    models = {}
    for name in BATCHES[device.type]:
        torch.manual_seed(0)
        if name == "tiny Llamba":
            dense = AutoModelForCausalLM.from_pretrained(TINY_LLAMBA).float()
        else:
            dense = LlambaForCausalLM(LLAMBA_135M)
        dense = dense.to(device)
        spiking = spikify(copy.deepcopy(dense), SpikingConfig(time_steps=4))
        ids = torch.randint(dense.config.vocab_size, (1, 64), device=device)
        calibrate(spiking, [{"input_ids": ids}])
        models[name] = {"dense": dense, "spiking": spiking}
    # what is compiled takes longest, so it comes last
    for compiled in (False, True) if device.type == "cuda" else (False,):
        for name, (batch, length) in BATCHES[device.type].items():
            for kind, model in models[name].items():
                words = model.config.vocab_size
                ids = torch.randint(words, (batch, length), device=device)
                yield {
                    "case": "training",
                    "model": name,
                    "kind": kind,
                    "compiled": compiled,
                    "rows": batch,
                    "tokens": length,
                } | step_row(model, ids, compiled)


def step_row(model: Any, ids: torch.Tensor, compiled: bool) -> dict[str, Any]:
    """Milliseconds, tokens a second and memory of a training step."""
    torch.compiler.reset()
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=ids.is_cuda)
    run = torch.compile(model) if compiled else model
    losses = []

    def step() -> None:
        # many CPUs multiply bfloat16 a thousand times slower
        with torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    ms = wall_milliseconds(step, ids.device, 8)
    if not math.isfinite(losses[-1].item()):
        raise RuntimeError(f"training diverged: the last loss is {losses[-1].item()}")
    return {
        "ms": ms,
        "tokens_per_second": 1e3 * ids.numel() / ms,
        "peak_bytes": peak_bytes(step, ids.device),
    }
