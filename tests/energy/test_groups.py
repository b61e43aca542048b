"""Which group a row belongs to."""

import pytest
from spikingjelly.activation_based import neuron
from torch import nn

from mar_snn.energy.groups import group_of
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.lif_coder import LIFCoder

LINEAR = nn.Linear(1, 1)
CONTAINER = nn.Sequential(LINEAR)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("lm_head", "lm_head"),
        ("backbone.layers.0.mixer.in_proj", "mixer.in_proj"),
        ("backbone.layers.12.mixer.out_proj", "mixer.out_proj"),
        ("backbone.layers.3.mixer.conv1d", "mixer.conv1d"),
        ("backbone.layers.3.mixer.activation", "mixer.conv1d"),
        ("backbone.layers.3.mixer.scan", "mixer.scan"),
        ("backbone.layers.3.mixer", "mixer.gate"),
        ("backbone.layers.3.mlp.gate_proj", "ffn"),
        ("backbone.layers.3.mlp.up_proj", "ffn"),
        ("backbone.layers.3.mlp.down_proj", "ffn"),
        ("backbone.layers.3.mlp.act_fn", "ffn"),
        ("backbone.layers.3.mlp", "ffn"),
        ("backbone.layers.3.input_layernorm", "norm"),
        ("backbone.layers.3.post_attention_layernorm", "norm"),
        ("backbone.final_layernorm", "norm"),
        ("backbone.layers.3", "residual"),
        # the backbone alone, and a model inside another
        ("layers.0.mixer.in_proj", "mixer.in_proj"),
        ("base_model.model.lm_head", "lm_head"),
        # transformers' names
        ("model.layers.3.self_attn", "attention"),
        ("model.layers.3.self_attn.q_proj", "attention"),
        ("model.rotary_emb", "attention"),
        ("model.norm", "norm"),
        ("backbone.norm_f", "norm"),
        ("backbone.layers.3.norm", "norm"),
        ("backbone.layers.3.mixer.norm", "mixer.gate"),
        ("backbone.layers.3.mixer.x_proj", "mixer.x_proj"),
        # names that only resemble them
        ("model.layers.3.self_attn.rotary", "Linear"),
        ("features.norm", "Linear"),
        ("my_lm_head", "Linear"),
        ("features.0", "Linear"),
        ("mixer_in_proj", "Linear"),
    ],
)
def test_names_of_llamba_have_groups_and_others_their_class(name, group):
    assert group_of(name, LINEAR) == group


@pytest.mark.parametrize("name", ["", "backbone.layers.0.mixer.in_neuron", "lm_head"])
@pytest.mark.parametrize(
    "module",
    [neuron.LIFNode(), ATMNNode(), ATMNCoder(1), LIFCoder(1)],
    ids=lambda m: type(m).__name__,
)
def test_neurons_are_one_group_wherever_they_stand(name, module):
    assert group_of(name, module) == "neuron"


def test_every_table_of_embeddings_is_an_embedding():
    assert group_of("backbone.embedding", nn.Embedding(2, 1)) == "embedding"
    assert group_of("wte", nn.Embedding(2, 1)) == "embedding"


def test_the_forward_of_a_whole_model_is_other_and_a_single_layer_is_itself():
    assert group_of("", CONTAINER) == "other"
    assert group_of("", LINEAR) == "Linear"
    assert group_of("layer1.0", CONTAINER) == "Sequential"


@pytest.mark.parametrize(
    ("cls", "group"), [("MambaMixer", "mixer.scan"), ("Mamba2", "mixer")]
)
def test_a_block_that_writes_out_its_scan_is_grouped_by_its_class(cls, group):
    block = type(cls, (nn.Linear,), {})(1, 1)
    assert group_of("backbone.layers.0.mixer", block) == group
