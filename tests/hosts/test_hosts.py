"""spikify on the models of other packages."""

import copy
import json
import warnings

import pytest
import tiny_hosts
import torch
from tiny_hosts import HOSTS, make_dense, make_spiking, tokens
from torch import nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from mar_snn import load
from mar_snn.hosts import Plan, plans, register_plan, skipped
from mar_snn.hosts.slots import owners
from mar_snn.neurons import LIFCoder
from mar_snn.spiking import SpikingConfig, calibrate, coders, projections, spikify

FOREIGN = [name for name in HOSTS if name != "Llamba"]
LIF = {"neuron": "lif", "tau": 2.0, "readout": "sum", "fire_ratio": 1.0}
LIF["gradient"] = "surrogate"


@pytest.fixture(autouse=True)
def _same_plans(monkeypatch):
    monkeypatch.setattr(plans, "_plans", dict(plans._plans))


def fed(model):
    return {name: coder for name, _, coder in projections(model)}


def test_one_coder_feeds_the_projections_that_share_an_input():
    model = spikify(make_dense("Llama"), SpikingConfig(layers=(1,)))
    mlp = model.model.layers[1].mlp
    assert [name for name, _ in coders(model)] == [
        "model.layers.1.mlp.in_neuron",
        "model.layers.1.mlp.out_neuron",
    ]
    assert fed(model) == {
        "model.layers.1.mlp.gate_proj": mlp.in_neuron,
        "model.layers.1.mlp.up_proj": mlp.in_neuron,
        "model.layers.1.mlp.down_proj": mlp.out_neuron,
    }
    assert (mlp.in_neuron.num_channels, mlp.out_neuron.num_channels) == (16, 24)


@pytest.mark.usefixtures("float64")
def test_a_projection_reads_the_code_and_nothing_else_changes():
    model = spikify(make_dense("Llama"))
    mlp, x = model.model.layers[0].mlp, torch.randn(2, 5, 16)
    coded = mlp.in_neuron(x)
    y = mlp.act_fn(mlp.gate_proj(coded)) * mlp.up_proj(coded)
    torch.testing.assert_close(mlp(x), mlp.down_proj(mlp.out_neuron(y)))


def test_modules_whose_weights_are_tied_share_their_coders():
    model = make_spiking("Zamba2")
    one, two = (model.model.layers[i].shared_transformer.feed_forward for i in (1, 3))
    assert one is not two
    assert one.gate_up_proj.weight is two.gate_up_proj.weight
    assert (one.in_neuron, one.out_neuron) == (two.in_neuron, two.out_neuron)
    before = model(**tokens()).logits
    model.tie_weights()
    assert torch.equal(model(**tokens()).logits, before)


def test_tied_modules_spike_where_one_of_their_blocks_is_chosen(tmp_path):
    model = spikify(make_dense("Zamba2"), SpikingConfig(sites=("mlp.in",), layers=(3,)))
    name = "shared_transformer.feed_forward"
    assert [name for name, _ in coders(model)] == [f"model.layers.1.{name}.in_neuron"]
    assert [found for found, _, _ in projections(model)] == [
        f"model.layers.{i}.{name}.gate_up_proj" for i in (1, 3)
    ]
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded(**tokens()).logits, model(**tokens()).logits)
    assert len(list(coders(loaded))) == 1


def test_a_module_in_two_blocks_is_made_spiking_once_and_in_both():
    model = make_dense("Llama")
    shared = model.model.layers[1].mlp = model.model.layers[0].mlp
    (owner,) = owners(model)
    assert (owner.module, owner.layers) == (shared, {0, 1})
    spikify(model, SpikingConfig(layers=(1,)))
    assert [name for name, _ in coders(model)] == [
        "model.layers.0.mlp.in_neuron",
        "model.layers.0.mlp.out_neuron",
    ]


def test_a_module_that_says_mixer_is_known_by_its_class():
    model = make_spiking("NemotronH")
    sites = {owner.name: list(owner.plan.sites) for owner in owners(model)}
    assert sites == {
        "model.layers.0.mixer": ["mixer.in", "mixer.out"],
        "model.layers.1.mixer": ["mlp.in", "mlp.out"],
        "model.layers.3.mixer.shared_experts": ["mlp.in", "mlp.out"],
    }


@pytest.mark.parametrize("name", ["NemotronH", "GraniteMoeHybrid", "Jamba"])
def test_experts_stay_dense_and_are_named(name):
    model = make_dense(name)
    experts = skipped(model)
    assert experts
    assert all(name.endswith(".experts") for name in experts)
    with pytest.warns(UserWarning, match=f"stay dense: {', '.join(experts)}$"):
        spikify(model)
    assert not any(".experts." in name for name, _ in coders(model))


