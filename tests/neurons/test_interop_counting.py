"""SpikingJelly's counters with ternary spikes: a -1 costs what a +1 costs."""

import pytest
import torch
from spikingjelly.activation_based import layer, op_counter, surrogate
from torch import nn

from mar_snn.neurons import ATMNNode
from mar_snn.neurons.interop import (
    atmn_state_rules,
    ternary_energy_profiler,
    ternary_rules,
)


def ternary(*shape, dtype=torch.float32):
    """Spikes of which about two thirds fire, at least one of each sign."""
    spikes = torch.randint(-1, 2, shape)
    spikes.flatten()[:2] = torch.tensor([1, -1])
    return spikes.to(dtype)


def atmn(**settings):
    return ATMNNode(tau=2.0, step_mode="m", **settings)


# ---- operations


def count(kind, run, *, rules=True):
    """What a counter of the class `kind` counts of `run()`."""
    counter = kind(extra_rules=ternary_rules(kind()) if rules else None)
    with op_counter.DispatchCounterMode([counter]), torch.no_grad():
        run()
    return counter.get_total()


SYNOPS, ACS, MACS = op_counter.SynOpCounter, op_counter.ACCounter, op_counter.MACCounter
CONVOLUTIONS = {
    "padded": nn.Conv2d(2, 4, 3, padding=1),
    "strided": nn.Conv2d(2, 4, 3, stride=2, dilation=2, padding=2, bias=False),
    "grouped": nn.Conv2d(2, 4, 3, groups=2),
    "depthwise": nn.Conv2d(2, 2, 3, groups=2, padding=1),
    "transposed": nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed-grouped": nn.ConvTranspose2d(2, 4, 3, groups=2),
    "1d": nn.Conv1d(2, 4, 3, padding=2),
    "3d": nn.Conv3d(2, 4, 2),
}


def operations():
    """Name -> an operation of a tensor of spikes, which it takes the shape of."""
    linear, plain = nn.Linear(10, 5), nn.Linear(10, 5, bias=False)
    weight, bias = torch.randn(10, 5), torch.randn(2, 3, 5)
    rest = torch.randn(3, 10)
    cases = {
        "addmm": (linear, (3, 10)),
        "mm": (plain, (3, 10)),
        "4d": (linear, (2, 2, 3, 10)),
        "on the right": (lambda x: rest @ x, (10, 4)),
        "bmm": (lambda x: x @ weight.expand(2, 10, 5), (2, 3, 10)),
        "bmm on the right": (lambda x: rest.expand(2, 3, 10) @ x, (2, 10, 4)),
        "baddbmm": (
            lambda x: torch.baddbmm(bias, x, weight.expand(2, 10, 5)),
            (2, 3, 10),
        ),
        "alpha": (lambda x: torch.addmm(bias[0], x, weight, alpha=2), (3, 10)),
        "einsum": (lambda x: torch.einsum("bi,ij->bj", x, weight), (3, 10)),
        "attention": (lambda x: x @ x.mT, (2, 3, 4, 5)),
        "square": (lambda x: x @ x, (4, 4)),
        "addmm of spikes": (lambda x: torch.addmm(x, x, x), (4, 4)),
        "sum": (lambda x: x + x.flip(0), (3, 5)),
        "difference": (lambda x: x - x.flip(0), (3, 5)),
        "sum with currents": (lambda x: x + rest, (3, 10)),
        "sum with a number": (lambda x: x + 0.5, (3, 10)),
    }
    for name, conv in CONVOLUTIONS.items():
        axes = conv.weight.ndim - 2
        cases[f"conv {name}"] = (conv, (2, 2, *(5, 6, 4)[:axes]))
    cases["conv of spikes"] = (
        lambda x: nn.functional.conv2d(x, x[:, :, :2, :2]),
        (2, 3, 5, 5),
    )
    return cases


OPERATIONS = operations()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", [SYNOPS, ACS, MACS], ids=lambda kind: kind.__name__)
def test_a_ternary_tensor_counts_as_its_magnitude_does_in_spikingjelly(name, kind):
    operation, shape = OPERATIONS[name]
    spikes = ternary(*shape)
    if name == "conv of spikes":
        spikes.flatten()[0] = -1.0
    expected = count(kind, lambda: operation(spikes.abs()), rules=False)
    assert count(kind, lambda: operation(spikes)) == expected


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", [SYNOPS, ACS, MACS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("values", ["binary", "dense", "silent"])
def test_all_other_tensors_count_as_they_do_in_spikingjelly(name, kind, values):
    operation, shape = OPERATIONS[name]
    x = torch.randn(shape)
    if values in ("binary", "silent"):
        x = (torch.rand(shape) < (0.4 if values == "binary" else 0)).float()
    expected = count(kind, lambda: operation(x), rules=False)
    assert count(kind, lambda: operation(x)) == expected


