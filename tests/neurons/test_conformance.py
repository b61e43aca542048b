"""What SpikingJelly's tools and training loops may expect of any neuron.

Every test runs over SpikingJelly's own neurons as well as over ours, so that the tests
are known to ask for what SpikingJelly does and not for what we happen to do.
"""

import copy
import inspect
import io

import pytest
import torch
from spikingjelly.activation_based import base, functional, monitor, neuron, surrogate
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.neurons.conformance import (
    CHANNELS,
    NODES,
    assert_same,
    everything,
    expect_shortcomings,
    run,
    some_input,
)


@pytest.fixture(params=NODES)
def make(request):
    """One of the node classes."""
    expect_shortcomings(request, request.param)
    return NODES[request.param]


@pytest.fixture(params=["s", "m"])
def step_mode(request):
    return request.param


def other_surrogate(make):
    """A surrogate that is nobody's default; ILIF takes one kind only."""
    if make is neuron.ILIFNode:
        return surrogate.MultiLevelSpikeCount(4, grad_window=(0.5, 1.5))
    return surrogate.ATan(alpha=5.0)


def test_it_is_a_base_node_whose_arguments_have_defaults_and_names(make):
    settings = {
        "v_threshold": 0.75,
        "surrogate_function": other_surrogate(make),
        "detach_reset": True,
        "step_mode": "m",
        "store_v_seq": True,
    }
    # the models of the zoo copy their keyword arguments for each layer
    node = make(**copy.deepcopy(settings))
    assert isinstance(node, neuron.BaseNode)
    assert node.supported_step_mode() == ("s", "m")
    parameters = inspect.signature(type(node)).parameters.values()
    assert all(parameter.default is not parameter.empty for parameter in parameters)
    v_threshold = torch.as_tensor(node.v_threshold).detach()
    torch.testing.assert_close(v_threshold, torch.full(v_threshold.shape, 0.75))
    assert repr(node.surrogate_function) == repr(settings["surrogate_function"])
    assert (node.detach_reset, node.step_mode, node.store_v_seq) == (True, "m", True)


def test_an_unknown_step_mode_is_a_value_error(make):
    with pytest.raises(ValueError, match="step_mode"):
        make(step_mode="x")
    node = make()
    with pytest.raises(ValueError, match="step_mode"):
        node.step_mode = "x"
    assert node.step_mode == "s"


def test_a_whole_number_is_no_switch(make):
    with pytest.raises((AssertionError, TypeError, ValueError)):
        make(detach_reset=1)


def test_the_state_is_a_float_until_a_step_and_after_a_reset(make, step_mode):
    net = nn.Sequential(make(step_mode=step_mode))
    for batch in (3, 2, 7):
        x_seq = some_input(4, batch, CHANNELS)
        assert base.extract_memories(net) == [0.0]
        from_rest = run(net[0], x_seq)
        assert net[0].v.shape == (batch, CHANNELS)
        functional.reset_net(net)
        assert torch.equal(run(net[0], x_seq), from_rest)
        # a batch of another size starts at rest, too
        assert torch.equal(run(net[0], x_seq[:, :1]), from_rest[:, :1])
        functional.reset_net(net)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("time_steps", [1, 6])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_single_steps_are_one_multi_step_call(make, detach_reset, time_steps):
    x_seq, v = some_input(time_steps, 3, CHANNELS), torch.rand(3, CHANNELS)
    single = make(detach_reset=detach_reset)
    many = make(detach_reset=detach_reset, step_mode="m")
    assert_same(everything(many, x_seq, v=v), everything(single, x_seq, v=v))


@pytest.mark.usefixtures("float64")
def test_a_sequence_in_two_chunks_is_the_whole(make):
    node = make(step_mode="m")
    x_seq, v = some_input(7, 3, CHANNELS), torch.rand(3, CHANNELS)

    def in_two(node, x_seq):
        return torch.cat([node(x_seq[:3]), node(x_seq[3:])])

    chunked = everything(node, x_seq, call=in_two, v=v)
    assert_same(chunked, everything(node, x_seq, v=v))


def test_an_empty_batch_stays_empty(make):
    x_seq = torch.zeros(4, 0, CHANNELS)
    for step_mode in ("s", "m"):
        results = everything(make(step_mode=step_mode), x_seq)
        assert results[0].shape == results[2].shape == x_seq.shape
        assert results[1].shape == (0, CHANNELS)
        assert all(gradient.count_nonzero() == 0 for gradient in results[3:])


def test_the_membranes_of_all_steps_are_kept_on_request(make, step_mode):
    x_seq = some_input(4, 3, CHANNELS)
    node = make(step_mode=step_mode, store_v_seq=True)
    spike_seq = run(node, x_seq)
    assert node.v_seq.shape == x_seq.shape
    assert torch.equal(node.v_seq[-1], node.v)
    forgetful = make(step_mode=step_mode)
    for x, spike, v in zip(x_seq, spike_seq, node.v_seq, strict=True):
        assert torch.equal(run(forgetful, x.unsqueeze(0))[0], spike)
        assert torch.equal(forgetful.v, v)
        assert forgetful.v_seq is None
    node.reset()
    assert node.v_seq is None
    run(node, x_seq)
    node.store_v_seq = False
    assert node.v_seq is None


