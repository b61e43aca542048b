"""SpikingJelly's tools with ternary spikes: what is lost, and what is kept."""

import copy
import gc
import json
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from spikingjelly import visualizing
from spikingjelly.activation_based import (
    functional,
    layer,
    memopt,
    surrogate,
)
from spikingjelly.activation_based.distributed import vision
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from mar_snn.neurons import ATMNNode
from mar_snn.neurons.interop import (
    TernarySpikeCompressor,
    as_binary_planes,
    checkpoint_options,
    warn_about_binary_tools,
)

BINARY_COMPRESSORS = [
    memopt.BooleanSpikeCompressor,
    memopt.Uint8SpikeCompressor,
    memopt.BitSpikeCompressor,
    memopt.SparseSpikeCompressor,
]


def ternary(*shape, dtype=torch.float32):
    """Spikes of which about two thirds fire, at least one of each sign."""
    spikes = torch.randint(-1, 2, shape)
    spikes.flatten()[:2] = torch.tensor([1, -1])
    return spikes.to(dtype)


def atmn(**settings):
    return ATMNNode(tau=2.0, step_mode="m", **settings)


# ---- the compressor


def there_and_back(compressor, spikes):
    return compressor.decompress(compressor.compress(spikes))


@pytest.mark.parametrize("kind", BINARY_COMPRESSORS)
def test_spikingjellys_compressors_keep_binary_spikes_and_lose_negative_ones(kind):
    assert there_and_back(kind(), torch.tensor([1.0, 0.0])).tolist() == [1.0, 0.0]
    assert there_and_back(kind(), torch.tensor([1.0, 0.0, -1.0]))[2] != -1.0


def test_four_spikes_are_packed_into_a_byte():
    # 01, 00, 11 and 01 from the right, then a byte for the fifth
    spikes = torch.tensor([1.0, 0.0, -1.0, 1.0, -1.0])
    packed, dtype, shape = TernarySpikeCompressor().compress(spikes)
    assert packed.tolist() == [0b01_11_00_01, 0b00_00_00_11]
    assert packed.dtype == torch.uint8
    assert (dtype, shape) == (torch.float32, (5,))


def test_packed_spikes_take_a_sixteenth_of_their_bytes_in_float32():
    spikes = ternary(16, 64)
    packed, _, _ = TernarySpikeCompressor().compress(spikes)
    assert packed.numel() * 16 == spikes.numel() * spikes.element_size()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (5, 7), (2, 3, 1, 5), (0,)])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.half, torch.int8, torch.int64],
)
def test_spikes_of_every_shape_and_dtype_come_back_exactly(shape, dtype):
    spikes = torch.randint(-1, 2, shape).to(dtype)
    restored = there_and_back(TernarySpikeCompressor(), spikes)
    assert restored.dtype == dtype
    assert restored.shape == spikes.shape
    assert torch.equal(restored, spikes)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_spikes_without_a_sign_come_back_as_well(dtype):
    spikes = torch.tensor([1, 0, 1, 1, 0]).to(dtype)
    restored = there_and_back(TernarySpikeCompressor(), spikes)
    assert restored.dtype == dtype
    assert restored.float().tolist() == [1, 0, 1, 1, 0]


def test_spikes_of_any_layout_come_back_in_their_order():
    spikes = ternary(3, 4, 5, 6)
    for seen in (
        spikes.transpose(0, 2),
        spikes[:, ::2, 1:],
        spikes.to(memory_format=torch.channels_last),
        spikes[:1].expand(7, 4, 5, 6),
    ):
        assert torch.equal(there_and_back(TernarySpikeCompressor(), seen), seen)


@pytest.mark.gpu
def test_spikes_come_back_on_their_device():
    spikes = ternary(5, 7).cuda()
    packed = TernarySpikeCompressor().compress(spikes)
    assert packed[0].device == spikes.device
    assert torch.equal(TernarySpikeCompressor().decompress(packed), spikes)


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [
        (0.7, torch.float32, "0.7"),
        (-2.0, torch.bfloat16, "-2"),
        (float("nan"), torch.float32, "nan"),
        (float("inf"), torch.half, "inf"),
        (255, torch.uint8, "255"),
    ],
)
def test_other_values_are_refused_with_the_way_out(value, dtype, shown):
    with pytest.raises(ValueError, match=f"two bits, got {shown}: .*compressor=None"):
        TernarySpikeCompressor().compress(torch.tensor([0, value]).to(dtype))


