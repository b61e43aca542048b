"""What a LlambaConfig takes is obeyed, or refused with a sentence."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.activations import ACT2FN

from mar_snn.assets import TINY_LLAMBA
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM, LlambaModel
from mar_snn.loading import load
from mar_snn.spiking import SpikingConfig, spikify


def test_the_config_reads_hugging_face_names_and_rounds_the_vocabulary():
    config = LlambaConfig(vocab_size=45, hidden_size=64, num_hidden_layers=3)
    assert (config.d_model, config.n_layer, config.vocab_size) == (64, 3, 48)
    assert config.layer_types == ["linear_attention"] * 3


@pytest.mark.parametrize("heads", [{"n_v_heads": 5}, {"n_v_heads": 4, "n_qk_heads": 3}])
def test_head_counts_that_do_not_divide_are_refused(heads):
    with pytest.raises(ValueError, match="n_qk_heads must divide n_v_heads"):
        LlambaConfig(d_model=24, ssm_cfg={"n_qk_heads": 1} | heads)


def test_the_config_survives_json_with_and_without_spikes():
    for spiking in (None, SpikingConfig(time_steps=3, layers=(0,))):
        config = LlambaConfig(d_model=64, spiking=spiking)
        again = LlambaConfig(**json.loads(config.to_json_string(use_diff=False)))
        assert again.spiking == spiking
        assert again.ssm_cfg == config.ssm_cfg


def test_the_head_is_the_embedding_unless_the_config_unties_it(config):
    tied = LlambaForCausalLM(config)
    assert tied.lm_head.weight is tied.backbone.embedding.weight
    config.tie_embeddings = config.tie_word_embeddings = False
    untied = LlambaForCausalLM(config)
    assert untied.lm_head.weight is not untied.backbone.embedding.weight


@pytest.mark.parametrize("name", ["tie_embeddings", "tie_word_embeddings"])
def test_either_name_ties_and_unties_the_head(config, name, tmp_path):
    sizes = config.to_dict()
    del sizes["tie_embeddings"], sizes["tie_word_embeddings"]
    model = LlambaForCausalLM(LlambaConfig(**sizes, **{name: False}))
    assert model.lm_head.weight is not model.backbone.embedding.weight
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["tie_embeddings"], saved["tie_word_embeddings"]) == (False, False)
    again = LlambaForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight.equal(model.lm_head.weight)
    setattr(config, name, False)
    assert (config.tie_embeddings, config.tie_word_embeddings) == (False, False)
    assert AutoConfig.from_pretrained(tmp_path, **{name: True}).tie_embeddings


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ("d_model", {"d_model": 24, "hidden_size": 48}),
        ("n_layer", {"n_layer": 2, "num_hidden_layers": 3}),
        ("tie_embeddings", {"tie_embeddings": False, "tie_word_embeddings": True}),
    ],
)
def test_two_names_of_one_setting_may_not_differ(own, others):
    with pytest.raises(ValueError, match=f"{own} and .* are two names of one setting"):
        LlambaConfig(**others)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_layers": 3}, "has no n_layers, and has n_layer: rename it"),
        ({"d_modell": 64}, "has no d_modell, and has d_model"),
        ({"num_hidden_layer": 3}, "has no num_hidden_layer, and has num_hidden_layers"),
        ({"norm_eps": 1e-6}, "has no norm_eps, and has norm_epsilon"),
        ({"intermediate_size": 64}, "intermediate_size stands in mlp_cfg"),
        ({"n_v_heads": 4}, "n_v_heads stands in ssm_cfg: pass ssm_cfg="),
        (
            {"ssm_cfg": {"n_vheads": 4}},
            "ssm_cfg has no n_vheads: it takes d_state, n_v",
        ),
        ({"mlp_cfg": {"hidden": 4, "act": ""}}, "mlp_cfg has no act, hidden: it takes"),
        (
            {"ssm_cfg": {"activation": "sillu"}},
            r"ssm_cfg\['activation'\] must be one of",
        ),
        (
            {"mlp_cfg": {"act_fn": "identity"}},
            r"act_fn'\] must be one of gelu, .* got 'i",
        ),
        ({"pad_vocab_size_multiple": 0}, "must be 1, for no padding, or more, got 0"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        LlambaConfig(**wrong)


def test_what_transformers_and_others_keep_in_a_config_is_kept():
    config = LlambaConfig(auto_map={}, num_labels=3, pad_token_id=1, our_own_note="x")
    assert (config.our_own_note, config.pad_token_id) == ("x", 1)


@pytest.mark.parametrize("name", ["gelu", "silu", "swish", "identity"])
def test_the_activation_that_was_named_runs(config, ids, name):
    config.ssm_cfg |= {"activation": name}
    mixer = LlambaForCausalLM(config).backbone.layers[0].mixer
    expected = nn.Identity() if name == "identity" else ACT2FN[name]
    x = torch.linspace(-2, 2, 9)
    assert mixer.activation(x).equal(expected(x))


def test_a_dropout_that_is_not_there_is_mentioned(config):
    with pytest.warns(UserWarning, match=r"resid_dropout=0\.1 has no effect"):
        LlambaConfig(resid_dropout=0.1)
    config.resid_dropout = 0.2
    with pytest.warns(UserWarning, match=r"resid_dropout=0\.2 has no effect"):
        LlambaForCausalLM(config)


def test_the_chunk_size_of_a_released_file_changes_nothing(config, ids):
    logits = []
    for chunk_size in (128, 3):
        config.ssm_cfg |= {"chunk_size": chunk_size}
        torch.manual_seed(5)
        logits.append(LlambaForCausalLM(config).eval()(ids).logits)
    assert logits[0].equal(logits[1])


def test_settings_that_change_later_are_looked_at_when_a_model_is_made(
    config, tmp_path
):
    LlambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"ssm_cfg lacks bias, .* must be whole"):
        LlambaForCausalLM.from_pretrained(tmp_path, ssm_cfg={"activation": "silu"})
    model = LlambaForCausalLM.from_pretrained(tmp_path, spiking={"time_steps": 2})
    assert model.config.spiking == SpikingConfig(time_steps=2)
    config.mlp_cfg["act_fun"] = "relu"
    with pytest.raises(ValueError, match="mlp_cfg has no act_fun: it takes"):
        LlambaModel(config)


# ---- a vocabulary that was resized


@pytest.mark.filterwarnings("ignore:.*pad_to_multiple_of")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spiking", [None, SpikingConfig(layers=(1,))])
def test_a_resized_vocabulary_is_saved_as_it_is_and_loads(
    config, ids, tied, spiking, tmp_path
):
    config.tie_embeddings, config.spiking = tied, spiking
    model = LlambaForCausalLM(config).eval()
    model.resize_token_embeddings(68, mean_resizing=False)
    expected = model(ids + 20).logits
    assert expected.shape[-1] == 68
    folder = tmp_path
    loaders = [LlambaForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained]
    for loader in loaders + [load] * (spiking is not None):
        model.save_pretrained(folder)
        assert "| vocabulary | 68 |" in (folder / "README.md").read_text()
        model = loader(folder)  # and again: what was loaded is saved, and loads
        assert model.config.vocab_size == 68
        assert model(ids + 20).logits.equal(expected)
        folder = folder / "again"
    again = LlambaConfig(**model.config.to_dict())
    assert again.vocab_size == 68
    backbone = AutoModel.from_pretrained(tmp_path)
    assert backbone.embedding.weight.equal(model.backbone.embedding.weight)


def test_two_chat_tokens_more_in_the_tiny_teacher_and_its_student(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMBA)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    model = AutoModelForCausalLM.from_pretrained(TINY_LLAMBA, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    student = spikify(model)
    student.save_pretrained(tmp_path)
    ids = tokenizer("<|user|>def add(<|end|>", return_tensors="pt").input_ids
    assert {4096, 4097} < set(ids[0].tolist())
    loaded = load(tmp_path)
    assert loaded(ids).logits.equal(student.eval()(ids).logits)
    loaded.optimize_for_decoding()
    assert loaded.generate(ids, max_new_tokens=2, do_sample=False).shape[1] == 2 + len(
        ids[0]
    )


def test_a_vocabulary_that_is_resized_to_the_multiple_is_rounded_as_before(config):
    model = LlambaForCausalLM(config)
    model.resize_token_embeddings(51, pad_to_multiple_of=8)
    assert model.config.vocab_size == 56
    assert model.config.to_dict()["pad_vocab_size_multiple"] == 8