def test_a_ternary_linear_layer_is_synaptic_operations_and_no_products():
    # SpikingJelly: nothing spikes, and 4 * 100 * 50 products
    linear, spikes = nn.Linear(100, 50), ternary(4, 100)
    fired = int(spikes.count_nonzero())
    assert (spikes < 0).any()
    assert count(SYNOPS, lambda: linear(spikes), rules=False) == 0
    assert count(MACS, lambda: linear(spikes), rules=False) == 20_000
    assert count(SYNOPS, lambda: linear(spikes)) == fired * 50
    assert count(ACS, lambda: linear(spikes)) == fired * 50
    assert count(MACS, lambda: linear(spikes)) == 0


def test_dense_inputs_stay_products():
    linear, x = nn.Linear(100, 50), torch.randn(4, 100)
    assert count(MACS, lambda: linear(x)) == 4 * 100 * 50
    assert count(SYNOPS, lambda: linear(x)) == 0


def test_spikes_scaled_by_a_threshold_are_dense():
    linear, x = nn.Linear(100, 50), 0.7 * ternary(4, 100)
    assert count(MACS, lambda: linear(x)) == 4 * 100 * 50


def test_a_convolution_is_exact_at_the_border():
    # 3 x 3 with padding 1 on 4 x 4: a corner meets four of its weights, an inner
    # neuron nine, for each of 5 output channels
    conv = nn.Conv2d(1, 5, 3, padding=1)
    corner, inner = torch.zeros(2, 1, 1, 4, 4)
    corner[0, 0, 0, 0] = inner[0, 0, 1, 1] = -1.0
    assert count(SYNOPS, lambda: conv(corner)) == 4 * 5
    assert count(SYNOPS, lambda: conv(inner)) == 9 * 5
    assert count(ACS, lambda: conv(inner)) == 9 * 5
    assert count(MACS, lambda: conv(inner)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_ternary_factors_count_the_spikes_that_meet(dtype):
    # q @ k.T = 1*1 + (-1)*1 + 0*1 = 0, yet two pairs meet
    q = torch.tensor([[1.0, -1.0, 0.0]], dtype=dtype)
    k = torch.tensor([[1.0, 1.0, 1.0]], dtype=dtype)
    for left, right in ((q, k.T), (q[None], k.T[None])):
        assert count(SYNOPS, lambda left=left, right=right: left @ right) == 2
        assert count(MACS, lambda left=left, right=right: left @ right) == 0


def test_a_16_bit_product_does_not_round_the_count():
    # 301 is no bfloat16
    q = -torch.ones(1, 301, dtype=torch.bfloat16)
    assert count(SYNOPS, lambda: q @ q.T) == 301


def test_a_sum_of_ternary_spikes_costs_what_fired():
    x, y = torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0, 0.0])
    assert count(ACS, lambda: x + y, rules=False) == 4
    assert count(ACS, lambda: x + y) == 3
    assert count(ACS, lambda: y - y) == 2
    # a current is added everywhere
    assert count(ACS, lambda: x + torch.randn(4)) == 4


def test_complex_and_integer_tensors_are_left_to_spikingjelly():
    z = torch.randn(3, dtype=torch.complex64)
    n = torch.tensor([255, 0], dtype=torch.uint8)
    assert count(ACS, lambda: z + z) == count(ACS, lambda: z + z, rules=False) == 3
    assert count(ACS, lambda: n + n) == count(ACS, lambda: n + n, rules=False) == 2


def test_rules_can_be_given_to_a_counter_that_is_there_already():
    counter, linear = SYNOPS(), nn.Linear(3, 2)
    counter.rules.update(ternary_rules(counter))
    with op_counter.DispatchCounterMode([counter]):
        linear(torch.tensor([[1.0, -1.0, 0.0]]))
    assert counter.get_total() == 4


