"""Tools of SpikingJelly that lose the sign: found in a network, and said aloud."""

import re

import pytest
import torch
from spikingjelly.activation_based import layer, memopt, neuron
from spikingjelly.activation_based.ann2snn.modules import VoltageHook, VoltageScaler
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from mar_snn.neurons import ATMNNode, replace_neurons
from mar_snn.neurons.interop import (
    TernarySpikeCompressor,
    binary_tools,
    warn_about_binary_tools,
)

BINARY_COMPRESSORS = [
    memopt.BooleanSpikeCompressor,
    memopt.Uint8SpikeCompressor,
    memopt.BitSpikeCompressor,
    memopt.SparseSpikeCompressor,
]


def atmn(**settings):
    return ATMNNode(tau=2.0, step_mode="m", **settings)


def test_a_tool_for_counts_is_found():
    net = nn.Sequential(atmn(), layer.SpikeCountToBinary(num_slots=1))
    (sentence,) = binary_tools(net)
    assert sentence.startswith("SpikeCountToBinary makes no event of a spike of -1")
    assert "as_binary_planes" in sentence
    assert sentence.endswith("(at '1')")
    assert net.eval()(-torch.full((1, 1, 1), 5.0)).tolist() == [[[0.0]]]


@pytest.mark.parametrize("kind", BINARY_COMPRESSORS)
def test_a_binary_compressor_is_found(kind):
    net = nn.ModuleDict({"conv": memopt.checkpoint_module(nn.Linear(2, 2))})
    assert binary_tools(net) == []
    net["conv"] = memopt.checkpoint_module(nn.Linear(2, 2), compressor=kind())
    (sentence,) = binary_tools(net)
    assert sentence.startswith(f"{kind.__name__} does not give a spike of -1 back")
    assert "compressor=TernarySpikeCompressor()" in sentence
    assert sentence.endswith("(at 'conv')")


def test_our_compressor_is_no_binary_tool():
    wrapped = memopt.checkpoint_module(
        nn.Linear(2, 2), compressor=TernarySpikeCompressor()
    )
    assert binary_tools(wrapped) == []


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        ("AND", "the connection AND multiplies spikes, so that -1 and -1 make +1"),
        ("IAND", "the connection IAND is x * (1 - y), so that y = -1 doubles x"),
    ],
)
def test_a_connection_that_multiplies_is_found_in_every_block(connection, sentence):
    net = sew_resnet.sew_resnet18(
        cnf=connection, spiking_neuron=neuron.LIFNode, v_reset=None
    )
    with pytest.warns(UserWarning, match=re.escape(sentence)) as caught:
        assert replace_neurons(net) == 17 + 3
    assert len(caught) == 1
    assert str(caught[0].message).endswith(
        "build the model with cnf='ADD' "
        "(at 'layer1.0', 'layer1.1', 'layer2.0' and 5 more)"
    )


def test_what_is_said_of_the_connections_is_so():
    minus, plus = torch.tensor(-1.0), torch.tensor(1.0)
    assert sew_resnet.sew_function(minus, minus, "AND") == 1.0
    assert sew_resnet.sew_function(plus, minus, "IAND") == 2.0


def test_a_sum_is_no_binary_tool():
    net = sew_resnet.sew_resnet18(
        cnf="ADD", spiking_neuron=neuron.LIFNode, v_reset=None
    )
    assert replace_neurons(net) == 20


def converted():
    """A ReLU as ann2snn converts it: scaled, integrated, scaled back."""
    net = nn.Sequential(
        VoltageScaler(1.0, step_mode="m"),
        neuron.IFNode(v_reset=None, step_mode="m"),
        VoltageScaler(1.0, step_mode="m"),
    )
    return nn.Sequential(net)


def test_a_converted_network_is_found_because_its_relu_would_pass_on_negatives():
    net, x_seq = converted(), torch.full((4, 1, 1), -0.5)
    assert net(x_seq).sum() == 0.0
    with pytest.warns(
        UserWarning, match=r"VoltageScaler comes from ann2snn.*\(at '0.0', '0.2'\)"
    ):
        replace_neurons(net)
    assert net(x_seq).sum() == -2.0


@pytest.mark.parametrize(
    "pool", [nn.MaxPool1d(2), nn.AdaptiveMaxPool1d(1), layer.MaxPool2d(2)], ids=str
)
@pytest.mark.parametrize("fire", [neuron.TernaryIFNode(), neuron.TernaryLIFNode()])
def test_a_max_pool_right_behind_a_ternary_neuron_is_found(pool, fire):
    (sentence,) = binary_tools(nn.Sequential(nn.Identity(), fire, pool))
    name = type(pool).__name__
    assert sentence.startswith(f"{name} behind a ternary neuron passes a -1 on only")
    assert sentence.endswith(f"or use {name.replace('Max', 'Avg')} (at '2')")


def test_a_max_pool_hides_a_negative_spike_behind_a_silent_neighbour():
    spikes = torch.tensor([[-1.0, 0.0, -1.0, -1.0]])
    assert nn.MaxPool1d(2)(spikes).tolist() == [[0.0, -1.0]]


def test_a_max_pool_is_found_across_containers_and_once():
    pool = nn.MaxPool1d(2)
    net = nn.Sequential(
        nn.Sequential(nn.Identity(), atmn()),
        layer.SeqToANNContainer(pool),
        nn.Sequential(atmn(), nn.Sequential(pool)),
    )
    net.register_module("spare", None)
    (sentence,) = binary_tools(nn.ModuleList([net]))
    assert sentence.endswith("(at '0.1.0', '0.2.1.0')")


def test_a_max_pool_of_currents_or_binary_spikes_does_no_harm():
    assert binary_tools(nn.Sequential(nn.MaxPool1d(2), atmn())) == []
    assert binary_tools(nn.Sequential(atmn(), nn.AvgPool1d(2))) == []
    assert binary_tools(nn.Sequential(neuron.LIFNode(), nn.MaxPool1d(2))) == []
    # the order of a ModuleList is not that of its execution
    assert binary_tools(nn.ModuleList([atmn(), nn.MaxPool1d(2)])) == []


def test_each_kind_is_warned_of_once_and_returned():
    expand = [layer.SpikeCountToBinary(num_slots=2) for _ in range(4)]
    net = nn.Sequential(*expand, atmn(), nn.MaxPool1d(2))
    with pytest.warns(UserWarning, match="a spike of -1|passes a -1") as caught:
        sentences = warn_about_binary_tools(net)
    assert [str(warning.message) for warning in caught] == sentences
    pooled, counted = sentences
    assert counted.endswith("(at '0', '1', '2' and 1 more)")
    assert pooled.endswith("(at '5')")


def test_a_tool_that_is_the_net_itself_is_called_the_root():
    (sentence,) = binary_tools(layer.SpikeCountToBinary(num_slots=2))
    assert sentence.endswith("(at the root)")


def test_a_net_without_such_tools_is_silent():
    net = nn.Sequential(
        layer.Conv2d(1, 2, 3), VoltageHook(), atmn(), layer.AvgPool2d(2)
    )
    assert warn_about_binary_tools(net) == []
