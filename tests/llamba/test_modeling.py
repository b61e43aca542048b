import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mar_snn.llamba import LlambaCache, LlambaConfig, LlambaForCausalLM, LlambaModel
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.llamba.modeling_llamba import CausalConv1d, LlambaRMSNorm
from mar_snn.llamba.scan import ssd_sequential
from mar_snn.neurons import ATMNCoder
from mar_snn.spiking import SpikingConfig, spikify
from tests.bounds import assert_sums

#: The config.json of cartesia-ai/Llamba-3B.
RELEASED_3B = json.loads("""{
  "model_type": "llamba", "vocab_size": 128256, "tie_embeddings": true,
  "pad_vocab_size_multiple": 8, "lm_head_bias": false, "d_model": 3072, "n_layer": 28,
  "resid_dropout": 0.0, "norm_epsilon": 1e-05,
  "mlp_cfg": {"intermediate_size": 8192, "bias": false, "act_fn": "silu"},
  "ssm_cfg": {"d_state": 64, "n_v_heads": 32, "n_qk_heads": 32, "expand": 1,
              "chunk_size": 128, "activation": "identity", "bias": false}}""")


def test_a_model_of_the_released_size_has_the_released_keys_and_shapes():
    with torch.device("meta"):
        model = LlambaForCausalLM(LlambaConfig(**RELEASED_3B))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    layer = "backbone.layers.27."
    expected = {
        "backbone.embedding.weight": (128256, 3072),
        layer + "input_layernorm.weight": (3072,),
        # x, B, C: 3072 + 2·32·64; z: 3072; A_log: 32
        layer + "mixer.in_proj.weight": (3072 + 4096 + 3072 + 32, 3072),
        layer + "mixer.conv1d.weight": (7168, 1, 4),
        layer + "mixer.conv1d.bias": (7168,),
        layer + "mixer.z_bias": (3072,),
        layer + "mixer.D": (32,),
        layer + "mixer.out_proj.weight": (3072, 3072),
        layer + "post_attention_layernorm.weight": (3072,),
        layer + "mlp.gate_proj.weight": (8192, 3072),
        layer + "mlp.up_proj.weight": (8192, 3072),
        layer + "mlp.down_proj.weight": (3072, 8192),
        "backbone.final_layernorm.weight": (3072,),
    }
    assert expected.items() <= shapes.items()
    # eleven a layer, embedding, last norm; the head is the embedding
    assert len(shapes) == 28 * 11 + 2
    # in millions; the checkpoint on the hub is 14.6 GB of float32
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 3657


