"""Rows of several documents give what the documents give one by one."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mar_snn.llamba import LlambaCache, LlambaForCausalLM
from mar_snn.llamba.modeling_llamba import CausalConv1d
from mar_snn.llamba.scan import (
    CPU_CHUNK,
    LlambaScan,
    ssd_chunked,
    ssd_matrix,
    ssd_sequential,
)
from mar_snn.spiking import SpikingConfig, spikify
from tests.bounds import assert_as_exact

Q = CPU_CHUNK
#: Documents of one token, shorter than the convolution, of chunks, across chunks.
LENGTHS = [
    (1,),
    (1, 1, 1, 1, 1),
    (2, 1, 3, 4, 5),
    (Q, Q, 1),
    (Q - 1, 1, Q + 1, 2 * Q, 3),
    (3 * Q + 5, 2, Q),
]


def numbered(lengths: tuple[int, ...]) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]


def documents(tensor: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tensor.split(lengths, dim=1)


# ---- the scan


def problem(length: int, batch: int = 1) -> dict[str, Tensor]:
    shape = (batch, length)
    tensors = {
        "x": torch.randn(*shape, 4, 3),
        "b": torch.randn(*shape, 2, 5),
        "c": torch.randn(*shape, 2, 5),
        "log_decay": -torch.rand(*shape, 4) * 2,
        "state": torch.randn(batch, 4, 3, 5),
    }
    return {k: t.double().requires_grad_() for k, t in tensors.items()}


def one_by_one(p: dict[str, Tensor], lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The definition: the recurrence of each document, only the first with a state."""
    parts = zip(
        *(documents(p[k], lengths) for k in ("x", "b", "c", "log_decay")), strict=True
    )
    outputs, state = [], p["state"]
    for part in parts:
        y, last = ssd_sequential(*part, state)
        outputs.append(y)
        state = None
    return torch.cat(outputs, dim=1), last


def test_the_recurrence_starts_from_zero_by_hand():
    # S1 = 2·3 = 6, y1 = 6;  a new document: S2 = 0·6 + 1·1, y2 = 1·2
    y, state = ssd_sequential(
        x=torch.tensor([2.0, 1.0]).view(1, 2, 1, 1),
        b=torch.tensor([3.0, 1.0]).view(1, 2, 1, 1),
        c=torch.tensor([1.0, 2.0]).view(1, 2, 1, 1),
        log_decay=torch.tensor([0.9, 0.5]).log().view(1, 2, 1),
        seq_idx=torch.tensor([[4, 7]]),
    )
    torch.testing.assert_close(y.flatten(), torch.tensor([6.0, 2.0]))
    torch.testing.assert_close(state.flatten(), torch.tensor([1.0]))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("chunk_size", [1, 7, Q, None])
