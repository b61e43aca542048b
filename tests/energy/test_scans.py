"""The scan in its two forms, and the convolution before it."""

from types import SimpleNamespace

import pytest
import torch

from mar_snn.energy import OpCounts
from mar_snn.energy.rules import registry
from mar_snn.energy.rules.registry import ModuleCall
from mar_snn.energy.rules.scan import (
    causal_products,
    chunked_scan,
    price_causal_convolution,
    price_scan,
    products_in_documents,
    recurrent_scan,
)
from mar_snn.llamba.modeling_llamba import CausalConv1d
from mar_snn.llamba.scan import CPU_CHUNK, LlambaScan, ssd_chunked
from tests.energy import brute
from tests.energy.hand_derived import Call


def counted(ops) -> OpCounts:
    return OpCounts(**{field: int(count) for field, count in ops.items()})


@pytest.mark.parametrize("tokens", [1, 4, 5, 11])
def test_both_forms_agree_with_plain_loops(tokens):
    assert counted(recurrent_scan(tokens, 3, 2)) == counted(
        brute.recurrence(tokens, 3, 2)
    )
    assert counted(chunked_scan(tokens, 3, 2, chunk_size=4)) == counted(
        brute.chunks(tokens, 3, 2, 4)
    )


def test_one_chunk_of_three_tokens_by_hand():
    # P = 2, N = 4: 6 pairs of 4 + 2 products, 3 · 8 into the state, 3 · 2 skips
    # decays: 3; running sums 2; pairs 6 add, exp, mul; to the end 3 add, exp, 3 · 2 mul
    assert counted(chunked_scan(3, 2, 4, chunk_size=8)) == OpCounts(
        dense_mac=66, mac=66, special=12, add=11, mul=12
    )


def test_a_scan_that_goes_on_reads_the_state_in_its_first_chunk_too():
    rest, goes_on = (
        counted(chunked_scan(3, 2, 4, chunk_size=8, from_rest=from_rest))
        for from_rest in (True, False)
    )
    # decay of 8 states and sum; 3 tokens read 8, scale 2, add 2; 1 + 3 exp
    assert goes_on == rest + OpCounts(
        dense_mac=24, mac=24, special=4, mul=8 + 6, add=8 + 6
    )


def test_the_products_are_those_of_the_chunked_algorithm_when_it_runs(count_model):
    """Whole chunks, all pairs, and a state that is read from the start."""
    x, log_decay = torch.rand(2, 8, 3, 2), -torch.rand(2, 8, 3)
    b, c = torch.rand(2, 8, 3, 4), torch.rand(2, 8, 3, 4)
    model = Call(lambda *args: ssd_chunked(*args, chunk_size=4)[0])
    ran = count_model(model, x, b, c, log_decay).total()
    ops = chunked_scan(8, 2, 4, chunk_size=4, from_rest=False, causal="full")
    skips = 8 * 2
    assert ran.mac == 2 * 3 * (ops["mac"] - skips)


def scan_call(length, state, **settings):
    x, b = torch.rand(2, length, 3, 2), torch.rand(2, length, 1, 4)
    args = (x, b, b, torch.rand(2, length, 3), torch.ones(3), state)
    return ModuleCall(
        LlambaScan(),
        args,
        {},
        LlambaScan()(*args),
        None,
        None,
        settings=SimpleNamespace(**settings),
        note=lambda *said: NOTES.append(said),
    )


NOTES: list[tuple[str, str]] = []


def test_the_form_is_the_setting_s_and_is_noted():
    NOTES.clear()
    length = CPU_CHUNK + 3
    recurrent = price_scan(scan_call(length, None, scan="recurrent", causal="exact"))
    chunked = price_scan(scan_call(length, None, scan="chunked", causal="exact"))
    assert [("scan", "recurrent"), ("scan", f"chunked, {CPU_CHUNK} tokens")] == NOTES
    heads = 2 * 3
    for cost, ops in (
        (recurrent, recurrent_scan(length, 2, 4)),
        (chunked, chunked_scan(length, 2, 4, chunk_size=CPU_CHUNK)),
    ):
        assert dict(cost.ops) == {field: heads * n for field, n in ops.items()}
    # 2 · 3 · 2 · 4 floats: at every token, or for each of two chunks; it starts at rest
    state = 48 * 4
    assert recurrent.moved["cache"] == (2 * length - 1) * state
    assert chunked.moved["cache"] == (2 * 2 - 1) * state
    # x and y of 12 a token, B and C of 8, A_log of 6
    assert chunked.moved["activation"] == length * (2 * 12 + 2 * 8 + 6) * 4


