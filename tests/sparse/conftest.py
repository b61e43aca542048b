"""A spiking Llamba that is small, and calibrated on random tokens."""

import pytest
import torch

from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.neurons import native
from mar_snn.sparse import kernels
from mar_snn.spiking import SpikingConfig, calibrate, spikify


@pytest.fixture
def dense():
    config = LlambaConfig(
        vocab_size=64,
        d_model=24,
        n_layer=2,
        mlp_cfg={"intermediate_size": 40},
        ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlambaForCausalLM(config).eval()


@pytest.fixture
def model(dense):
    spikify(dense, SpikingConfig(time_steps=2))
    calibrate(dense, [{"input_ids": torch.randint(64, (4, 20))}])
    return dense


@pytest.fixture(params=["C", "PyTorch"])
def where(request, monkeypatch):
    """The kernels in C, and what runs where there is no compiler."""
    if request.param == "C":
        if why := native.obstacle():
            pytest.skip(why)
    else:
        monkeypatch.setattr(kernels, "_library", lambda: None)
    return request.param