@pytest.mark.parametrize(
    "kind", [op_counter.FlopCounter, op_counter.NeuronStateCounter]
)
def test_counters_that_know_no_spikes_are_refused(kind):
    with pytest.raises(
        ValueError, match=f"{kind.__name__} does not tell.*SynOpCounter"
    ):
        ternary_rules(kind())


# ---- energy


def energy(net, x, *, ternary_aware):
    profiler = (
        ternary_energy_profiler()
        if ternary_aware
        else op_counter.SimpleEnergyProfiler()
    )
    profiler.bind_model(net)
    with profiler, torch.no_grad():
        net(x)
    return profiler.get_report()


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(6, 3),
        layer.Linear(6, 3, bias=False, step_mode="m"),
        nn.Conv1d(5, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(5, 2, 3, padding="same"),
    ],
    ids=str,
)
def test_the_energy_of_ternary_spikes_is_that_of_their_magnitudes(net):
    spikes = ternary(4, 5, 6)
    expected = energy(net, spikes.abs(), ternary_aware=False)
    report = energy(net, spikes, ternary_aware=True)
    assert report.counts == expected.counts
    assert report.energy_total_pj == expected.energy_total_pj
    assert energy(net, spikes, ternary_aware=False).counts["mac"] > 0


def test_a_ternary_layer_is_charged_for_what_fires():
    # two spikes into 3 neurons: 6 additions of 0.9 pJ, and 6 weights of 4 bytes
    net, spikes = nn.Linear(4, 3, bias=False), torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    report = energy(net, spikes, ternary_aware=True)
    assert report.energy_mac_pj == 0.0
    assert report.energy_ac_pj == pytest.approx(6 * 0.9)
    assert report.counts["weight_read_bytes"] == 6 * 4
    assert report.energy_memory_pj == pytest.approx(24 * 24.96)


def test_inputs_given_by_name_are_seen():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return self.linear(input=x)

    spikes = torch.tensor([[1.0, -1.0, 0.0, 0.0]])
    counts = energy(ByName(), spikes, ternary_aware=True).counts
    assert counts["weight_read_bytes"] == 6 * 4


def test_the_profiler_takes_a_configuration():
    costs = op_counter.SimpleEnergyCostConfig.int8()
    config = op_counter.SimpleEnergyConfig(cost_config=costs)
    assert ternary_energy_profiler(config).config.cost_config == costs


# ---- the state of the neurons


def state_counts(node, x, *, rules):
    """What is counted of one call; the node has run before and has a membrane."""
    node(torch.zeros_like(x))
    counter = op_counter.NeuronStateCounter(extra_state_rules=rules)
    with op_counter.DispatchCounterMode([counter]), torch.no_grad():
        node(x)
    return counter.get_metric_counts()["Global"]


def test_the_state_of_a_neuron_is_counted_by_its_equations():
    # 12 neuron steps with a membrane of 4 bytes; two of three neurons always fire
    x_seq = torch.tensor([[3.0, -3.0, 0.0]] * 4)
    expected = {
        "state_reads": 48,
        "state_writes": 48,
        "state_muls": 12,
        "state_adds": 12 + 8,
        "state_comps": 24,
        "state_reset_ops": 8,
        "spike_triggered_ops": 8,
        "neuron_logical_steps": 12,
    }
    assert state_counts(atmn(), x_seq, rules=atmn_state_rules()) == expected
    assert state_counts(atmn(), x_seq, rules=None) != expected


def test_a_16_bit_input_has_a_membrane_of_four_bytes():
    x_seq = torch.ones(2, 5, dtype=torch.bfloat16)
    counts = state_counts(atmn(), x_seq, rules=atmn_state_rules())
    assert counts["state_reads"] == counts["state_writes"] == 2 * 5 * 4


def test_a_single_step_counts_as_a_sequence_of_one():
    counts = state_counts(ATMNNode(), torch.ones(2, 5), rules=atmn_state_rules())
    assert (counts["neuron_logical_steps"], counts["state_comps"]) == (10, 20)


def test_without_an_operator_the_primitives_are_counted_as_without_the_rule():
    def counts(rules):
        node = atmn(surrogate_function=surrogate.LeakyKReLU())
        return state_counts(node, torch.full((4, 3), 3.0), rules=rules)

    assert counts(atmn_state_rules()) == counts(None)
    assert counts(None)["state_comps"] > 0
