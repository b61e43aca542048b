import copy
import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from mar_snn.hosts.plans import SITE_NAMES
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.neurons import ATMNCoder, LIFCoder, listen_to_spikes
from mar_snn.spiking import (
    SITES,
    SpikingConfig,
    calibrate,
    coders,
    projections,
    spikify,
)


@pytest.fixture
def model() -> LlambaForCausalLM:
    config = LlambaConfig(
        vocab_size=48,
        d_model=24,
        n_layer=3,
        mlp_cfg={"intermediate_size": 40},
        ssm_cfg={"d_state": 5, "n_v_heads": 4, "n_qk_heads": 2},
    )
    return LlambaForCausalLM(config).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(1, 48, (3, 40))}


def names(model: nn.Module) -> list[str]:
    return [name.removeprefix("backbone.layers.") for name, _ in coders(model)]


def test_all_four_sites_of_all_layers_spike_by_default(model):
    assert spikify(model) is model
    slots = ["mixer.in_neuron", "mixer.out_neuron", "mlp.in_neuron", "mlp.out_neuron"]
    assert names(model) == [f"{i}.{slot}" for i in range(3) for slot in slots]
    assert model.config.spiking == SpikingConfig()


def test_any_subset_of_sites_and_layers_can_spike(model):
    spikify(model, SpikingConfig(sites=("mlp.in", "mixer.out"), layers=(0, 2)))
    assert names(model) == [
        "0.mixer.out_neuron",
        "0.mlp.in_neuron",
        "2.mixer.out_neuron",
        "2.mlp.in_neuron",
    ]


def test_spikifying_again_replaces_what_was_there(model):
    spikify(model)
    spikify(model, SpikingConfig(sites=("mlp.in",), layers=(1,), time_steps=2))
    assert names(model) == ["1.mlp.in_neuron"]
    assert next(coders(model))[1].time_steps == 2


def test_hooks_of_a_slot_go_on_with_what_stands_in_it(model, batch):
    slot, seen = model.backbone.layers[0].mlp.in_neuron, []
    handle = slot.register_forward_hook(lambda module, *_: seen.append(type(module)))
    config = SpikingConfig(sites=("mlp.in",), time_steps=2)
    for spiking in (config, SpikingConfig(**LIF), SpikingConfig(layers=(1,))):
        spikify(model, spiking)
        seen.clear()
        model(**batch)
        assert seen == [type(model.backbone.layers[0].mlp.in_neuron)]
    handle.remove()
    model(**batch)
    assert seen == [nn.Identity]


def test_the_numbers_of_the_config_reach_the_coders(model):
    config = SpikingConfig(
        time_steps=3,
        tau=1.0,
        readout="sum",
        fire_ratio=0.5,
        gradient="surrogate",
        surrogate="Sigmoid",
        detach_reset=True,
    )
    coder = next(coders(spikify(model, config)))[1]
    assert (coder.time_steps, coder.tau, coder.fire_ratio) == (3, 1.0, 0.5)
    assert (coder.readout, coder.gradient) == ("sum", "surrogate")
    assert type(coder.neuron.surrogate_function).__name__ == "Sigmoid"
    assert coder.neuron.detach_reset


LIF = {"neuron": "lif", "tau": 2.0, "readout": "sum", "fire_ratio": 1.0}
LIF["gradient"] = "surrogate"


def test_a_binary_neuron_can_stand_in_the_slots(model, batch):
    config = SpikingConfig(**LIF, time_steps=3, surrogate="Sigmoid", detach_reset=True)
    spikify(model, config)
    assert len(names(model)) == 12
    coder = next(coders(model))[1]
    assert isinstance(coder, LIFCoder)
    assert (coder.time_steps, coder.tau) == (3, 2.0)
    assert type(coder.neuron.surrogate_function).__name__ == "Sigmoid"
    assert coder.neuron.detach_reset
    calibrate(model, [batch])
    model(**batch).logits.square().sum().backward()
    assert model.backbone.layers[0].mixer.in_proj.weight.grad.abs().max() > 0


def test_a_config_saved_before_there_was_a_choice_of_neurons_is_ternary():
    saved = asdict(SpikingConfig())
    del saved["neuron"]
    assert SpikingConfig(**saved).neuron == "atmn"


def test_calibration_finds_the_best_rate_of_a_binary_neuron(model, batch):
    spikify(model, SpikingConfig(**LIF, layers=(1,), sites=("mlp.in",)))
    (x,) = inputs_of(model, batch).values()
    calibrate(model, [batch])
    ((_, coder),) = coders(model)
    fitted = (coder(x) - x).square().flatten(0, -2).sum(0)
    full = x.abs().flatten(0, -2).amax(0)
    for share in torch.linspace(0.1, 2.0, 30):
        other = (coder.code(x, share * full) - x).square().flatten(0, -2).sum(0)
        # between two candidates there may be a slightly better one
        assert (fitted <= 1.1 * other).all()


