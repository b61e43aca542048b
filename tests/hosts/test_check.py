"""What the check after a conversion finds, and what it leaves alone."""

import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_hosts import HOSTS, make_dense, make_spiking, tokens
from torch import nn
from transformers.models.mamba2 import modeling_mamba2

from mar_snn.hosts import Plan, check, plans, register_plan
from mar_snn.hosts.check import check_coders
from mar_snn.hosts.slots import owners
from mar_snn.spiking import coders, spikify


@pytest.fixture(autouse=True)
def _same_plans(monkeypatch):
    monkeypatch.setattr(plans, "_plans", dict(plans._plans))


def largest_share(model):
    """Of the tolerance, that the readings of a model differ by."""
    return check_coders(model, dict(coders(model)))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_far_from_the_tolerance(name, dtype):
    assert largest_share(make_spiking(name).to(dtype)) < 0.2


# ---- what goes around a coder


def fused(zxbcdt, *args, outproj_weight=None, **kwargs):
    """Where transformers calls the fused kernel of mamba_ssm, as far as that goes."""
    return F.linear(zxbcdt[..., : outproj_weight.shape[1]], outproj_weight)


FUSED = {
    "Mamba": "mamba_inner_fn",
    "FalconMamba": "mamba_inner_fn",
    "Mamba2": "mamba2_split_conv1d_scan_combined",
    "Bamba": "mamba2_split_conv1d_scan_combined",
    "Zamba2": "mamba2_split_conv1d_scan_combined",
    "FalconH1": "mamba2_split_conv1d_scan_combined",
    "NemotronH": "mamba2_split_conv1d_scan_combined",
    "GraniteMoeHybrid": "mamba2_split_conv1d_scan_combined",
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.filterwarnings("ignore:these experts stay dense")
def test_the_kernel_that_multiplies_with_out_proj_is_turned_off(name, monkeypatch):
    """For the modules that spike, in training, where transformers would call it."""
    dense, called = make_dense(name).train(), []
    mixers = [o.module for o in owners(dense) if "mixer.in" in o.plan.sites]
    home = sys.modules[type(mixers[0]).__module__]
    monkeypatch.setattr(home, FUSED[name], lambda *args, **kwargs: called.append(1))
    dense(**tokens(), use_cache=False)
    assert len(called) == len(mixers)
    spiking = spikify(dense)
    spiking.train()(**tokens(), use_cache=False)
    assert len(called) == len(mixers)
    make_dense(name).train()(**tokens(), use_cache=False)
    assert len(called) == 2 * len(mixers)


def test_without_the_override_the_weight_is_missed(monkeypatch):
    monkeypatch.setattr(modeling_mamba2, "mamba2_split_conv1d_scan_combined", fused)
    path = f"{modeling_mamba2.__name__}.Mamba2Mixer"
    monkeypatch.setitem(plans._plans, path, Plan(sites=plans._MIXER))
    model = make_dense("Mamba2")
    monkeypatch.setattr("mar_snn.hosts.view._spiking_class", uncached())
    with pytest.raises(RuntimeError, match=r"Mamba2Mixer uses out_proj\.weight past"):
        spikify(model)
    assert_dense(model)


def uncached():
    from mar_snn.hosts import view

    return view._spiking_class.__wrapped__


def assert_dense(model):
    """Raise unless the model is as it was before anybody tried."""
    assert not list(coders(model))
    assert not any(hasattr(o.module, "in_neuron") for o in owners(model))
    assert all(
        type(o.module).forward.__module__.startswith("transformers")
        for o in owners(model)
    )
    assert not hasattr(model.config, "spiking")


def test_mamba_ssms_own_fused_path_is_turned_off():
    model = make_spiking("mamba_ssm Mamba2")
    mixer = model.backbone.layers[0].mixer
    assert mixer.use_mem_eff_path
    u = torch.randn(1, 3, 16)
    passed = []
    mixer.out_neuron.register_forward_hook(lambda *_: passed.append(1))
    mixer(u)
    assert passed == [1]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_coder_that_one_mode_leaves_out_is_named_and_all_is_undone(mode):
    model = make_dense("Llama")
    plain = type(model.model.layers[1].mlp)

    class Detour(plain):
        def forward(self, x):
            if self.training == (mode == "train"):
                return x
            return plain.forward(self, x)

    model.model.layers[1].mlp.__class__ = Detour
    names = "model.layers.1.mlp.in_neuron, model.layers.1.mlp.out_neuron"
    with pytest.raises(RuntimeError, match=f"no spikes from {names} in {mode} mode"):
        spikify(model)
    assert not list(coders(model))
    assert not hasattr(model.config, "spiking")


def test_a_coder_that_decoding_leaves_out_is_named():
    model = make_dense("mamba_ssm Mamba2")

    class Stepping(type(model.backbone.layers[0].mixer)):
        def step(self, hidden_states, conv_state, ssm_state):
            return hidden_states, conv_state, ssm_state

    model.backbone.layers[0].mixer.__class__ = Stepping
    with pytest.raises(RuntimeError, match=r"backbone.layers.0.* reads from a cache"):
        spikify(model)
    assert not list(coders(model))


def test_a_coder_that_decoding_calls_twice_is_named():
    model = make_dense("Llama")
    plain = type(model.model.layers[1].mlp)

    class Twice(plain):
        def forward(self, x):
            if x.shape[1] == 1:
                self.gate_proj(x.clone())
            return plain.forward(self, x)

    model.model.layers[1].mlp.__class__ = Twice
    with pytest.raises(
        RuntimeError, match=r"from model\.layers\.1\.mlp\.in_neuron while it reads"
    ):
        spikify(model)


def test_a_state_that_decoding_forgets_is_found():
    model = make_dense("Mamba2")
    plain = type(model.backbone.layers[0].mixer)

    class Forgetful(plain):
        def forward(self, hidden_states, cache=None, attention_mask=None, **kwargs):
            return plain.forward(self, hidden_states, None)

    model.backbone.layers[0].mixer.__class__ = Forgetful
    with pytest.raises(
        RuntimeError, match=r"one by one gives something else .*out_neuron by \d+"
    ):
        spikify(model)


def test_a_forward_that_was_put_on_the_module_itself_is_found():
    """As kernels of Liger do, which come after the class."""
    model = make_dense("Llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = type(mlp).forward.__get__(mlp)
    with pytest.raises(RuntimeError, match=r"layers\.0\.mlp\.in_neuron, .*train mode"):
        spikify(model)
    assert not list(coders(model))


def test_what_spiked_before_spikes_again_after_a_failure():
    model = make_spiking("Llama")
    before = dict(coders(model))
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: x
    with pytest.raises(RuntimeError, match="no spikes"):
        spikify(model)
    assert dict(coders(model)) == before


# ---- what it leaves alone


class Noisy(nn.Module):
    """Counts what it sees, and draws random numbers, as no host may."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.5)
        self.w1, self.w2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        if self.training:
            x = self.norm(x.flatten(0, 1)).view_as(x)
        return self.w2(self.dropout(self.w1(x)).relu())


def test_modes_buffers_and_random_numbers_are_as_they_were():
    model = make_dense("Llama").train()
    for layer in model.model.layers:
        layer.mlp = Noisy()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    register_plan(Noisy, Plan(sites={"mlp.in": ("w1",), "mlp.out": ("w2",)}))
    numbers = torch.get_rng_state()
    spikify(model)
    assert torch.equal(torch.get_rng_state(), numbers)
    after = {name: module.training for name, module in model.named_modules()}
    assert modes == {name: after[name] for name in modes}
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert all(torch.equal(model.get_parameter(name), w) for name, w in weights.items())
    assert not any(coder._forward_hooks for _, coder in coders(model))
    assert not any(p.grad is not None for p in model.parameters())


def checkpoint_gradients(model):
    """By the name that transformers has for it from 5.24 on, or the one before."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)()


def test_a_model_with_checkpointed_gradients_can_spike():
    model = make_dense("Bamba").train()
    checkpoint_gradients(model)
    spikify(model)
    assert model.training


def test_a_reading_is_short():
    assert check._TOKENS == 4
