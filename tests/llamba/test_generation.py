"""Decoding: every way of it gives what the full pass gives, in constant memory."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from mar_snn.llamba import LlambaCache, LlambaForCausalLM
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.spiking import SpikingConfig, spikify
from tests.seed import SEED


def states(cache: LlambaCache) -> list[Tensor]:
    return [*cache.conv_states, *cache.ssm_states]


def read(model: LlambaForCausalLM, ids: Tensor) -> LlambaCache:
    """The cache behind some tokens."""
    cache = LlambaCache(2)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache


def write(model: LlambaForCausalLM, ids: Tensor, tokens: int, **options) -> Tensor:
    """Exactly so many tokens behind `ids`, greedily if nothing else is asked for."""
    lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return model.generate(ids, **lengths, **{"do_sample": False} | options)


# ---- equal to the full pass


@pytest.mark.parametrize("options", [{}, {"top_k": 7, "temperature": 2.0}])
@pytest.mark.parametrize("beams", [1, 3])
def test_samples_are_those_without_a_cache(model, ids, options, beams):
    options = options | {"do_sample": True, "num_beams": beams}
    written = []
    for use_cache in (True, False):
        torch.manual_seed(SEED)
        written.append(write(model, ids[:, :9], 12, use_cache=use_cache, **options))
    assert written[0].equal(written[1])
    torch.manual_seed(SEED + 1)
    assert not write(model, ids[:, :9], 12, **options).equal(written[0])


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
def test_prompts_of_many_lengths_give_in_a_batch_what_they_give_alone(
    model, ids, spiking, beams
):
    if spiking:
        spikify(model, SpikingConfig())
    prompts = [ids[0, :1], ids[0, :40], ids[1, :33], ids[1, 5:8]]
    batch = torch.zeros(4, 40, dtype=torch.long)
    mask = torch.zeros_like(batch)
    for row, prompt in enumerate(prompts):
        batch[row, 40 - len(prompt) :] = prompt
        mask[row, 40 - len(prompt) :] = 1
    together = write(model, batch, 8, attention_mask=mask, num_beams=beams)
    for row, prompt in enumerate(prompts):
        alone = write(model, prompt[None], 8, num_beams=beams)
        assert together[row, 40:].equal(alone[0, len(prompt) :])


def test_a_conversation_goes_on_from_the_cache_that_generate_returns(model, ids):
    told, cache = ids[:1, :7], None
    for turn in (ids[:1, 7:20], ids[:1, 20:21], ids[:1, 21:60]):
        said = torch.cat([told, turn], dim=1)
        output = write(
            model, said, 5, return_dict_in_generate=True, **{CACHE_NAME: cache}
        )
        assert output.sequences.equal(write(model, said, 5))
        told, cache = output.sequences, output[CACHE_NAME]
        # the last token has been written and not read
        assert cache.get_seq_length() == told.shape[1] - 1


def test_a_copied_cache_forks_a_conversation(model, ids):
    cache = read(model, ids[:1, :19])
    fork = copy.deepcopy(cache)
    for branch, one in ((ids[:1, 20:25], cache), (ids[:1, 30:38], fork)):
        said = torch.cat([ids[:1, :19], branch], dim=1)
        assert write(model, said, 6, **{CACHE_NAME: one}).equal(write(model, said, 6))


def test_a_prompt_in_chunks_is_the_prompt(model, ids):
    expected = write(model, ids, 5)
    for size in (1, 10, 64, 500):
        assert write(model, ids, 5, prefill_chunk_size=size).equal(expected)
    cache = {CACHE_NAME: read(model, ids[:, :30])}
    assert write(model, ids, 5, prefill_chunk_size=7, **cache).equal(expected)


# ---- memory


def live_bytes() -> int:
    """Bytes of all tensors that Python can see."""
    gc.collect()
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        # not those of other kinds, which have no memory and which tests leave behind
        if type(one) in (Tensor, nn.Parameter)
    }
    return sum(storages.values())


@pytest.mark.slow
def test_4096_tokens_later_not_one_byte_more_is_held(model, ids):
    model.float()
    cache, held, kept = LlambaCache(2), [], []
    token = ids[:1, :1]
    with torch.no_grad():
        for step in range(4096):
            logits = model(token, past_key_values=cache).logits
            token = logits[:, -1:].argmax(-1)
            if step in (2, 4095):
                held.append(live_bytes())
                storages = [state.untyped_storage() for state in states(cache)]
                kept.append(sum(storage.nbytes() for storage in storages))
    assert cache.get_seq_length() == 4096
    assert held[0] == held[1]
    assert kept[0] == kept[1]
    # two layers in float32: 44 channels of at most 4 inputs, 4 · 6 · 5 numbers of state
    assert kept[0] <= 2 * 4 * (44 * 4 + 4 * 6 * 5)


def test_a_long_prompt_leaves_nothing_but_the_states_behind(model, ids):
    cache = read(model, ids.repeat(1, 20))
    for state in states(cache):
        assert state.untyped_storage().nbytes() == state.nbytes


def test_states_keep_their_addresses_from_step_to_step(model, ids):
    with torch.no_grad():
        cache = read(model, ids[:, :30])
        addresses = [state.data_ptr() for state in states(cache)]
        for t in range(30, 40):
            model(ids[:, t : t + 1], past_key_values=cache)
            assert [state.data_ptr() for state in states(cache)] == addresses
        model(ids[:, 40:], past_key_values=cache)
        assert [state.data_ptr() for state in states(cache)] == addresses
        expected = states(read(model, ids))
    torch.testing.assert_close(states(cache), expected, rtol=0, atol=1e-10)


def test_gradients_flow_through_a_cache_that_goes_on(model, ids):
    cache = LlambaCache(2)
    parts = [(0, 30), (30, 31), (31, 32), (32, 71)]
    logits = [model(ids[:, a:b], past_key_values=cache).logits for a, b in parts]
    gradients = []
    for result in (torch.cat(logits, dim=1), model(ids, use_cache=False).logits):
        loss = (result * result.detach().cos()).sum()
        gradients.append(torch.autograd.grad(loss, tuple(model.parameters())))
    for part, whole in zip(*gradients, strict=True):
        bound = 1e-10 * max(1.0, whole.abs().max().item())
        torch.testing.assert_close(part, whole, rtol=0, atol=bound)


def test_steps_without_gradients_leave_a_graph_before_them_whole(model, ids):
    cache = LlambaCache(2)
    loss = model(ids[:, :30], past_key_values=cache).logits.sum()
    with torch.no_grad():
        model(ids[:, 30:31], past_key_values=cache)
    loss.backward()


def test_a_cache_from_inference_mode_goes_on_outside_of_it(model, ids):
    cache = LlambaCache(2)
    with torch.inference_mode():
        model(ids[:, :30], past_key_values=cache)
        model(ids[:, 30:31], past_key_values=cache)
    with torch.no_grad():
        logits = model(ids[:, 31:32], past_key_values=cache).logits
        full = model(ids[:, :32], use_cache=False).logits
    torch.testing.assert_close(logits[:, 0], full[:, -1], rtol=0, atol=1e-10)


# ---- refused


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1},
        {"use_mtp": True},
    ],
)
def test_guessing_tokens_is_refused(model, ids, options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name}: tokens that are guessed"):
        write(model, ids, 3, **options)
    settings = copy.deepcopy(model.generation_config)
    settings.update(**options)
    with pytest.raises(ValueError, match="cannot be taken back out of Llamba's"):
        model.generate(ids, generation_config=settings)


def test_an_assistant_is_refused(model, ids):
    with pytest.raises(ValueError, match="assistant_model: tokens that are guessed"):
        write(model, ids, 3, assistant_model=copy.deepcopy(model))


@pytest.mark.parametrize(
    "layout", ["static", "dynamic", "offloaded", "quantized", "paged"]
)
def test_caches_of_keys_and_values_are_refused(model, ids, layout):
    with pytest.raises(ValueError, match=f"'{layout}' lays out keys and values"):
        write(model, ids, 3, cache_implementation=layout)


def test_continuous_batching_is_refused(model, ids):
    with pytest.raises(ValueError, match="padded on the left"):
        model.generate_batch(ids.tolist(), max_new_tokens=3)


def test_a_cache_is_not_cropped(model, ids):
    cache = read(model, ids)
    with pytest.raises(ValueError, match="cannot be cropped to 60 of its 71 tokens"):
        cache.crop(60)
    assert not cache.is_croppable