class Net(nn.Module):
    """Two convolutions fed by ATMN spikes, and a read-out."""

    def __init__(self):
        super().__init__()
        self.encode = atmn(v_threshold=0.5)
        self.conv1 = layer.Conv2d(2, 3, 3, padding=1, step_mode="m")
        self.fire1 = atmn(v_threshold=0.3)
        self.conv2 = layer.Conv2d(3, 2, 3, step_mode="m")
        self.fire2 = atmn(v_threshold=0.2)
        self.read = nn.Linear(2 * 3 * 3, 4)

    def forward(self, x_seq):
        spikes = self.fire1(self.conv1(self.encode(x_seq)))
        return self.read(self.fire2(self.conv2(spikes)).flatten(2))


def outcome(net, x_seq):
    """The output and the gradient of everything, from rest."""
    functional.reset_net(net)
    net.zero_grad()
    x_seq = x_seq.clone().requires_grad_()
    out = net(x_seq)
    out.square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return out, {"x": x_seq.grad, **gradients}


def wrap(net, compressor):
    for name in ("conv1", "conv2", "read"):
        wrapped = memopt.checkpoint_module(getattr(net, name), compressor=compressor)
        setattr(net, name, wrapped)
    return net


def assert_same_outcome(net, expected_net, x_seq):
    out, gradients = outcome(net, x_seq)
    expected, expected_gradients = outcome(expected_net, x_seq)
    assert torch.equal(out, expected)
    assert expected_gradients.keys() == {
        name.replace("_checkpoint_wrapped_module.", "") for name in gradients
    }
    for name, gradient in gradients.items():
        name = name.replace("_checkpoint_wrapped_module.", "")
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, expected_gradients[name])


@pytest.mark.usefixtures("float64")
def test_a_net_of_atmn_nodes_computes_and_learns_the_same_from_compressed_spikes():
    net, x_seq = Net(), torch.randn(3, 2, 2, 5, 5)
    wrapped = wrap(copy.deepcopy(net), TernarySpikeCompressor())
    assert_same_outcome(wrapped, net, x_seq)


def test_the_spikes_themselves_are_freed_after_the_forward_pass():
    def is_kept(compressor):
        conv = layer.Conv1d(4, 1, 1, step_mode="m")
        conv = memopt.checkpoint_module(conv, compressor=compressor)
        spikes = 1.0 * ternary(4, 2, 4, 8).requires_grad_()
        alive = weakref.ref(spikes)
        out = conv(spikes)
        del spikes
        gc.collect()
        return alive() is not None and out.requires_grad

    assert is_kept(None)
    assert not is_kept(TernarySpikeCompressor())


@pytest.mark.parametrize("kind", BINARY_COMPRESSORS)
def test_with_spikingjellys_compressors_the_same_net_computes_something_else(kind):
    net, x_seq = Net(), torch.randn(3, 2, 2, 5, 5)
    wrapped = wrap(copy.deepcopy(net), kind())
    assert not torch.allclose(outcome(wrapped, x_seq)[0], outcome(net, x_seq)[0])


@pytest.mark.usefixtures("float64")
def test_optimize_memory_trusts_one_batch_and_compress_false_is_the_way_out():
    def optimized(**settings):
        functional.reset_net(net)
        optimized_net = copy.deepcopy(net)

        def probe(model):
            # currents above zero: the first neuron fires no -1
            functional.reset_net(model)
            return model(torch.rand(2, 1, 2, 5, 5))

        return memopt.optimize_memory(
            optimized_net, layer.Conv2d, probe, level=1, **settings
        )

    net, x_seq = Net(), torch.randn(3, 2, 2, 5, 5)
    fooled = optimized()
    chosen = checkpoint_options(fooled.conv1)["compressor"]
    assert isinstance(chosen, memopt.BitSpikeCompressor)
    assert not torch.allclose(outcome(fooled, x_seq)[0], outcome(net, x_seq)[0])
    with pytest.warns(UserWarning, match="BitSpikeCompressor does not give"):
        warn_about_binary_tools(fooled)
    assert_same_outcome(optimized(compress=False), net, x_seq)


# ---- two planes


def test_the_planes_are_binary_and_their_difference_is_the_spikes():
    positive, negative = as_binary_planes(torch.tensor([1.0, 0.0, -1.0]))
    assert positive.tolist() == [1.0, 0.0, 0.0]
    assert negative.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float64])
def test_the_planes_keep_dtype_and_shape(dtype):
    for plane in as_binary_planes(ternary(2, 3, 5, dtype=dtype)):
        assert (plane.dtype, plane.shape) == (dtype, (2, 3, 5))