def test_experts_in_a_list_of_modules_stay_dense_too():
    model = make_dense("Llama")
    mlp = model.model.layers[0].mlp
    mlp.experts = nn.ModuleList([copy.deepcopy(mlp)])
    assert skipped(model) == ["model.layers.0.mlp.experts"]
    with pytest.warns(UserWarning, match="stay dense"):
        spikify(model)
    assert len(list(coders(model))) == 4


@pytest.mark.parametrize("name", FOREIGN)
def test_weights_and_their_keys_are_those_of_the_dense_model(name):
    dense, spiking = make_dense(name), make_spiking(name)
    before, after = dense.state_dict(), spiking.state_dict()
    assert list(before) == [key for key in after if key in before]
    assert all(torch.equal(before[key], after[key]) for key in before)
    added = {key: after[key] for key in after if key not in before}
    assert all(key.endswith("_neuron.neuron.a") for key in added)
    # a key for each place, a tensor for each coder
    places = {tensor.data_ptr() for tensor in added.values()}
    assert len(places) == len(list(coders(spiking)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_thresholds_are_float32_whatever_the_model_is(dtype):
    model = spikify(make_dense("Bamba").to(dtype))
    assert {coder.v_threshold.dtype for _, coder in coders(model)} == {torch.float32}
    model = spikify(make_dense("Bamba").to(dtype), SpikingConfig(**LIF))
    assert {coder.v_threshold.dtype for _, coder in coders(model)} == {torch.float32}


def test_new_coders_are_in_the_mode_of_their_module():
    assert not any(c.training for _, c in coders(spikify(make_dense("Llama"))))
    model = spikify(make_dense("Llama").train())
    assert all(module.training for module in model.modules())


def test_a_binary_neuron_can_stand_in_every_host():
    model = spikify(make_dense("Mamba2"), SpikingConfig(**LIF))
    assert all(isinstance(coder, LIFCoder) for _, coder in coders(model))
    calibrate(model, [tokens()])
    model(**tokens()).logits.sum().backward()


def test_spikifying_again_replaces_what_was_there():
    model = spikify(make_dense("Bamba"))
    spikify(model, SpikingConfig(sites=("mlp.out",), layers=(1,), time_steps=2))
    ((name, coder),) = coders(model)
    assert name == "model.layers.1.feed_forward.out_neuron"
    assert coder.time_steps == 2
    # where nothing spikes any more the module is what it was
    mixer, dense = model.model.layers[0].mamba, make_dense("Bamba")
    assert type(mixer) is type(dense.model.layers[0].mamba)
    assert not hasattr(mixer, "in_neuron")


@pytest.mark.parametrize("name", FOREIGN)
def test_the_config_says_what_spikes_in_words_that_json_knows(name):
    model = make_spiking(name)
    saved = json.loads(json.dumps(model.config.spiking))
    assert SpikingConfig(**saved) == SpikingConfig()


# ---- what a host does not have


def test_all_four_sites_stand_for_those_that_a_host_has():
    model = spikify(make_dense("Mamba2"))
    assert len(list(coders(model))) == 4


@pytest.mark.parametrize(
    ("name", "site", "has"),
    [
        ("Mamba2", "mlp.in", "mixer.in, mixer.out"),
        ("Llama", "mixer.in", "mlp.in, mlp.out"),
        ("mamba_ssm Mamba", "mixer.in", "mixer.out"),
    ],
)
def test_a_site_that_a_host_does_not_have_is_refused(name, site, has):
    model = make_dense(name)
    with pytest.raises(ValueError, match=f"has the sites {has}, not {site}$"):
        spikify(model, SpikingConfig(sites=(site, *has.split(", "))))
    assert not list(coders(model))


def test_blocks_without_the_site_that_was_asked_for_are_refused():
    with pytest.raises(ValueError, match=r"none of the blocks \[2\] of NemotronH"):
        spikify(make_dense("NemotronH"), SpikingConfig(layers=(2,)))


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"layers must lie in 0\.\.4 .* got \[5\]"):
        spikify(make_dense("Zamba2"), SpikingConfig(layers=(0, 5)))


class Feed(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        return self.w2(self.w1(x).relu())


PLAN = Plan(sites={"mlp.in": ("w1",), "mlp.out": ("w2",)})


@pytest.fixture
def unknown():
    model = make_dense("Llama")
    for layer in model.model.layers:
        layer.mlp = Feed()
    return model


def test_an_unknown_architecture_is_told_how_to_write_a_plan(unknown):
    with pytest.raises(ValueError, match=r"no plan .*\.register_plan\(") as error:
        spikify(unknown)
    assert f"{Feed.__module__}.Feed (w1, w2)" in str(error.value)
    assert "LlamaAttention (q_proj, k_proj, v_proj, o_proj)" in str(error.value)


def test_a_plan_makes_it_known(unknown):
    register_plan(Feed, PLAN)
    spikify(unknown)
    assert len(list(projections(unknown))) == 4


@pytest.mark.parametrize(
    ("sites", "what"),
    [
        ({"mlp.in": ("w3",)}, "model.layers.0.mlp has NoneType"),
        ({"mlp.in": ("w1", "w2")}, "model.layers.0.mlp has Linear, Linear"),
    ],
)
def test_a_plan_that_does_not_fit_its_module_is_refused(unknown, sites, what):
    register_plan(Feed, Plan(sites=sites))
    with pytest.raises(ValueError, match=f"linear projections of one width; {what}"):
        spikify(unknown)


def test_weights_that_are_not_here_are_refused():
    with torch.device("meta"):
        model = LlamaForCausalLM(make_dense("Llama").config)
    with pytest.raises(ValueError, match="without offloading"):
        spikify(model)


# ---- parts of models, and models with other heads


def test_a_backbone_and_a_classifier_can_spike():
    config = make_dense("Llama").config
    spikify(make_dense("Llama").model)
    spikify(LlamaForSequenceClassification(config))


@pytest.mark.parametrize("name", ["Mamba2", "mamba_ssm Mamba2"])
def test_a_mixer_by_itself_can_spike(name):
    mixer = make_dense(name).backbone.layers[0].mixer
    assert len(list(coders(spikify(mixer)))) == 2
    assert [name for name, _, _ in projections(mixer)] == ["in_proj", "out_proj"]


def test_a_mixer_without_a_place_in_a_cache_can_spike():
    mixer = make_dense("mamba_ssm Mamba2").backbone.layers[0].mixer
    mixer.layer_idx = None
    assert len(list(coders(spikify(mixer)))) == 2


def test_a_part_that_cannot_be_run_is_refused_and_stays_dense():
    layers = make_dense("Llama").model.layers
    with pytest.raises(ValueError, match="ModuleList takes no input_ids"):
        spikify(layers)
    assert not list(coders(layers))


class Plain(nn.Module):
    """A model that knows nothing of transformers, and has no cache."""

    def __init__(self):
        super().__init__()
        self.embedding, self.feed = nn.Embedding(8, 16), Feed()

    def forward(self, input_ids):
        return self.feed(self.embedding(input_ids))


def test_a_model_without_a_config_or_a_cache_can_spike():
    register_plan(Feed, PLAN)
    model = spikify(Plain())
    assert [name for name, _ in coders(model)] == ["feed.in_neuron", "feed.out_neuron"]
    assert not hasattr(model, "config")
    with pytest.raises(ValueError, match=r"layers must be None .* got \[0\]"):
        spikify(model, SpikingConfig(layers=(0,)))


def test_a_model_that_takes_any_argument_and_has_no_cache_can_spike():
    class Lenient(Plain):
        def forward(self, input_ids, **kwargs):
            return super().forward(input_ids)

    register_plan(Feed, PLAN)
    assert len(list(coders(spikify(Lenient())))) == 2


def test_a_projection_whose_weights_are_buffers_can_be_fed():
    class Quantized(nn.Module):
        in_features = 16

        def __init__(self):
            super().__init__()
            self.register_buffer("scales", torch.ones(24, 16))

        def forward(self, x):
            return x @ self.scales.T

    register_plan(Feed, PLAN)
    model = Plain()
    model.feed.w1 = Quantized()
    spikify(model)
    assert len(list(coders(model))) == 2


def test_no_warning_where_there_are_no_experts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spikify(make_dense("Llama"))


def test_the_tiny_hosts_are_every_class_that_has_a_plan():
    found = {
        f"{cls.__module__}.{cls.__qualname__}"
        for name in tiny_hosts.HOSTS
        for owner in owners(make_dense(name))
        for cls in [type(owner.module)]
    }
    assert set(plans._plans) - found == {"mamba_ssm.modules.mamba2_simple.Mamba2Simple"}


@pytest.mark.parametrize("name", ["Llama", "Mamba2", "NemotronH"])
def test_calibration_of_a_host_does_not_read_padding(name):
    """Whatever stands there, on either side or in a row of nothing else."""
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, :4] = mask[1, 8:] = mask[2] = 0
    found = []
    for padding in (3, 40):
        model = make_spiking(name)
        ids = tokens(rows=3)["input_ids"].where(mask != 0, padding)
        calibrate(model, [{"input_ids": ids, "attention_mask": mask}])
        found.append([coder.v_threshold for _, coder in coders(model)])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
    each_pair = torch.ones(3, 1, 12, 12)
    with pytest.raises(ValueError, match=r"one number for each token .* 12, 12\) for"):
        calibrate(make_spiking("Llama"), [{**tokens(3), "attention_mask": each_pair}])