def test_every_form_and_every_gradient_is_that_of_the_documents(lengths, chunk_size):
    p = problem(sum(lengths))
    if chunk_size is None:
        result = ssd_sequential(**p, seq_idx=numbered(lengths))
    else:
        result = ssd_chunked(**p, seq_idx=numbered(lengths), chunk_size=chunk_size)
    gradients = []
    for y, state in (one_by_one(p, lengths), result):
        loss = (y * y.detach().cos()).sum() + (state * state.detach().sin()).sum()
        gradients.append(torch.autograd.grad(loss, tuple(p.values())))
    torch.testing.assert_close(result, one_by_one(p, lengths), rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_matrix_is_block_diagonal(lengths):
    p = problem(sum(lengths))
    expected, _ = one_by_one(p | {"state": torch.zeros_like(p["state"])}, lengths)
    m = ssd_matrix(*list(p.values())[:4], seq_idx=numbered(lengths))
    y = (m @ p["x"].transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)


def test_the_rows_of_a_batch_have_their_own_documents():
    p = problem(75, batch=2)
    rows = [(40, 35), (1, 33, 41)]
    seq_idx = torch.cat([numbered(lengths) for lengths in rows])
    y, state = ssd_chunked(**p, seq_idx=seq_idx)
    for i, lengths in enumerate(rows):
        alone = one_by_one({k: t[i : i + 1] for k, t in p.items()}, lengths)
        torch.testing.assert_close((y[i : i + 1], state[i : i + 1]), alone)


def test_a_decay_to_nothing_makes_no_nan_of_the_next_document():
    # exp(-1e4) is zero; its running sum must not meet another minus infinity
    p = problem(2 * Q)
    with torch.no_grad():
        p["log_decay"][:, Q // 2 :] = -1e4
    for scan in (ssd_sequential, ssd_chunked):
        y, state = scan(**p, seq_idx=numbered((Q - 3, 7, Q - 4)))
        (y.sum() + state.sum()).backward()
        assert y.isfinite().all()
        assert all(t.grad.isfinite().all() for t in p.values())


def test_no_tokens_have_no_documents():
    p = problem(0)
    seq_idx = torch.zeros(1, 0, dtype=torch.long)
    for scan in (ssd_sequential, ssd_chunked):
        assert scan(**p, seq_idx=seq_idx)[1].equal(p["state"])


def test_the_scan_module_hands_the_documents_on():
    p, lengths = problem(50), (30, 20)
    a_log, d = torch.randn(1, 50, 4).double(), torch.randn(4).double()
    seq_idx = numbered(lengths)
    y, _ = LlambaScan()(p["x"], p["b"], p["c"], a_log, d, seq_idx=seq_idx)
    log_decay = torch.sigmoid(-a_log).log()
    expected, _ = ssd_sequential(
        p["x"], p["b"], p["c"], log_decay, seq_idx=numbered(lengths)
    )
    torch.testing.assert_close(y, expected + d[:, None] * p["x"])


# ---- the convolution


def test_a_convolution_of_two_documents_by_hand():
    conv = CausalConv1d(1, 3, bias=True)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([100.0, 10.0, 1.0])
        conv.bias[:] = 0.5
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)
    y, state = conv(x, seq_idx=torch.tensor([[0, 0, 0, 1]]))
    assert y.flatten().tolist() == [1.5, 12.5, 123.5, 4.5]
    # of the last two inputs, the first is another document's
    assert state.flatten().tolist() == [0.0, 4.0]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_is_that_of_the_documents_with_every_gradient(lengths, bias):
    conv = CausalConv1d(3, 4, bias=bias).double()
    x = torch.randn(1, sum(lengths), 3).double().requires_grad_()
    before = torch.randn(1, 3, 3).double().requires_grad_()
    parts, state = [], before
    for part in documents(x, lengths):
        y, last = conv(part, state)
        parts.append(y)
        state = None
    expected = torch.cat(parts, dim=1), last
    result = conv(x, before, numbered(lengths))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    gradients = []
    for y, last in (expected, result):
        loss = y.sin().sum() + last.cos().sum()
        wanted = (x, before, *conv.parameters())
        gradients.append(torch.autograd.grad(loss, wanted))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def test_a_sixteen_bit_convolution_stays_in_its_dtype():
    conv = CausalConv1d(3, 4, bias=True)
    y, state = conv(torch.randn(1, 9, 3).bfloat16(), seq_idx=numbered((4, 5)))
    assert y.dtype == state.dtype == torch.bfloat16


# ---- the model


def loss_of(logits: Tensor) -> Tensor:
    """A sum whose gradient differs from logit to logit."""
    return (logits * logits.detach().cos()).sum()


def gradients(model: LlambaForCausalLM, logits: list[Tensor]) -> list[Tensor]:
    model.zero_grad()
    sum(loss_of(part) for part in logits).backward()
    return [p.grad.clone() for p in model.parameters()]


def alone(model: LlambaForCausalLM, ids: Tensor, lengths: tuple[int, ...]):
    """Logits of each document by itself, and every gradient."""
    logits = [model(part, use_cache=False).logits for part in documents(ids, lengths)]
    return torch.cat(logits, dim=1), *gradients(model, logits)


def packed(model: LlambaForCausalLM, ids: Tensor, lengths: tuple[int, ...]):
    """The same of all documents in one row."""
    logits = model(ids, seq_idx=numbered(lengths), use_cache=False).logits
    return logits, *gradients(model, [logits])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_packed_row_is_its_documents_with_every_gradient(model, lengths):
    ids = torch.randint(1, 48, (1, sum(lengths)))
    exact, found = alone(model, ids, lengths), packed(model, ids, lengths)
    for result, wanted in zip(found, exact, strict=True):
        bound = 1e-10 * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(result, wanted, rtol=0, atol=bound)
    model.float()
    assert_as_exact(packed(model, ids, lengths), alone(model, ids, lengths), exact)


def test_without_boundaries_a_row_of_several_documents_is_another(model):
    ids = torch.randint(1, 48, (1, 10))
    packed = model(ids, seq_idx=numbered((5, 5))).logits
    joined = model(ids).logits
    torch.testing.assert_close(packed[:, :5], joined[:, :5])
    assert (packed - joined)[:, 5:].abs().min() > 0


def test_the_numbers_of_the_documents_do_not_matter_only_their_changes(model):
    ids = torch.randint(1, 48, (1, 9))
    plain = model(ids, seq_idx=numbered((2, 3, 4))).logits
    # the third document has the number of the first
    odd = torch.tensor([[7, 7, -1, -1, -1, 7, 7, 7, 7]], dtype=torch.int32)
    assert model(ids, seq_idx=odd).logits.equal(plain)
    whole = model(ids, seq_idx=torch.full((1, 9), 3)).logits
    torch.testing.assert_close(whole, model(ids).logits, rtol=0, atol=1e-12)


def test_spiking_models_keep_documents_apart_too(model):
    spikify(model, SpikingConfig())
    ids, lengths = torch.randint(1, 48, (1, 40)), (3, 36, 1)
    alone = [model(part, use_cache=False).logits for part in documents(ids, lengths)]
    packed = model(ids, seq_idx=numbered(lengths), use_cache=False).logits
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("pad_number", [0, 9])
def test_left_padding_before_packed_documents_changes_nothing(model, pad_number):
    ids, lengths = torch.randint(1, 48, (1, 45)), (2, 43)
    expected = model(ids, seq_idx=numbered(lengths), use_cache=False).logits
    pads = torch.zeros(1, 5, dtype=torch.long)
    mask = torch.cat([pads, torch.ones_like(ids)], dim=1)
    logits = model(
        torch.cat([pads, ids], dim=1),
        attention_mask=mask,
        seq_idx=torch.cat([pads + pad_number, numbered(lengths)], dim=1),
        use_cache=False,
    ).logits
    torch.testing.assert_close(logits[:, 5:], expected, rtol=0, atol=1e-10)


def test_gradient_checkpointing_keeps_documents_apart(model):
    ids, seq_idx = torch.randint(1, 48, (2, 40)), numbered((7, 33)).expand(2, -1)
    plain = gradients(model, [model(ids, seq_idx=seq_idx, use_cache=False).logits])
    # its name up to transformers 5.22 and after
    old = model.gradient_checkpointing_enable
    enable = getattr(model, "activation_checkpointing_enable", old)
    enable({"use_reentrant": False})
    model.train()
    checkpointed = gradients(
        model, [model(ids, seq_idx=seq_idx, use_cache=False).logits]
    )
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("last", [1, 2, 3, 4, 40])
def test_the_cache_is_that_of_the_last_document(model, last):
    ids, more = torch.randint(1, 48, (1, 33 + last)), torch.randint(1, 48, (1, 5))
    caches = [LlambaCache(2), LlambaCache(2)]
    model(ids, seq_idx=numbered((33, last)), past_key_values=caches[0])
    model(ids[:, 33:], past_key_values=caches[1])
    packed, alone = (model(more, past_key_values=cache).logits for cache in caches)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-10)