@pytest.mark.usefixtures("float64")
def test_a_detached_reset_takes_the_surrogate_out_of_the_membrane(make):
    x_seq = some_input(5, 3, CHANNELS)

    def outputs_and_slope(**settings):
        x = x_seq.clone().requires_grad_()
        node = make(step_mode="m", **settings)
        return node(x), torch.autograd.grad(node.v.sum(), x)[0]

    other = {"surrogate_function": other_surrogate(make)}
    spike_seq, slope = outputs_and_slope()
    assert not torch.allclose(outputs_and_slope(**other)[1], slope, atol=1e-3)
    detached = outputs_and_slope(detach_reset=True)
    assert_same(outputs_and_slope(detach_reset=True, **other), detached)
    assert torch.equal(detached[0], spike_seq)
    assert detached[1].count_nonzero() > 0


def test_without_spiking_the_node_is_smooth(make):
    smooth = surrogate.ATan(spiking=False)
    node = make(surrogate_function=smooth, step_mode="m").double()
    parameters = dict(node.named_parameters())

    def outputs_and_membrane(x_seq, *values):
        node.reset()
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(node, named, (x_seq,)), node.v

    x_seq = some_input(3, 2, CHANNELS, dtype=torch.float64).requires_grad_()
    leaves = (x_seq, *parameters.values())
    assert (outputs_and_membrane(*leaves)[0] % 1.0).count_nonzero() > 0
    assert torch.autograd.gradcheck(outputs_and_membrane, leaves)


@pytest.mark.usefixtures("float64")
def test_evaluation_and_inference_are_training(make, step_mode):
    x_seq = some_input(4, 3, CHANNELS)
    node = make(step_mode=step_mode)
    trained = everything(node.train(), x_seq)
    assert_same(everything(node.eval(), x_seq), trained)
    for without_gradients in (torch.no_grad, torch.inference_mode):
        node.reset()
        with without_gradients():
            assert torch.equal(run(node, x_seq), trained[0])
            torch.testing.assert_close(node.v, trained[1])
    assert_same(everything(node, x_seq), trained)


@pytest.mark.usefixtures("float64")
def test_gradients_do_not_depend_on_which_are_asked_for(make):
    node = make(step_mode="m")
    x_seq = some_input(5, 3, CHANNELS)
    _, _, of_x, *of_parameters = everything(node, x_seq)

    def only_parameters(node, x_seq):
        return node(x_seq.detach()) + 0.0 * x_seq

    alone = everything(node, x_seq, call=only_parameters)[3:]
    torch.testing.assert_close(list(alone), of_parameters)
    node.requires_grad_(False)
    node.reset()
    x_seq.requires_grad_()
    spike_seq = node(x_seq)
    # each output by itself, the spikes with a gradient that is not contiguous
    weights = torch.linspace(-1.0, 1.0, x_seq.numel()).view(x_seq.shape).mT
    (of_spikes,) = torch.autograd.grad(spike_seq.mT, x_seq, weights, retain_graph=True)
    (of_membrane,) = torch.autograd.grad(node.v.square().sum(), x_seq)
    torch.testing.assert_close(of_spikes + of_membrane, of_x)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_outputs_and_gradients_have_the_dtype_of_the_input(make, dtype, step_mode):
    node = make(step_mode=step_mode).to(dtype)
    x_seq = some_input(4, 3, CHANNELS, dtype=dtype)
    spike_seq, v, *gradients = everything(node, x_seq)
    assert spike_seq.dtype == dtype
    assert v.is_floating_point()
    for gradient, leaf in zip(gradients, [x_seq, *node.parameters()], strict=True):
        assert gradient.dtype == leaf.dtype
        assert gradient.isfinite().all()
    exact = everything(node.double(), x_seq.double())[0]
    # a membrane that stands at a threshold may round to its other side
    assert (spike_seq != exact).double().mean() < 0.05