def test_the_gradient_of_the_difference_is_that_of_the_spikes():
    spikes = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    positive, negative = as_binary_planes(spikes)
    (torch.tensor([2.0, 3.0, 5.0]) * (positive - negative)).sum().backward()
    assert spikes.grad.tolist() == [2.0, 3.0, 5.0]


@pytest.mark.parametrize("value", [0.5, 2.0, float("nan")])
def test_values_that_are_not_spikes_have_no_planes(value):
    with pytest.raises(ValueError, match="two planes of 0 and 1: pass unit"):
        as_binary_planes(torch.tensor([1.0, value]))


def test_a_tool_for_counts_takes_one_plane_after_the_other():
    spikes = ternary(4, 3, 5)
    weight = torch.randint(-9, 10, (2, 5)).float()
    expand = layer.SpikeCountToBinary(num_slots=1, always_convert=True)
    assert (expand(spikes) >= 0).all()
    positive, negative = (
        expand(plane) @ weight.T for plane in as_binary_planes(spikes)
    )
    assert torch.equal(positive - negative, spikes @ weight.T)


def test_bits_are_packed_one_plane_after_the_other():
    spikes = ternary(3, 7)
    planes = [
        functional.bit_spike_decompress(
            functional.bit_spike_compress(plane), plane.shape, plane.dtype
        )
        for plane in as_binary_planes(spikes)
    ]
    assert torch.equal(planes[0] - planes[1], spikes)


def test_spikingjellys_plot_draws_one_plane_after_the_other():
    import matplotlib.pyplot as plt

    drawn = []
    for plane in as_binary_planes(torch.tensor([[1.0, -1.0], [-1.0, 0.0]])):
        figure, ax = visualizing.plot_1d_spikes(plane, "t", "x", "y", dpi=50)
        drawn.append([line.get_positions() for line in ax.collections])
        plt.close(figure)
    assert [[list(row) for row in plane] for plane in drawn] == [[[0], []], [[1], [0]]]


# ---- configurations of distributed.vision


CONFIG = vision.NeuronConfig(
    class_path="mar_snn.neurons.atmn.ATMNNode",
    kwargs={"tau": 4.0, "v_threshold": 0.5},
    surrogate="spikingjelly.activation_based.surrogate.ATan",
    surrogate_kwargs={"alpha": 3.0},
)


def built(config):
    """The model of a configuration that was saved as JSON and read back."""
    config = type(config).from_dict(json.loads(json.dumps(config.as_dict())))
    model, *_ = config.get_builder_cls()(config).build(
        process_group=None,
        memopt_process_group=None,
        pipeline_rank=0,
        pipeline_size=1,
        pipeline_microbatches=1,
        device=torch.device("cpu"),
        micro_batch_size=1,
        memopt_level=0,
        memopt_compress_inputs=False,
        memopt_checkpoint_budget="memory",
    )
    return model


@pytest.mark.usefixtures("float64")
def test_a_model_of_the_zoo_is_built_from_a_configuration():
    model = built(sew_resnet.SEWResNet34Config(num_classes=2, neuron_config=CONFIG))
    nodes = [module for module in model.modules() if isinstance(module, ATMNNode)]
    assert len(nodes) == 36
    for node in nodes:
        assert (node.tau, node.step_mode) == (4.0, "m")
        assert node.v_threshold.item() == pytest.approx(0.5)
        assert isinstance(node.surrogate_function, surrogate.ATan)
        assert node.surrogate_function.alpha == 3.0
    assert model.eval()(torch.randn(1, 1, 3, 32, 32)).shape == (1, 1, 2)


def run(code):
    """What a fresh interpreter prints, in which a warning is an error."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_enough_to_make_the_neuron_known():
    out = run("""
        import sys
        import mar_snn.neurons
        print("matplotlib" in sys.modules, "torchvision" in sys.modules)
        from spikingjelly.activation_based.distributed.vision import NeuronConfig
        from spikingjelly.activation_based.model.spikformer import (
            SpikformerBuilder,
            SpikformerCIFAR10Config,
        )
        neuron = NeuronConfig("mar_snn.neurons.atmn.ATMNNode", {"tau": 3.0})
        builder = SpikformerBuilder(SpikformerCIFAR10Config(neuron_config=neuron))
        model = builder._build_canonical_model()
        print({node.tau for node in model.modules() if hasattr(node, "tau")})
    """)
    assert out == "False False\n{3.0}\n"