def test_a_block_is_the_equations_of_the_paper(config, model):
    # the whole block written out once more, with the sequential scan
    layer = model.backbone.layers[0]
    mixer, mlp = layer.mixer, layer.mlp
    h = torch.randn(1, 9, 24, dtype=torch.float64)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    u = norm(h, layer.input_layernorm.weight)
    xbc, z, a_log = (u @ mixer.in_proj.weight.T).split([24 + 20, 24, 4], dim=-1)
    taps = mixer.conv1d.weight[:, 0]
    past = F.pad(xbc, (0, 0, 3, 0))
    xbc = sum(past[:, k : k + 9] * taps[:, k] for k in range(4)) + mixer.conv1d.bias
    x, b, c = xbc.split([24, 10, 10], dim=-1)
    x, b, c = x.view(1, 9, 4, 6), b.view(1, 9, 2, 5), c.view(1, 9, 2, 5)
    y, _ = ssd_sequential(x, b, c, -F.softplus(a_log))
    y = (y + mixer.D[:, None] * x).flatten(-2) * F.silu(z + mixer.z_bias)
    expected = h + y @ mixer.out_proj.weight.T
    n = norm(expected, layer.post_attention_layernorm.weight)
    gated = F.silu(n @ mlp.gate_proj.weight.T) * (n @ mlp.up_proj.weight.T)
    expected = expected + gated @ mlp.down_proj.weight.T
    torch.testing.assert_close(layer(h), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spiking", [False, True])
def test_prefill_and_steps_equal_the_full_pass(model, ids, spiking):
    if spiking:
        spikify(model, SpikingConfig())
    full = model(ids, use_cache=False).logits
    outputs = model(ids[:, :37])
    logits, cache = [outputs.logits], outputs.past_key_values
    logits += [
        model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(37, 41)
    ]
    logits.append(model(ids[:, 41:], past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), full, rtol=0, atol=1e-9)
    assert cache.get_seq_length() == 71


def test_the_cache_does_not_grow_with_the_tokens_read(model, ids):
    cache = LlambaCache(2)
    sizes = []
    for t in range(6):
        model(ids[:, t : t + 1], past_key_values=cache)
        states = [*cache.conv_states, *cache.ssm_states]
        sizes.append(sum(s.numel() for s in states if s is not None))
    # two layers, two sequences: 44 channels · 3 inputs and 4 · 6 · 5 numbers of state
    assert sizes == [2 * 2 * (44 * 3 + 4 * 6 * 5)] * 6


def padded(ids, pads=5):
    filler = torch.zeros(2, pads, dtype=torch.long)
    mask = torch.ones(2, pads + ids.shape[1], dtype=torch.long)
    mask[:, :pads] = 0
    return {"input_ids": torch.cat([filler, ids], dim=1), "attention_mask": mask}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generation_with_the_cache_is_generation_without(model, ids, options):
    options |= {"max_new_tokens": 9, "do_sample": False}
    cached = model.generate(ids[:, :10], **options)
    assert cached.equal(model.generate(ids[:, :10], use_cache=False, **options))
    from_padded = model.generate(**padded(ids[:, :10]), **options)
    assert from_padded[:, 5:].equal(cached)


def test_generation_goes_on_from_a_cache(model, ids):
    whole = model.generate(ids[:1, :20], max_new_tokens=6, do_sample=False)
    cache = LlambaCache(2)
    model(ids[:1, :12], past_key_values=cache)
    rest = model.generate(
        ids[:1, :20], max_new_tokens=6, do_sample=False, **{CACHE_NAME: cache}
    )
    assert rest.equal(whole)


def test_either_ids_or_embeddings(model, ids):
    embeddings = model.get_input_embeddings()(ids)
    torch.testing.assert_close(
        model(inputs_embeds=embeddings).logits, model(ids).logits
    )
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**wrong)


def test_the_loss_predicts_the_next_token_and_skips_ignored_labels(model, ids):
    labels = ids.clone()
    labels[:, :50] = -100
    outputs = model(ids, labels=labels)
    logits = outputs.logits[:, 49:-1].flatten(0, 1)
    expected = F.cross_entropy(logits, ids[:, 50:].flatten())
    # transformers computes the loss in float32: sums of 48 words and of 21 tokens
    sizes = logits.logsumexp(-1).abs() + logits.abs().amax(-1)
    assert_sums(outputs.loss.float(), expected, sizes.mean(), 48 + 21)


def test_logits_are_kept_for_the_last_tokens_or_for_chosen_ones(model, ids):
    logits = model(ids).logits
    last = model(ids, logits_to_keep=2).logits
    torch.testing.assert_close(last, logits[:, -2:])
    chosen = torch.tensor([3, 5])
    kept = model(ids, logits_to_keep=chosen).logits
    torch.testing.assert_close(kept, logits[:, chosen])


