"""Padding, wherever it stands, changes nothing: each row is its tokens alone."""

import pytest
import torch
from torch import Tensor

from mar_snn.llamba import LlambaCache, LlambaForCausalLM
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.llamba.rows import find_padding
from mar_snn.spiking import SpikingConfig, spikify

#: Padding on the left, on the right, on both sides and in the middle twice, of every
#: other token, everywhere, everywhere but once. A chunk of the scan has 32 tokens.
ROWS = [
    [0] * 21 + [1] * 18,
    [1] * 35 + [0] * 4,
    [0] * 5 + [1] * 2 + [0] * 2 + [1] * 3 + [0] * 22 + [1] * 4 + [0],
    [1, 0] * 19 + [1],
    [0] * 39,
    [0] * 20 + [1] + [0] * 18,
]


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor(ROWS)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 48, (len(ROWS), 39))


def states(cache: LlambaCache) -> list[Tensor]:
    return [*cache.conv_states, *cache.ssm_states]


def alone(model, ids, mask) -> list[tuple[Tensor, LlambaCache]]:
    """(logits, cache) of the tokens of each row that has some, without its padding."""
    results = []
    for row, is_token in zip(ids, mask.bool(), strict=True):
        cache = LlambaCache(2)
        if is_token.any():
            results.append((model(row[None, is_token], cache=cache).logits[0], cache))
    return results


def assert_is(logits: Tensor, cache: LlambaCache, mask: Tensor, expected) -> None:
    """Logits of tokens, and what the cache holds, are those of each row alone."""
    tokens = torch.cat([logits for logits, _ in expected])
    torch.testing.assert_close(logits[mask.bool()], tokens, rtol=0, atol=1e-10)
    assert logits.isfinite().all()
    caches = iter([cache for _, cache in expected])
    for row, is_token in enumerate(mask):
        held = [state[row] for state in states(cache)]
        if not is_token.any():
            assert all(state.eq(0).all() for state in held)
            continue
        wanted = [state[0] for state in states(next(caches))]
        torch.testing.assert_close(held, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pieces", [[39], [4, 1, 1, 2, 31], [1] * 39], ids=len)
@torch.no_grad()
def test_each_row_read_in_pieces_is_its_tokens_alone(model, ids, mask, pieces):
    cache, logits, read = LlambaCache(2), [], 0
    for length in pieces:
        new = slice(read, read := read + length)
        # of all tokens read so far, or of the new ones: as it comes
        part = mask[:, new] if length == 2 else mask[:, :read]
        logits.append(model(ids[:, new], part, cache=cache).logits)
    assert_is(torch.cat(logits, 1), cache, mask, alone(model, ids, mask))
    assert cache.get_seq_length() == 39


@torch.no_grad()
def test_spiking_models_leave_padding_out_too(model, ids, mask):
    spikify(model, SpikingConfig())
    expected, cache = alone(model, ids, mask), LlambaCache(2)
    parts = zip(ids.split([30, 1, 8], 1), mask.split([30, 1, 8], 1), strict=True)
    logits = [model(part, here, cache=cache).logits for part, here in parts]
    assert_is(torch.cat(logits, 1), cache, mask, expected)


@pytest.mark.parametrize(
    "ssm", [{"bias": True, "activation": "silu"}, {"d_conv": 1}, {"conv_bias": False}]
)
@torch.no_grad()
def test_every_other_shape_of_the_mixer_leaves_padding_out(config, ids, mask, ssm):
    config.ssm_cfg |= ssm
    model = LlambaForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    expected = alone(model, ids, mask)
    cache = LlambaCache(2)
    parts = zip(ids.split([30, 1, 8], 1), mask.split([30, 1, 8], 1), strict=True)
    logits = [model(part, here, cache=cache).logits for part, here in parts]
    assert_is(torch.cat(logits, 1), cache, mask, expected)


@pytest.mark.parametrize("pieces", [[39], [4, 1, 1, 33]], ids=len)
def test_gradients_are_those_of_the_tokens_alone(model, ids, mask, pieces):
    model.train()
    cache = LlambaCache(2) if len(pieces) > 1 else None
    parts = zip(ids.split(pieces, 1), mask.split(pieces, 1), strict=True)
    logits = torch.cat(
        [model(part, here, cache=cache).logits for part, here in parts], dim=1
    )
    expected = torch.cat([logits for logits, _ in alone(model, ids, mask)])
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((result * weights).sum(), tuple(model.parameters()))
        for result in (logits[mask.bool()], expected)
    ]
    for result, wanted in zip(*gradients, strict=True):
        bound = 1e-10 * max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(result, wanted, rtol=0, atol=bound)


