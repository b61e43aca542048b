"""Modules that torch runs as one kernel cost what their operations cost."""

import pytest
import torch
from torch import nn

from mar_snn.energy import SpikeOpCounter

MODES = (torch.enable_grad, torch.no_grad, torch.inference_mode)
X = torch.linspace(-1, 1, 80).view(2, 5, 8)


def count(mode, model, *args, **kwargs):
    with mode(), SpikeOpCounter(model) as counter:
        output = model(*args, **kwargs)
    return counter, output


def test_an_encoder_layer_costs_the_same_whether_torch_fuses_it_or_not():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    counters = [count(mode, model, X)[0] for mode in MODES]
    # of 10 tokens three projections to 8, one back, two between 8 and 16; of 2 rows and
    # 2 heads 25 pairs, each with 4 products of a score and 4 of a value
    macs = 10 * (3 * 64 + 64 + 2 * 128) + 2 * 2 * 25 * 8
    for counter in counters:
        assert counter.total().mac == macs == 5920
        assert counter.rows() == counters[0].rows()
        assert counter.run().uncounted == {}


def test_counting_a_fused_layer_changes_no_result():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.inference_mode():
        alone = model(X)
    assert count(torch.inference_mode, model, X)[1].equal(alone)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch._C._get_mkldnn_enabled()


def test_attention_with_a_mask_counts_the_pairs_that_it_leaves():
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    hidden = torch.tensor([[False] * 5, [False, False, False, True, True]])
    for mode in MODES:
        how = {"key_padding_mask": hidden, "need_weights": False}
        counter, _ = count(mode, model, X, X, X, **how)
        # four projections of 10 tokens; 5 queries see 5 keys, or 3
        assert counter.total().mac == 10 * 4 * 64 + 2 * (25 + 15) * 8
        assert counter.run().uncounted == {}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_batch_is_listed_and_not_left_out_in_silence():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer).eval()
    rows = torch.nested.nested_tensor([X[0], X[1, :3]])
    counter, _ = count(torch.no_grad, model, rows)
    assert "aten._transformer_encoder_layer_fwd.default" in counter.run().uncounted


def test_recurrent_networks_cost_what_their_cells_cost():
    for cls, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        for mode in MODES:
            counter, _ = count(mode, cls(8, 4, batch_first=True), X)
            # of 10 tokens: gates of 4 units from 8 inputs and 4 states
            assert counter.total().mac == 10 * gates * 4 * (8 + 4), (cls, mode)
            assert counter.run().uncounted == {}


def test_spikes_reach_the_gates_of_an_lstm(fire):
    model = nn.Sequential(fire(), nn.LSTM(3, 4))
    spikes = torch.tensor([[[1.0, 0, -1]], [[1, 1, 0]]])
    total = count(torch.no_grad, model, spikes)[0].total()
    # 3 and 1 spikes reach 16 gates each; 4 states reach 16 gates at 2 steps
    assert (total.ac_add, total.ac_sub, total.mac) == (48, 16, 2 * 4 * 16)


def test_dropout_between_layers_draws_what_it_draws_alone():
    model = nn.LSTM(8, 4, num_layers=2, dropout=0.5)
    torch.manual_seed(0)
    alone, after = model(X)[0], torch.rand(1)
    torch.manual_seed(0)
    counter, (output, _) = count(torch.enable_grad, model, X)
    assert output.equal(alone)
    assert torch.rand(1).equal(after)
    # 10 tokens of 4 features, once
    assert counter.total().cmp == 40


def test_a_subclass_that_does_more_is_listed():
    class Doubled(nn.LSTM):
        def forward(self, x):
            return super().forward(2 * x)

    counter, _ = count(torch.no_grad, Doubled(8, 4), X)
    assert counter.run().uncounted == {"aten.mkldnn_rnn_layer.default": 1}