def test_hidden_states_are_every_blocks_input_and_the_last_norms_output(model, ids):
    outputs = model(ids, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    assert outputs.hidden_states[0].equal(model.backbone.embedding(ids))
    last = model.lm_head(outputs.hidden_states[-1])
    torch.testing.assert_close(last, outputs.logits)
    assert model(ids).hidden_states is None


def test_the_convolution_sees_no_future_and_continues_from_its_state():
    conv = CausalConv1d(3, 4, bias=True).double()
    x = torch.randn(2, 10, 3).double()
    whole, state = conv(x)
    assert state.equal(x[:, -3:].transpose(1, 2))
    future = x.clone()
    future[:, 6:] = 1e6
    torch.testing.assert_close(conv(future)[0][:, :6], whole[:, :6])
    first, middle = conv(x[:, :2])
    second, _ = conv(x[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_the_norm_is_taken_in_float32_and_returned_in_the_inputs_dtype():
    norm = LlambaRMSNorm(3, 0.0)
    x = torch.tensor([[1.0, 2.0, 2.0]])  # rms = sqrt(9 / 3)
    torch.testing.assert_close(norm(x), x / 3**0.5)
    half = LlambaRMSNorm(3, 0.0).to(torch.bfloat16)
    assert half((300 * x).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "ssm", [{"bias": True, "conv_bias": False}, {"activation": "silu"}]
)
def test_the_other_branches_of_the_config_run(config, ids, ssm):
    config.ssm_cfg |= ssm
    model = LlambaForCausalLM(config).double().eval()
    assert (model.backbone.layers[0].mixer.z_bias is None) == ssm.get("bias", False)
    full = model(ids, use_cache=False).logits
    cache = model(ids[:, :-1]).past_key_values
    last = model(ids[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last[:, 0], full[:, -1], rtol=0, atol=1e-10)


def test_gradient_checkpointing_gives_the_same_gradients(model, ids):
    spikify(model, SpikingConfig())
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            # its name up to transformers 5.22 and after
            old = model.gradient_checkpointing_enable
            getattr(model, "activation_checkpointing_enable", old)(
                {"use_reentrant": False}
            )
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("spiking", [None, SpikingConfig(sites=("mlp.out",))])
def test_a_saved_model_loads_through_the_auto_classes(config, ids, spiking, tmp_path):
    config.spiking = spiking
    model = LlambaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("neuron.a"):
                parameter.normal_()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).spiking == spiking
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    assert isinstance(loaded, LlambaForCausalLM)
    assert loaded(ids).logits.equal(model(ids).logits)


def test_a_dense_checkpoint_fills_a_spiking_model_but_for_its_thresholds(
    config, tmp_path
):
    LlambaForCausalLM(config).save_pretrained(tmp_path)
    spiking = copy.deepcopy(config)
    spiking.spiking = SpikingConfig()
    model, info = LlambaForCausalLM.from_pretrained(
        tmp_path, config=spiking, dtype=torch.bfloat16, output_loading_info=True
    )
    thresholds = {n: p for n, p in model.named_parameters() if n.endswith("neuron.a")}
    assert set(info["missing_keys"]) == set(thresholds)
    assert len(thresholds) == 8
    for a in thresholds.values():  # float32, and initialised
        assert a.dtype == torch.float32
        assert a.eq(0).all()
    assert model.dtype == torch.bfloat16


def test_every_parameter_is_initialised_by_the_class_that_owns_it(config):
    config.ssm_cfg["bias"] = True
    config.lm_head_bias = True
    model = LlambaForCausalLM(config)
    assert all(p.isfinite().all() for p in model.parameters())
    mixer = model.backbone.layers[0].mixer
    assert mixer.in_proj.bias.eq(0).all()
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert mixer.conv1d.weight.abs().max() <= 0.5
    assert model.lm_head.bias.eq(0).all()


def test_the_embedding_can_be_replaced_and_resized(model, ids):
    model.resize_token_embeddings(56)
    assert model(ids).logits.shape[-1] == 56
    new = nn.Embedding(56, 24)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    base = LlambaModel(model.config)
    base.set_input_embeddings(new)
    assert base.get_input_embeddings() is new


def test_dense_slots_are_empty_and_spiking_slots_hold_coders(config):
    dense = LlambaForCausalLM(config)
    assert isinstance(dense.backbone.layers[1].mixer.in_neuron, nn.Identity)
    config.spiking = SpikingConfig()
    layer = LlambaForCausalLM(config).backbone.layers[1]
    slots = [layer.mixer.in_neuron, layer.mixer.out_neuron]
    slots += [layer.mlp.in_neuron, layer.mlp.out_neuron]
    assert all(isinstance(slot, ATMNCoder) for slot in slots)
    assert [slot.num_channels for slot in slots] == [24, 24, 24, 40]
