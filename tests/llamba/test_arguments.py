"""Every argument of a forward pass is obeyed, or refused with a sentence."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, StaticCache

from mar_snn.llamba import LlambaCache, LlambaConfig, LlambaForCausalLM
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.spiking import SpikingConfig, spikify

# ---- what comes back


def test_a_tuple_comes_back_where_no_dictionary_is_wanted(model, ids):
    named = model(ids, labels=ids, output_hidden_states=True)
    loss, logits, *rest = model(
        ids, labels=ids, output_hidden_states=True, return_dict=False
    )
    assert loss.equal(named.loss)
    assert logits.equal(named.logits)
    # None is left out; transformers has the cache before or behind the hidden states
    hidden_states = next(part for part in rest if isinstance(part, tuple))
    assert all(map(torch.equal, hidden_states, named.hidden_states))
    assert len(rest) == 2
    (only,) = model.backbone(ids, use_cache=False, return_dict=False)
    assert only.equal(named.hidden_states[-1])


def test_the_config_may_ask_for_tuples_and_for_hidden_states(model, ids):
    expected = model(ids).logits
    model.config.return_dict = False
    assert model(ids)[0].equal(expected)
    assert model(ids, return_dict=True).logits.equal(expected)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (2, 73)
    spikify(model, SpikingConfig())  # runs the model, and reads its caches
    model.config.output_hidden_states = True
    assert len(model(ids, return_dict=True).hidden_states) == 3
    assert (
        model(ids, return_dict=True, output_hidden_states=False).get("hidden_states")
        is None
    )


def test_the_loss_is_a_sum_over_as_many_items_as_the_batch_is_said_to_have(model, ids):
    items = torch.tensor(7)
    logits = model(ids).logits[:, :-1].flatten(0, 1).float()
    expected = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum") / 7
    loss = model(ids, labels=ids, num_items_in_batch=items).loss
    torch.testing.assert_close(loss, expected)
    shifted = F.pad(ids[:, 1:], (0, 1), value=-100)
    loss = model(ids, shift_labels=shifted, num_items_in_batch=items).loss
    torch.testing.assert_close(loss, expected)


def test_a_negative_number_of_logits_is_refused(model, ids):
    with pytest.raises(ValueError, match="logits_to_keep must be 0, for all, or"):
        model(ids, logits_to_keep=-2)


def test_labels_need_the_logits_of_their_tokens(model, ids):
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(2, 71\): leave logits_to"):
        model(ids, labels=ids, logits_to_keep=3)


@pytest.mark.parametrize("chosen", [[0, 1], (2,), -1])
def test_hidden_states_come_all_or_none(model, ids, chosen):
    # the checker of the tests would refuse an argument of this kind first
    model.backbone.config.output_hidden_states = chosen
    with pytest.raises(ValueError, match="output_hidden_states must be True or False"):
        model(ids)


@pytest.mark.parametrize("of_config", [False, True])
def test_attentions_are_refused(model, ids, of_config):
    wanted = {} if of_config else {"output_attentions": True}
    if of_config:
        model.config._output_attentions = True
    with pytest.raises(ValueError, match="Llamba has no attention"):
        model(ids, **wanted)
    model.config._output_attentions = False
    model(ids, output_attentions=False)


@pytest.mark.parametrize(
    "name", ["atention_mask", "position_ids", "cu_seq_lens_q", "cache_params"]
)
def test_an_argument_that_nothing_would_read_is_refused(model, ids, name):
    with pytest.raises(TypeError, match=rf"takes no {name}: .* numbered by seq_idx"):
        model(ids, **{name: torch.zeros_like(ids)})
    with pytest.raises(TypeError, match=rf"takes no {name}"):
        model.backbone(ids, **{name: ids})
    assert model(ids, **{name: None}).logits.equal(model(ids).logits)


def test_positions_beside_the_numbers_of_documents_say_nothing_new(model, ids):
    seq_idx = torch.arange(ids.shape[1]).expand_as(ids) // 30
    positions = torch.arange(ids.shape[1]).expand_as(ids) % 30
    both = model(ids, seq_idx=seq_idx, position_ids=positions).logits
    assert both.equal(model(ids, seq_idx=seq_idx).logits)


def test_what_every_tokenizer_and_generate_may_add_is_taken(model, ids):
    more = {"token_type_ids": torch.zeros_like(ids), "cache_position": torch.arange(71)}
    assert model(ids, **more).logits.equal(model(ids).logits)


@pytest.mark.parametrize("given", [{"use_cache": True}, {"cache": LlambaCache(2)}])
def test_gradient_checkpointing_would_write_a_cache_twice(model, ids, given):
    # its name up to transformers 5.22 and after
    old = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    model.train()
    with pytest.raises(ValueError, match="would write a cache twice: pass use_cache"):
        model(ids, **given)
    assert model(ids).get(CACHE_NAME) is None
    with torch.no_grad():
        assert model(ids, use_cache=True)[CACHE_NAME].get_seq_length() == 71


# ---- caches


def caches(model) -> dict[str, object]:
    keys = torch.zeros(2, 1, 3, 4)
    return {
        "DynamicCache": DynamicCache(),
        "StaticCache": StaticCache(model.config, max_cache_len=9),
        "tuple": ((keys, keys), (keys, keys)),
        "Tensor": keys,
    }


@pytest.mark.parametrize("kind", ["DynamicCache", "StaticCache", "tuple", "Tensor"])
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_caches_of_an_attention_are_refused_by_name(model, ids, kind, name):
    given = {name: caches(model)[kind]}
    for run in (model, model.backbone):
        with pytest.raises(ValueError, match=f"must be a LlambaCache, got {kind}: "):
            run(ids, **given)
    with pytest.raises(ValueError, match=f"must be a LlambaCache, got {kind}: "):
        model.generate(ids, max_new_tokens=2, **given)


def test_two_names_are_of_one_cache(model, ids):
    cache = LlambaCache(2)
    model(ids, cache=cache, past_key_values=cache)
    assert cache.get_seq_length() == 71
    with pytest.raises(ValueError, match="two caches were given: pass one"):
        model(ids, cache=cache, past_key_values=LlambaCache(2))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_layer": 3}, r"of a model of 3 layers with .* this model has 2 with"),
        ({"d_model": 32}, r"states of \[\(52, 3\), \(4, 8, 5\)\].*\(4, 6, 5\)\]: pass"),
        ({"ssm_cfg": {"d_conv": 3}}, r"states of \[\(44, 2\), .* has 2 with \[\(44, 3"),
    ],
)
def test_a_cache_of_another_model_is_refused(model, ids, change, sentence):
    settings = model.config.to_dict()
    settings |= change | {"ssm_cfg": settings["ssm_cfg"] | change.get("ssm_cfg", {})}
    other = LlambaForCausalLM(LlambaConfig(**settings)).eval()
    cache = other(ids, use_cache=True)[CACHE_NAME]
    for tokens in (ids, ids[:, :1]):
        with pytest.raises(ValueError, match=sentence):
            model(tokens, cache=cache)


def test_an_empty_cache_of_another_number_of_layers_is_refused(model, ids):
    with pytest.raises(ValueError, match="1 layers with states of any size"):
        model(ids, cache=LlambaCache(1))


def test_a_cache_goes_on_with_the_rows_that_it_has_read_or_with_copies_of_them(
    model, ids
):
    cache = LlambaCache(2)
    with torch.no_grad():
        model(ids[:1, :70], cache=cache)
        for tokens in (ids, ids[:, 70:]):
            with pytest.raises(ValueError, match="has read 1 rows, and 2 are to go on"):
                model(tokens, cache=cache)
        options = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
        forked = copy.deepcopy(cache)
        with pytest.raises(ValueError, match=r"reorder_cache\(indices\)"):
            model.generate(ids[:1], **{CACHE_NAME: forked}, **options)
        cache.reorder_cache(torch.tensor([0, 0]))
        written = model.generate(ids[:1], **{CACHE_NAME: cache}, **options)
    assert written.equal(model.generate(ids[:1], **options))
