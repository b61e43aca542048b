"""Declared spikes: who hears them, and when."""

import pytest
import torch
from torch import nn

from mar_snn.neurons import (
    ATMNCoder,
    ATMNNode,
    SpikeEvent,
    listen_to_spikes,
    record_spikes,
)
from mar_snn.neurons.spikes import declare_spikes, is_listening


def test_a_listener_hears_what_was_fired_until_its_block_ends():
    neuron, spikes = nn.Identity(), torch.tensor([[1.0, -1.0]])
    heard: list[SpikeEvent] = []
    with listen_to_spikes(heard.append):
        assert is_listening()
        declare_spikes(neuron, spikes, spikes)
    assert not is_listening()
    declare_spikes(neuron, spikes, spikes)
    assert heard == [(neuron, spikes, spikes)]


def test_two_listeners_both_hear_and_leave_in_any_order():
    first: list[SpikeEvent] = []
    second: list[SpikeEvent] = []
    one, two = listen_to_spikes(first.append), listen_to_spikes(second.append)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    declare_spikes(nn.Identity(), torch.zeros(1, 1), torch.zeros(1))
    two.__exit__(None, None, None)
    assert (len(first), len(second)) == (0, 1)
    assert not is_listening()


def test_an_error_inside_the_block_ends_the_listening():
    with pytest.raises(RuntimeError), listen_to_spikes(print):
        raise RuntimeError
    assert not is_listening()


def test_the_spikes_of_every_neuron_are_recorded_in_order_of_firing():
    coder, node = ATMNCoder(3, time_steps=2), ATMNNode(step_mode="s")
    x = torch.tensor([[0.7, -1.3, 0.0]], requires_grad=True)
    recorded = record_spikes(nn.Sequential(coder, node), x)
    assert list(recorded) == [coder, node]
    assert recorded[coder].equal(coder.encode(x))
    assert recorded[node].shape == (1, 1, 3)
    assert not recorded[node].requires_grad


def test_of_a_neuron_that_is_called_twice_the_last_call_is_recorded():
    coder = ATMNCoder(1, time_steps=1)
    recorded = record_spikes(
        nn.Sequential(coder, nn.Flatten(), coder), torch.ones(1, 1)
    )
    assert recorded[coder].equal(coder.encode(coder(torch.ones(1, 1))))


def test_the_coder_declares_its_spikes_and_its_value():
    heard, coder = [], ATMNCoder(7, v_threshold=0.5)
    x = torch.randn(5, 7, requires_grad=True)
    with listen_to_spikes(heard.append):
        decoded = coder(x)
    assert len(heard) == 1
    assert heard[0].neuron is coder
    assert heard[0].output is decoded
    assert torch.equal(heard[0].spike_seq, coder.encode(x))
    assert not heard[0].spike_seq.requires_grad


def test_a_coder_builds_its_spikes_only_while_somebody_listens(monkeypatch):
    built = []
    spikes_of = ATMNCoder._spikes_of

    def watch(coder, x):
        built.append(x)
        return spikes_of(coder, x)

    monkeypatch.setattr(ATMNCoder, "_spikes_of", watch)
    coder = ATMNCoder(3)
    coder(torch.ones(3))
    assert built == []
    with listen_to_spikes(lambda event: None):
        coder(torch.ones(3))
    assert len(built) == 1
