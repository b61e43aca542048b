"""SpikingJelly's model zoo, its checkpoints and its configurations, with our node."""

import io
import json
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import (
    functional,
    layer,
    model,
    monitor,
    neuron,
    surrogate,
)
from spikingjelly.activation_based.distributed import vision
from spikingjelly.activation_based.model import (
    parametric_lif_net,
    sew_resnet,
    spikformer,
    spiking_resnet,
    spiking_vgg,
    spiking_vggws_ottt,
)
from torch import nn

import mar_snn.neurons.interop  # noqa: F401  makes the node known to configurations
from mar_snn.neurons import ATMNNode, record_spikes, replace_neurons

T = 2
IMAGES = (2, 3, 32, 32)
THREE = {"num_classes": 3}
ZOO = {
    "spiking_resnet18": partial(spiking_resnet.spiking_resnet18, **THREE),
    "sew_resnet18, ADD": partial(sew_resnet.sew_resnet18, cnf="ADD", **THREE),
    "sew_resnet18, IAND": partial(sew_resnet.sew_resnet18, cnf="IAND", **THREE),
    "sew_resnet18, AND": partial(sew_resnet.sew_resnet18, cnf="AND", **THREE),
    "spiking_vgg11_bn": partial(
        spiking_vgg.spiking_vgg11_bn, init_weights=False, **THREE
    ),
    "MNISTNet": partial(parametric_lif_net.MNISTNet, channels=8),
    "CIFAR10Net": partial(parametric_lif_net.CIFAR10Net, channels=8),
    "DVSGestureNet": partial(parametric_lif_net.DVSGestureNet, channels=8),
    "spikformer_ti": partial(
        model.spikformer_ti, T=T, img_size_h=32, img_size_w=32, **THREE
    ),
    "qkformer_10_384": partial(model.qkformer_10_384, T=T, **THREE),
    "sdt_8_384": partial(model.sdt_8_384, T=T, **THREE),
    "maxformer_cifar": partial(model.maxformer_cifar, T=T, **THREE),
    "maxformer_10_384": partial(model.maxformer_10_384, T=T, **THREE),
    "ms_resnet18": partial(model.ms_resnet18, T=T, **THREE),
    "max_resnet18": partial(model.max_resnet18, T=T, **THREE),
    "att_ms_resnet18": partial(model.att_ms_resnet18, T=T, **THREE),
    "ottt_spiking_vggws": partial(spiking_vggws_ottt.ottt_spiking_vggws, **THREE),
}
SHAPES = {"MNISTNet": (2, 1, 28, 28), "DVSGestureNet": (2, 2, 128, 128)}


def build(name):
    """A network of the zoo whose neurons are ours and fire in every layer."""
    net = ZOO[name](
        spiking_neuron=ATMNNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        v_threshold=0.25,
    )
    # online training through time goes step by step
    functional.set_step_mode(net, "s" if name.startswith("ottt") else "m")
    for module in net.modules():
        # a residual branch that starts at zero would hand no gradient on
        if isinstance(module, layer.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    return net


def run(name, net, x_seq):
    if name.startswith("ottt"):
        return torch.stack([net(x) for x in x_seq])
    return net(x_seq)


@pytest.mark.parametrize("name", ZOO)
def test_a_zoo_model_trains_every_threshold_and_resets(name):
    net = build(name)
    x_seq = 3.0 * torch.randn(T, *SHAPES.get(name, IMAGES))
    run(name, net, x_seq).square().sum().backward()
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert {type(node) for node in nodes} == {ATMNNode}
    assert len({id(node.a) for node in nodes}) == len(nodes) >= 4
    gradients = torch.cat([node.a.grad for node in nodes])
    assert gradients.isfinite().all()
    assert gradients.count_nonzero() == len(nodes)

    net.eval()
    functional.reset_net(net)
    assert [node.v for node in nodes] == [0.0] * len(nodes)
    with torch.no_grad():
        first = run(name, net, x_seq)
        assert all(node.v.any() for node in nodes)
        functional.reset_net(net)
        assert torch.equal(run(name, net, x_seq), first)


def pretrained(**settings):
    """A LIF network, fresh, with the weights of a checkpoint that was written."""
    make = partial(spiking_resnet.spiking_resnet18, **THREE, **settings)
    file = io.BytesIO()
    torch.save(make(spiking_neuron=neuron.LIFNode).state_dict(), file)
    file.seek(0)
    net = make(spiking_neuron=neuron.LIFNode)
    net.load_state_dict(torch.load(file, weights_only=True))
    functional.set_step_mode(net, "m")
    return net


def test_a_lif_checkpoint_trains_on_and_is_written_with_its_thresholds():
    net = pretrained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert replace_neurons(net, soft_reset=True) == 17
    after = net.state_dict()
    assert sum(name.endswith(".a") for name in after) == 17 == len(after) - len(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    x_seq = torch.randn(T, *IMAGES)
    net(x_seq).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())

    twin = spiking_resnet.spiking_resnet18(spiking_neuron=ATMNNode, **THREE)
    functional.set_step_mode(twin, "m")
    twin.load_state_dict(net.state_dict())
    functional.reset_net(net)
    assert torch.equal(twin.eval()(x_seq), net.eval()(x_seq))


def test_in_a_first_layer_only_what_falls_below_minus_v_differs_from_lif():
    net = pretrained(v_reset=None)
    x_seq = torch.randn(4, *IMAGES)
    with monitor.OutputMonitor(net.sn1, neuron.LIFNode) as lif:
        net(x_seq)
    replace_neurons(net)
    ours, theirs = record_spikes(net, x_seq)[net.sn1], lif.records[0]
    quiet = (ours >= 0.0).all(0)
    assert 0.5 < quiet.float().mean() < 1.0
    assert theirs[:, quiet].count_nonzero() > 0
    assert torch.equal(ours[:, quiet], theirs[:, quiet])


def test_where_nothing_falls_below_minus_v_every_layer_fires_as_lif_did():
    net = pretrained(v_reset=None).double().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, layer.Conv2d):
                # nothing is negative anywhere, and rates neither fade nor saturate
                weight = module.weight.abs_().pow_(8)
                weight.mul_(3.0 / weight.sum((1, 2, 3), keepdim=True))
        x_seq = 2.0 * torch.rand(8, 1, 3, 64, 64, dtype=torch.float64)
        with monitor.OutputMonitor(net, neuron.LIFNode) as lif:
            net(x_seq)
    replace_neurons(net)
    ternary = record_spikes(net, x_seq).values()
    for ours, theirs in zip(ternary, lif.records, strict=True):
        assert 0.2 < theirs.mean() < 0.995
        assert torch.equal(ours, theirs)


def test_a_model_configuration_names_the_node():
    config = spikformer.SpikformerCIFAR10Config(
        time_steps=T,
        num_classes=3,
        neuron_config=vision.NeuronConfig(
            "mar_snn.neurons.atmn.ATMNNode",
            {"tau": 4.0, "v_threshold": 0.5, "detach_reset": True},
            surrogate="spikingjelly.activation_based.surrogate.ATan",
            surrogate_kwargs={"alpha": 3.0},
        ),
    )
    restored = vision.ModelConfig.from_dict(json.loads(json.dumps(config.as_dict())))
    assert restored == config
    net, *_ = restored.get_builder_cls()(restored).build(
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
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert {type(node) for node in nodes} == {ATMNNode}
    for node in nodes:
        assert (node.tau, node.step_mode, node.detach_reset) == (4.0, "m", True)
        assert node.surrogate_function.alpha == 3.0
        torch.testing.assert_close(node.v_threshold, torch.tensor([0.5]))
