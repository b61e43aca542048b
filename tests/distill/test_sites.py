import pytest
import torch
from torch import nn
from transformers import NemotronHConfig, NemotronHForCausalLM

from mar_snn.distill.sites import FiringRates, SiteWarmup, SpikeStatistics
from mar_snn.neurons import ATMNCoder, LIFCoder
from mar_snn.neurons.spikes import listen_to_spikes
from mar_snn.spiking import coders, spikify

IDS = torch.tensor([[1, 2, 3, 4]])


class Block(nn.Module):
    """Two coders of two channels, one after the other, as a model names them."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Module()
        for slot in ("in_neuron", "out_neuron"):
            coder = ATMNCoder(2, time_steps=2, tau=0.5, fire_ratio=1.0)
            setattr(self.mixer, slot, coder)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer.out_neuron(self.mixer.in_neuron(x))


def read(statistics: SpikeStatistics) -> dict[str, float]:
    pairs = statistics.read(lambda t: t)
    return {name: (total / count).item() for name, (total, count) in pairs.items()}


def test_sites_are_those_of_the_plan_whatever_the_module_is_called():
    # NemotronH calls its feed-forwards mixers too
    config = NemotronHConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        layers_block_type=["mamba", "mlp", "attention"],
        mamba_num_heads=2,
        mamba_head_dim=4,
        ssm_state_size=4,
        n_groups=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        chunk_size=4,
    )
    model = spikify(NemotronHForCausalLM(config))
    statistics = SpikeStatistics(model)
    with torch.no_grad(), listen_to_spikes(statistics):
        model(IDS)
    sites = {name for name in read(statistics) if name.startswith("threshold/")}
    assert sites == {
        f"threshold/{site}" for site in ("mixer.in", "mixer.out", "mlp.in", "mlp.out")
    }


@pytest.mark.usefixtures("float64")
def test_statistics_are_those_worked_out_by_hand():
    """Threshold 1, two steps of 1 and 1/2: 1.5 is ++, 1 is +0, 0.6 is 0+, 0.2 is 00."""
    block = Block()
    block.mixer.out_neuron.neuron.a.data.fill_(torch.log(torch.tensor(8.0)))
    statistics = SpikeStatistics(block)
    with listen_to_spikes(statistics):
        block(torch.tensor([[1.5, 0.2], [1.5, 0.2]]))
        block(torch.tensor([[-1.5, 1.0], [1.5, 0.6]]))
    found = read(statistics)
    assert found == pytest.approx(
        {
            # 8 of channel 0 and 2 of channel 1, of 4 values, 2 steps and 2 channels
            "firing_rate/mixer.in": 10 / 16,
            "firing_rate/mixer.out": 0.0,
            "firing_rate": 10 / 32,
            "threshold/mixer.in": 1.0,
            "threshold/mixer.out": 8.0,
            "dead/mixer.in": 0.0,
            "dead/mixer.out": 1.0,
            "saturated/mixer.in": 0.5,
            "saturated/mixer.out": 0.0,
        }
    )
    assert read(statistics) == {}


def test_statistics_of_two_processes_are_added_channel_by_channel():
    """A channel that is silent here and fires there is not dead."""
    block = Block()
    statistics = SpikeStatistics(block)
    with listen_to_spikes(statistics):
        block(torch.tensor([[1.5, 0.0]]))
    elsewhere = iter([torch.tensor([0.0, 2.0, 2.0])] * 2)  # two spikes, two chances
    pairs = statistics.read(lambda t: t + next(elsewhere))
    figures = {name: (total / count).item() for name, (total, count) in pairs.items()}
    assert figures["dead/mixer.in"] == 0.0
    assert figures["saturated/mixer.in"] == 0.0
    assert figures["firing_rate/mixer.in"] == 4 / 8


def test_nodes_that_are_no_coders_of_the_model_are_not_counted():
    statistics, other = SpikeStatistics(Block()), Block()
    with listen_to_spikes(statistics):
        other(torch.ones(1, 2))
    assert read(statistics) == {}


def silent_coders(model: nn.Module) -> list[bool]:
    """Whether each coder of a model hands on its input, in a pass over IDS."""
    silent: list[bool] = []
    hooks = [
        coder.register_forward_hook(lambda _, args, y: silent.append(y.equal(args[0])))
        for _, coder in coders(model)
    ]
    model(IDS)
    for hook in hooks:
        hook.remove()
    return silent


def test_sites_start_to_spike_one_after_the_other(student):
    """Eight coders over three steps: 2, 4, 6, and from step 3 on all of them."""
    student.train()
    warmup = SiteWarmup(student, 3)
    with torch.no_grad(), warmup.attached():
        for step, spiking in enumerate((2, 4, 6, 8, 8)):
            warmup.at(step)
            assert warmup.share == spiking / 8
            assert silent_coders(student) == [i >= spiking for i in range(8)]


def test_a_site_that_is_held_back_has_thresholds_without_gradient(student):
    student.train()
    warmup = SiteWarmup(student, 7)
    with warmup.attached():
        student(IDS).logits.square().sum().backward()
    first, *others = (coder for _, coder in coders(student))
    assert first.neuron.a.grad.abs().sum() > 0
    # zero and not None, for which DistributedDataParallel would wait
    assert all(coder.neuron.a.grad.abs().sum() == 0 for coder in others)


def test_all_sites_spike_in_evaluation_and_after_the_block(student):
    warmup = SiteWarmup(student, 5)
    with torch.no_grad():
        expected = student.eval()(IDS).logits
        with warmup.attached():
            assert student(IDS).logits.equal(expected)
            held_back = student.train()(IDS).logits
        assert not held_back.equal(expected)
        assert student(IDS).logits.equal(expected)


def test_without_steps_nothing_is_held_back(student):
    warmup = SiteWarmup(student, 0)
    assert warmup.share == 1.0
    with torch.no_grad(), warmup.attached():
        assert student.train()(IDS).logits.equal(student.eval()(IDS).logits)


@pytest.mark.usefixtures("float64")
def test_rates_are_those_of_the_declared_spikes(student):
    rates, declared = FiringRates(student), []
    with rates.attached(), listen_to_spikes(declared.append):
        student.train()(IDS)
    distances = rates.distances(0.25)
    assert len(distances) == len(declared) == 8
    for distance, event in zip(distances, declared, strict=True):
        expected = (event.spike_seq.abs().mean((0, -1)) - 0.25).square()
        torch.testing.assert_close(distance, expected)
    rates.clear()
    assert rates.distances(0.25) == []


@pytest.mark.parametrize(("target", "falls"), [(0.0, True), (1.0, False)])
def test_rates_can_be_drawn_down_and_up(student, target, falls):
    student.train()
    rates = FiringRates(student)
    optimizer = torch.optim.SGD([c.neuron.a for _, c in coders(student)], lr=1.0)
    means = []
    with rates.attached():
        for _ in range(10):
            rates.clear()
            student(IDS)
            distances = torch.stack(rates.distances(target))
            means.append(torch.stack(rates.distances(0.0)).sqrt().mean().item())
            optimizer.zero_grad()
            distances.sum().backward()
            optimizer.step()
    assert (means[-1] < means[0]) == falls
    assert abs(means[-1] - means[0]) > 0.01


def test_evaluation_takes_no_rates(student):
    rates = FiringRates(student)
    with rates.attached():
        student.eval()(IDS)
    assert rates.distances(0.1) == []


def test_fixed_thresholds_have_no_rate_to_draw():
    block = Block()
    block.mixer.in_neuron = LIFCoder(2)
    with pytest.raises(ValueError, match=r"of mixer\.in_neuron, a LIFCoder, are fixed"):
        FiringRates(block)
    statistics = SpikeStatistics(block)
    with listen_to_spikes(statistics):
        block(torch.ones(1, 2))
    assert read(statistics)["threshold/mixer.in"] == 1.0
