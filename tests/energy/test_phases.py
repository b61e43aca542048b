"""Parts of a run, and its forward passes one by one."""

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.counts import BatchCounts
from mar_snn.llamba.configuration_llamba import LlambaConfig
from mar_snn.llamba.modeling_llamba import LlambaForCausalLM


class Words(nn.Module):
    """Six tokens look up two numbers each, and a projection of two outputs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 2)
        self.head = nn.Linear(2, 2, bias=False)

    def forward(self, ids):
        return self.head(self.table(ids))


def ids(*shape):
    return torch.zeros(shape, dtype=torch.int64)


def pass_of(tokens, phase=""):
    """What one pass costs: 4 MACs a token."""
    counts = OpCounts(dense_mac=4 * tokens, mac=4 * tokens, lookup=tokens)
    return BatchCounts(ops=counts, dense_ops=counts, tokens=tokens, phase=phase)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_prefill_and_decoding_have_rows_and_batches_of_their_own(mode):
    model = Words()
    counter = SpikeOpCounter(model)
    with mode(), counter:
        with counter.phase("prefill"):
            model(ids(2, 3))
        with counter.phase("decode"):
            model(ids(2, 1))
            model(ids(2, 1))
        model(ids(1, 1))
    rows = {(row.phase, row.name): row for row in counter.rows()}
    assert [*rows] == [
        (phase, name) for phase in ("prefill", "decode", "") for name in model_names()
    ]
    # a token costs 2 · 2 products
    macs = [rows[phase, "head"].ops.mac for phase in ("prefill", "decode", "")]
    assert macs == [24, 16, 4]
    assert rows["decode", "head"].calls == 2
    assert counter.run().batches == (
        pass_of(6, "prefill"),
        pass_of(2, "decode"),
        pass_of(2, "decode"),
        pass_of(1),
    )
    assert counter.total() == OpCounts(dense_mac=44, mac=44, lookup=11)


def model_names():
    return ["table", "head"]


def test_a_phase_may_stand_around_the_block_of_the_counter():
    model = Words()
    counter = SpikeOpCounter(model)
    with counter.phase("decode"), torch.no_grad(), counter:
        model(ids(1, 1))
    assert {row.phase for row in counter.rows()} == {"decode"}


def test_a_phase_that_is_entered_again_adds_up():
    model = Words()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        for _ in range(2):
            with counter.phase("decode"):
                model(ids(1, 1))
    assert [row.ops.mac for row in counter.rows() if row.name == "head"] == [8]


def test_a_pass_belongs_to_the_phase_that_it_starts_in():
    model = Words()
    counter = SpikeOpCounter(model)
    phase = counter.phase("late")
    model.head.register_forward_pre_hook(lambda *_: phase.__enter__())
    with torch.no_grad(), counter:
        model(ids(1, 1))
    phase.__exit__(None, None, None)
    assert {row.phase for row in counter.rows()} == {""}
    assert counter.run().batches == (pass_of(1),)


def test_a_phase_inside_a_phase_is_refused_and_the_outer_one_goes_on():
    model = Words()
    with torch.no_grad(), SpikeOpCounter(model) as counter, counter.phase("prefill"):
        with (
            pytest.raises(
                RuntimeError, match=r"'decode' starts inside phase 'prefill'.*leave"
            ),
            counter.phase("decode"),
        ):
            pass
        model(ids(1, 1))
    assert counter.run().batches == (pass_of(1, "prefill"),)


def test_a_phase_needs_a_name():
    counter = SpikeOpCounter(Words())
    with (
        pytest.raises(ValueError, match=r"a phase needs a name, such as 'decode'"),
        counter.phase(""),
    ):
        pass


def test_an_exception_ends_the_phase():
    counter = SpikeOpCounter(Words())
    with pytest.raises(KeyError), counter.phase("decode"):
        raise KeyError
    with counter.phase("decode"):
        pass


def test_a_pass_that_raised_is_no_batch():
    class Fails(Words):
        def forward(self, ids):
            out = super().forward(ids)
            if len(ids) > 1:
                raise RuntimeError("too many")
            return out

    model = Fails()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        with pytest.raises(RuntimeError, match="too many"):
            model(ids(2, 1))
        model(ids(1, 1))
    assert counter.run().batches == (pass_of(1),)
    # what ran before it raised was counted
    assert counter.total().mac == 12


def test_a_part_of_the_model_called_by_itself_is_no_batch():
    model = Words()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model.head(torch.rand(3, 2))
        model(ids(1, 1))
    assert counter.run().batches == (pass_of(1),)
    assert counter.total().mac == 16


def test_a_model_inside_a_wrapper_has_its_batches_all_the_same():
    model = Words()
    wrapper = nn.Sequential(model, nn.Linear(2, 7))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        wrapper(ids(2, 1))
    assert counter.run().batches == (pass_of(2),)


def test_a_model_that_calls_itself_is_one_batch():
    class Twice(Words):
        def forward(self, ids, again=True):
            return self(ids, again=False) if again else super().forward(ids)

    model = Twice()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(ids(2, 1))
    assert counter.run().batches == (pass_of(2),)


def test_the_batches_of_a_model_that_spikes_hold_the_spikes_of_each(fire):
    model = nn.Sequential(fire(), nn.Linear(3, 2, bias=False))
    with torch.inference_mode(), SpikeOpCounter(model) as counter:
        for spikes in ([1.0, 0, 0], [1.0, -1, 0], [0.0, 0, 0]):
            model(torch.tensor([spikes]))
    expected = [
        OpCounts(dense_mac=6, ac_add=add, ac_sub=sub, sop_unit=add + sub)
        for add, sub in ((2, 0), (2, 2), (0, 0))
    ]
    assert [batch.ops for batch in counter.run().batches] == expected
    assert OpCounts.sum(expected) == counter.total()


def test_generate_is_a_prefill_and_a_batch_for_every_token_after_it():
    config = LlambaConfig(
        vocab_size=16,
        d_model=8,
        n_layer=1,
        mlp_cfg={"intermediate_size": 4, "bias": False, "act_fn": "silu"},
        ssm_cfg={"d_state": 2, "n_v_heads": 2, "n_qk_heads": 2, "d_conv": 2},
    )
    model = LlambaForCausalLM(config).eval()
    with SpikeOpCounter(model) as counter:
        model.generate(
            input_ids=ids(2, 3),
            attention_mask=torch.ones(2, 3, dtype=torch.int64),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
        )
    batches = counter.run().batches
    assert [batch.tokens for batch in batches] == [6, 2, 2, 2]
    assert OpCounts.sum(batch.ops for batch in batches) == counter.total()