def test_the_loss_of_a_packed_row_is_the_mean_over_the_documents_tokens(model):
    # what pack() writes: no label for the first token of a document
    ids, lengths = torch.randint(1, 48, (1, 12)), (5, 1, 6)
    labels = ids.clone()
    for start, _ in pairwise((0, 5, 6, 12)):
        labels[:, start] = -100
    packed = model(ids, seq_idx=numbered(lengths), labels=labels).loss
    parts = [part for part in documents(ids, lengths) if part.shape[1] > 1]
    alone = [model(part, labels=part).loss * (part.shape[1] - 1) for part in parts]
    torch.testing.assert_close(packed, sum(alone) / (4 + 5))


@pytest.mark.parametrize("shape", [(1, 9), (2, 10), (10,)])
def test_numbers_that_do_not_fit_the_tokens_are_refused(model, shape):
    ids = torch.randint(1, 48, (1, 10))
    with pytest.raises(ValueError, match="seq_idx must have one number for each"):
        model(ids, seq_idx=torch.zeros(shape, dtype=torch.long))


def test_documents_behind_a_cache_that_holds_tokens_are_refused(model):
    ids = torch.randint(1, 48, (1, 10))
    cache = LlambaCache(2)
    model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match="seq_idx cannot go with a cache that holds"):
        model(ids, past_key_values=cache, seq_idx=numbered((10,)))
    with pytest.raises(ValueError, match="seq_idx cannot go with a cache that holds"):
        model.generate(ids, seq_idx=numbered((4, 6)), max_new_tokens=3)