LAYOUTS = {
    "channels last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
    "time innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "transposed": lambda x: x.transpose(-1, -2),
    "sliced": lambda x: x[1:, :, :, ::2],
    "one image for all steps": lambda x: x[:1].expand(5, -1, -1, -1, -1),
    "one value for a channel": lambda x: x[..., :1, :1].expand_as(x),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_gives_what_a_contiguous_copy_gives(make, step_mode, layout):
    node = make(step_mode=step_mode)
    images = some_input(4, 2, CHANNELS, 3, 3)
    assert not layout(images).is_contiguous()

    def of_view(node, images):
        return run(node, layout(images))

    def of_copy(node, images):
        return run(node, layout(images).contiguous())

    expected = everything(node, images, call=of_copy)
    assert_same(everything(node, images, call=of_view), expected)


def test_a_copy_and_a_pickle_go_on_alone_from_where_they_are(make):
    node = make(step_mode="m")
    x_seq = some_input(5, 3, CHANNELS)
    with torch.no_grad():
        node(x_seq)
        file = io.BytesIO()
        torch.save(node, file)
        file.seek(0)
        twins = copy.deepcopy(node), torch.load(file, weights_only=False)
        membrane, following = node.v.clone(), node(x_seq)
        for twin in twins:
            assert torch.equal(twin.v, membrane)
            assert torch.equal(twin(x_seq), following)
            for parameter in twin.parameters():
                parameter += 1.0
    untouched = make().state_dict()
    for name, value in node.state_dict().items():
        assert torch.equal(value, untouched[name])


@pytest.mark.usefixtures("float64")
def test_a_state_dict_holds_the_parameters_and_no_membrane(make):
    node, other = make(step_mode="m"), make(step_mode="m")
    with torch.no_grad():
        for parameter in node.parameters():
            parameter.add_(torch.rand_like(parameter))
    x_seq = some_input(5, 3, CHANNELS)
    expected = everything(node, x_seq)
    assert list(node.state_dict()) == [name for name, _ in node.named_parameters()]
    other.load_state_dict(node.state_dict(), strict=True)
    assert_same(everything(other, x_seq), expected)


def test_the_functional_forward_changes_neither_node_nor_state(make, step_mode):
    node = make(step_mode=step_mode)
    x = some_input(*(4, 3, CHANNELS)[step_mode == "s" :])
    v = torch.rand(3, CHANNELS)
    kept = x.clone(), v.clone()
    (spikes,), (v_next,) = node.functional_forward((x,), (v,))
    assert base.extract_memories(node) == [0.0]
    assert torch.equal(x, kept[0])
    assert torch.equal(v, kept[1])
    node.v = v
    assert torch.equal(node(x), spikes)
    assert torch.equal(node.v, v_next)


def test_a_node_and_a_net_become_functions_of_their_state(make, step_mode):
    x = some_input(*(4, 3, CHANNELS)[step_mode == "s" :])
    net = nn.Sequential(make(step_mode=step_mode), nn.Identity(), make())
    functional.set_step_mode(net, step_mode)
    for module in (net[0], net):
        call = base.to_functional_forward(module)
        resting = base.extract_memories(module)
        (spikes,), states = call((x,), tuple(resting))
        assert base.extract_memories(module) == resting
        assert torch.equal(module(x), spikes)
        assert len(states) == len(resting)
        for now, state in zip(base.extract_memories(module), states, strict=True):
            assert torch.equal(now, state)
        functional.reset_net(module)


def test_memories_are_listed_loaded_and_moved_with_the_node(make):
    node = make()
    v = torch.rand(3, CHANNELS)
    base.load_memories(node, [v])
    assert list(base.named_memories(node)) == [("v", v)]
    assert node.double().v.dtype == torch.float64
    node.reset()
    assert list(base.named_memories(node)) == [("v", 0.0)]


def test_monitors_record_outputs_membranes_and_gradients(make):
    net = nn.Sequential(make(step_mode="m", store_v_seq=True))
    kind = type(net[0])
    x_seq = some_input(4, 3, CHANNELS).requires_grad_()
    with (
        monitor.OutputMonitor(net, kind) as outputs,
        monitor.AttributeMonitor("v", False, net, kind) as membranes,
        monitor.AttributeMonitor("v_seq", False, net, kind) as all_membranes,
        monitor.GradInputMonitor(net, kind) as gradients,
    ):
        spike_seq = net(x_seq)
        spike_seq.sum().backward()
    assert torch.equal(outputs["0"][0], spike_seq)
    assert torch.equal(membranes["0"][0], net[0].v)
    assert torch.equal(all_membranes["0"][0], net[0].v_seq)
    assert torch.equal(gradients["0"][0], x_seq.grad)
    assert len(outputs.records) == len(gradients.records) == 1


def test_detach_net_cuts_the_past_off(make):
    net = nn.Sequential(make(step_mode="m", store_v_seq=True))
    past, present = (some_input(3, 2, CHANNELS).requires_grad_() for _ in range(2))
    net(past)
    functional.detach_net(net)
    assert not net[0].v.requires_grad
    assert not net[0].v_seq.requires_grad
    net(present).sum().backward()
    assert past.grad is None
    assert present.grad.count_nonzero() > 0


@pytest.mark.usefixtures("float64")
def test_gradient_checkpointing_gives_the_same_gradients(make, step_mode):
    node = make(step_mode=step_mode)
    x_seq = some_input(4, 3, CHANNELS)

    def from_rest(node, x_seq):
        node.reset()
        return run(node, x_seq)

    def checkpointed(node, x_seq):
        return checkpoint(from_rest, node, x_seq, use_reentrant=False)

    expected = everything(node, x_seq)
    assert_same(everything(node, x_seq, call=checkpointed), expected)