def test_one_token_with_a_state_reads_and_writes_it():
    call = scan_call(1, torch.rand(2, 3, 2, 4), scan="recurrent", causal="exact")
    assert price_scan(call).moved["cache"] == 2 * 48 * 4


def test_without_its_rule_the_scan_is_counted_as_it_runs(monkeypatch, count_model):
    monkeypatch.delitem(registry._module_rules, "mar_snn.llamba.scan.LlambaScan")
    call = scan_call(5, None)
    total = count_model(LlambaScan(), *call.args[:5]).total()
    # one padded chunk of Q tokens: all pairs, into the state and out of the zero state
    q = CPU_CHUNK
    assert total.mac == 2 * 3 * (q * q * (4 + 2) + 2 * q * 2 * 4)


# ---- the convolution


def test_tokens_at_the_start_see_the_taps_there_are():
    assert causal_products(5, 3) == 1 + 2 + 3 + 3 + 3
    assert causal_products(5, 3, before=2) == 15
    assert causal_products(1, 4, before=1) == 2


def products_one_by_one(rows, taps, *, before):
    """Every product of a channel, looked for."""
    found = 0
    for row in rows:
        for t, document in enumerate(row):
            for source in range(t - taps + 1, t + 1):
                if source >= 0:
                    found += row[source] == document
                else:  # the state, which only the first document goes on from
                    found += before and document == row[0]
    return found


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("taps", [1, 3, 4])
@pytest.mark.parametrize(
    "rows", [[[0, 0, 1, 1, 1, 1, 2]], [[3, 3, 3], [0, 1, 2]], [[5]], [[0, 0], [0, 1]]]
)
def test_no_token_sees_another_document(rows, taps, before):
    counted = products_in_documents(torch.tensor(rows), taps, before=before)
    assert int(counted) == products_one_by_one(rows, taps, before=before)


def test_documents_in_a_row_are_convolved_afresh():
    module, x = CausalConv1d(2, 3, bias=False), torch.rand(1, 5, 2)
    with torch.no_grad():
        output = module(x, None)
    seq_idx = torch.tensor([[0, 0, 1, 1, 1]])
    call = ModuleCall(
        module, (x,), {"seq_idx": seq_idx}, output, None, None,
        settings=SimpleNamespace(padding="exclude"),
    )  # fmt: skip
    # 1 + 2 and 1 + 2 + 3 products of two channels
    assert int(price_causal_convolution(call).ops["mac"]) == 2 * 9


@pytest.mark.parametrize(
    ("with_state", "padding", "products"),
    [(False, "exclude", 12), (True, "exclude", 15), (False, "include", 15)],
)
def test_a_causal_convolution_moves_its_last_inputs(with_state, padding, products):
    module = CausalConv1d(2, 3, bias=True)
    x = torch.rand(1, 5, 2)
    state = torch.rand(1, 2, 2) if with_state else None
    with torch.no_grad():
        output = module(x, state)
    call = ModuleCall(
        module, (x, state), {}, output, None, None,
        settings=SimpleNamespace(padding=padding),
    )  # fmt: skip
    cost = price_causal_convolution(call)
    assert cost.ops == {
        "dense_mac": 2 * products,
        "mac": 2 * products,
        "bias_add": 10,
    }
    assert cost.moved == {
        "activation": 2 * 10 * 4,
        # 2 channels of 2 inputs, written, and read where there were any
        "cache": 16 * (2 if with_state else 1),
        "weight_dense": 8 * 4,
        "weight_touched": 8 * 4,
    }