def test_padding_inside_and_between_packed_documents_changes_nothing(model):
    #          a document of 4 | of 2 and, with padding between, 38 | of 1, and padding
    lengths, gaps = (4, 2 + 38, 1), ((0, 3), (6, 40), (45, 5))
    ids = torch.randint(1, 48, (1, sum(lengths)))
    number = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    is_token, seq_idx = torch.ones_like(ids[0]), number
    for start, pads in reversed(gaps):
        filler = torch.zeros(pads, dtype=torch.long)
        is_token = torch.cat([is_token[:start], filler, is_token[start:]])
        # whatever number the padding has
        seq_idx = torch.cat([seq_idx[:start], filler + 7, seq_idx[start:]])
    padded = torch.randint(1, 48, (1, len(is_token)))
    padded[0, is_token.bool()] = ids[0]
    caches = LlambaCache(2), LlambaCache(2)
    expected = model(ids, seq_idx=number[None], cache=caches[0]).logits[0]
    logits = model(
        padded, is_token[None], cache=caches[1], seq_idx=seq_idx[None]
    ).logits
    torch.testing.assert_close(logits[0, is_token.bool()], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(states(caches[1]), states(caches[0]), rtol=0, atol=1e-10)


def test_gradient_checkpointing_leaves_padding_out(model, ids, mask):
    expected = torch.cat([logits for logits, _ in alone(model, ids, mask)])
    # its name up to transformers 5.22 and after
    old = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    logits = model.train()(ids, mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected, rtol=0, atol=1e-10)


# ---- generation


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 1}, {"num_beams": 2}])
def test_prompts_padded_anywhere_but_behind_are_continued_as_without(
    model, ids, mask, options
):
    rows = mask[:, -1].bool()
    ids, mask = ids[rows], mask[rows]
    options |= {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    together = model.generate(ids, attention_mask=mask, **options)
    for row, here, written in zip(ids, mask.bool(), together, strict=True):
        expected = model.generate(row[None, here], **options)
        assert written[39:].equal(expected[0, here.sum() :])


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_a_prompt_that_ends_in_padding_is_not_continued(model, ids, options):
    options |= {"max_new_tokens": 3, "do_sample": False}
    padded = ids[:2].clone()
    padded[0, -1] = 0
    model.generation_config.eos_token_id = 1  # then transformers takes 0 for padding
    for mask in ({}, {"attention_mask": padded.ne(0)}):
        with pytest.raises(ValueError, match=r"ends in padding, .* pad on the left"):
            model.generate(padded, **mask, **options)


def test_a_second_turn_may_be_padded_too(model, ids):
    """Rows that told and are told different lengths, with the cache in between."""
    turns = [[[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [[0, 0, 1], [1, 1, 1]]]
    masks = [torch.tensor(turn) for turn in turns]
    mask, cache = torch.cat(masks, dim=1), LlambaCache(2)
    with torch.no_grad():
        model(ids[:2, :5], masks[0], cache=cache)
        options = {"max_new_tokens": 4, "do_sample": False}
        said = {"attention_mask": mask, CACHE_NAME: cache}
        written = model.generate(ids[:2, :8], **said, **options)
    for row in range(2):
        here = mask[row].bool()
        expected = model.generate(ids[row : row + 1, :8][:, here], **options)
        assert written[row, 8:].equal(expected[0, here.sum() :])


# ---- masks


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16]
)
def test_a_mask_may_be_of_any_dtype(model, ids, mask, dtype):
    assert model(ids, mask.to(dtype)).logits.equal(model(ids, mask).logits)


def test_one_row_of_a_mask_is_that_of_all(model, ids, mask):
    expected = model(ids, mask[3:4].expand(len(ids), -1)).logits
    assert model(ids, mask[3:4]).logits.equal(expected)


def test_a_mask_of_ones_is_no_mask(model, ids):
    assert find_padding(torch.ones_like(ids), ids.shape, None) is None
    cache = LlambaCache(2)
    cache.seen_tokens = 9
    longer = torch.ones(len(ids), 9 + 39)
    longer[:, :9] = 0  # what was read is in the cache
    assert find_padding(longer, ids.shape, cache) is None
    assert model(ids, torch.ones_like(ids)).logits.equal(model(ids).logits)


def test_nothing_waits_for_a_device_but_a_prompt_on_its_way_into_a_cache(ids, mask):
    # what is on the meta device cannot be read
    mask = mask.to("meta")
    assert find_padding(mask, ids.shape, None).order.is_meta
    assert find_padding(mask[:, :1], ids[:, :1].shape, LlambaCache(2)).order.is_meta


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (torch.ones(6, 1, 39, 39), r"\[6, 1, 39, 39\]"),
        (torch.ones(39), r"\[39\]"),
        (torch.ones(6, 38), r"\[6, 38\]"),
        (torch.ones(6, 40), r"\[6, 40\]"),
        (torch.ones(3, 39), r"\[3, 39\]"),
        ({"full_attention": torch.ones(6, 39)}, "dict"),
    ],
)
def test_masks_of_other_shapes_are_refused(ids, given, got):
    with pytest.raises(ValueError, match=rf"in the shape of .*\(6, 39\).*got.*{got}"):
        find_padding(given, ids.shape, None)


def test_a_mask_may_be_of_the_tokens_or_of_all_read_and_of_no_other_number(model, ids):
    cache = LlambaCache(2)
    model(ids[:, :9], cache=cache)
    for columns in (2, 9, 11):
        with pytest.raises(ValueError, match="with the 9 before them that the cache"):
            model(ids[:, 9:10], torch.ones(6, columns), cache=cache)


@pytest.mark.parametrize("value", [-torch.inf, 2.0, 0.5, torch.nan])
def test_a_mask_of_other_numbers_is_refused(model, ids, value):
    mask = torch.ones(ids.shape)
    mask[0, :3] = value
    with pytest.raises(ValueError, match=r"only 1, for a token, and 0, .* seq_idx"):
        model(ids, mask)