def test_the_config_survives_json():
    config = SpikingConfig(sites=("mlp.out",), layers=(1, 2))
    assert SpikingConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sites": ("ffn",)}, "sites must be one or more of mixer.in, .* got ffn"),
        ({"sites": ()}, "sites must be one or more of .* got none"),
        ({"sites": "mlp"}, "sites must be one or more of .* got mlp$"),
        ({"surrogate": "sigmoid"}, "surrogate must name a class .* got 'sigmoid'"),
        ({"surrogate": "nn"}, "surrogate must name a class .* got 'nn'"),
        ({"surrogate": "PoissonPass"}, "fires 0 or 1, .* got 'PoissonPass'"),
        ({"time_steps": True}, "time_steps must be at least 1, got True: a whole"),
        ({"surrogate": "Atan"}, "surrogate must name a class .* got 'Atan'"),
        ({"neuron": "if"}, "neuron must be 'atmn' or 'lif', got 'if'"),
        ({"neuron": "lif"}, "needs readout='sum', .* got 'geometric', 0.6"),
        (LIF | {"tau": 0.5}, "tau must be at least 1, got 0.5"),
        ({"time_steps": 0}, "time_steps must be at least 1, got 0"),
        ({"tau": -1.0}, "tau .* -1"),
        ({"readout": "mean"}, "readout must be 'geometric' or 'sum', got 'mean'"),
    ],
)
def test_a_config_that_cannot_be_says_what_is_wrong(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        SpikingConfig(**wrong)


def test_layers_that_are_no_indices_are_refused():
    # by the shape checker, where it runs
    with pytest.raises((ValueError, TypeError), match=r"got \[0.5\]|layers"):
        SpikingConfig(layers=[0.5])


def test_one_site_and_whole_numbers_stand_for_themselves():
    config = SpikingConfig(sites="mlp.in", layers=[1], tau=1, fire_ratio=1)
    same = SpikingConfig(sites=["mlp.in"], layers=(1,), tau=1.0, fire_ratio=1.0)
    assert config.sites == ("mlp.in",)
    assert json.dumps(asdict(config)) == json.dumps(asdict(same))


def test_a_layer_that_does_not_exist_is_refused(model):
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.2 .* got \[3\]"):
        spikify(model, SpikingConfig(layers=(1, 3)))


def test_a_model_without_slots_is_refused():
    with pytest.raises(ValueError, match="no plan for a module of Linear"):
        spikify(nn.Linear(3, 3))


def test_a_code_path_that_goes_around_a_coder_is_found(model):
    class Bypass(type(model.backbone.layers[1].mlp)):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    model.backbone.layers[1].mlp.__class__ = Bypass
    with pytest.raises(RuntimeError, match=r"1\.mlp\.in_neuron.*in train mode"):
        spikify(model)


def test_spikify_leaves_the_mode_of_the_model_alone(model):
    assert not spikify(model).training
    assert spikify(model.train()).training


def inputs_of(model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    """What each coder would see if all the others handed on their input."""
    seen = {}
    hooks = [
        coder.register_forward_hook(
            lambda c, args, out, name=name: (seen.update({name: args[0]}), args[0])[1]
        )
        for name, coder in coders(model)
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_calibration_finds_the_least_squares_threshold_of_every_channel(model, batch):
    spikify(model, SpikingConfig(layers=(1,)))
    inputs = inputs_of(model, batch)
    calibrate(model, [batch], candidates=64)
    for name, coder in coders(model):
        x = inputs[name]

        def error(v_threshold, coder=coder, x=x):
            probe = copy.deepcopy(coder)
            probe.neuron.a.data.copy_(v_threshold.log())
            return (probe(x) - x).square().flatten(0, -2).sum(0)

        fitted = error(coder.neuron.v_threshold.detach())
        # the largest code of four binary digits is 1 + 1/2 + 1/4 + 1/8 thresholds
        full = x.abs().flatten(0, -2).amax(0) / 1.875
        others = [error(full * 2**k) for k in torch.linspace(-3, 1, 64)]
        # nothing tried is better, and the choice matters
        assert all((fitted <= other * 1.0001).all() for other in others)
        assert (fitted < 0.1 * torch.stack(others).amax(0)).all()


@pytest.mark.usefixtures("float64")
def test_calibration_over_two_batches_is_calibration_over_both_at_once(model, batch):
    spikify(model)
    other = copy.deepcopy(model)
    calibrate(model, [batch])
    halves = [{"input_ids": ids} for ids in batch["input_ids"].split([1, 2])]
    calibrate(other, halves)
    for (_, one), (_, two) in zip(coders(model), coders(other), strict=True):
        torch.testing.assert_close(one.neuron.a, two.neuron.a)


def test_calibration_brings_the_spiking_model_near_the_dense_one(model, batch):
    dense = model(**batch).logits
    spikify(model)
    calibrate(model, [batch])
    error = (model(**batch).logits - dense).norm() / dense.norm()
    assert error < 0.1
    assert all(c.neuron.a.requires_grad for _, c in coders(model))


def test_a_silent_channel_keeps_its_threshold(model, batch):
    with torch.no_grad():
        model.backbone.layers[0].input_layernorm.weight[4] = 0.0
    spikify(model)
    calibrate(model, [batch])
    thresholds = model.backbone.layers[0].mixer.in_neuron.neuron.v_threshold
    assert thresholds[4] == 1.0
    assert (thresholds[:4] != 1.0).all()


def test_calibration_leaves_no_hooks_and_the_mode_alone(model, batch):
    spikify(model.train())
    calibrate(model, [batch])
    assert model.training
    assert not any(coder._forward_hooks for _, coder in coders(model))


@pytest.mark.parametrize("neuron", ["atmn", "lif"])
def test_calibration_does_not_read_padding(model, batch, neuron):
    lif = {"readout": "sum", "fire_ratio": 1.0, "gradient": "surrogate", "tau": 2.0}
    spikify(model, SpikingConfig(neuron=neuron, **(lif if neuron == "lif" else {})))
    model.requires_grad_(False).double()
    calibrate(model, [batch])
    expected = [coder.v_threshold.clone() for _, coder in coders(model)]
    padding = torch.randint(1, 48, (3, 5))
    padded = {
        "input_ids": torch.cat([padding, batch["input_ids"]], 1),
        "attention_mask": (torch.arange(45) >= 5).long().expand(3, -1),
    }
    calibrate(model, [padded])
    found = [coder.v_threshold for _, coder in coders(model)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_batch_that_raises_leaves_the_model_as_it_was(model, batch, error):
    spikify(model.train())
    model.backbone.layers[1].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())

    def stop(*_):
        raise error

    handle = model.backbone.layers[2].register_forward_hook(stop)
    with pytest.raises(error):
        calibrate(model, [batch])
    handle.remove()
    assert [module.training for module in model.modules()] == modes
    assert not any(coder._forward_hooks for _, coder in coders(model))
    assert torch.is_grad_enabled()
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name])


def test_calibration_says_what_it_misses(model, batch):
    with pytest.raises(ValueError, match="has no coders to calibrate"):
        calibrate(model, [batch])
    spikify(model)
    with pytest.raises(ValueError, match="got 0 batches and candidates=32"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="got 1 batches and candidates=0"):
        calibrate(model, [batch], candidates=0)


@pytest.mark.usefixtures("float64")
def test_a_projection_of_the_decoded_value_is_the_sum_over_the_spike_planes(
    model, batch
):
    """What the energy of the spiking model rests on: W y = V-scaled sum of W s[t]."""
    spikify(model, SpikingConfig(sites=("mlp.out",), layers=(0,)))
    calibrate(model, [batch])
    mlp = model.backbone.layers[0].mlp
    coder, weight = mlp.out_neuron, mlp.down_proj.weight
    assert isinstance(coder, ATMNCoder)
    events = []
    with torch.no_grad(), listen_to_spikes(events.append):
        model(**batch)
        (event,) = events
        folded = weight * coder.neuron.v_threshold
        planes = sum(
            0.5**t * (spikes @ folded.T) for t, spikes in enumerate(event.spike_seq)
        )
        torch.testing.assert_close(event.output @ weight.T, planes)
    assert set(event.spike_seq.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_the_sites_are_the_four_of_the_paper():
    assert list(SITES) == ["mixer.in", "mixer.out", "mlp.in", "mlp.out"]
    assert tuple(SITES) == SITE_NAMES


def test_every_projection_is_listed_with_the_coder_that_feeds_it(model):
    spikify(model, SpikingConfig(layers=(1,), sites=("mlp.in", "mixer.out")))
    block = model.backbone.layers[1]
    found = list(projections(model))
    assert [name for name, _, _ in found] == [
        "backbone.layers.1.mixer.out_proj",
        "backbone.layers.1.mlp.gate_proj",
        "backbone.layers.1.mlp.up_proj",
    ]
    assert [linear for _, linear, _ in found] == [
        block.mixer.out_proj,
        block.mlp.gate_proj,
        block.mlp.up_proj,
    ]
    shared = block.mlp.in_neuron
    assert [coder for _, _, coder in found] == [block.mixer.out_neuron, shared, shared]


def test_projections_may_be_replaced_while_they_are_listed(model):
    spikify(model)
    for name, _, _ in projections(model):
        model.set_submodule(name, nn.Identity())
    assert isinstance(model.backbone.layers[2].mlp.up_proj, nn.Identity)
    assert not list(projections(model))


def test_a_dense_model_has_no_projections_to_list(model):
    assert not list(projections(model))
