"""Bad input: one sentence and exit code 2."""

import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from mar_snn.assets import TINY_LLAMBA
from mar_snn.energy import SpikeOpCounter


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no/such/model/here"], "error: no/such/model/here is no causal language"),
        (["no_module:net"], "error: no_module:net is no package.module:name: No mod"),
        (["energy_nets:nothing"], "module 'energy_nets' has no attribute 'nothing'"),
        (["energy_nets:text"], "energy_nets:text made no module but a str\n"),
        (["energy_nets:net"], "name a tensor or a function of the batch size: --inp"),
        (
            ["energy_nets:net", "--inputs", "energy_nets:picture"],
            "error: energy_nets:picture is no package.module:name",
        ),
        (
            ["energy_nets:net", "--inputs", "energy_nets:flat"],
            "error: energy_nets:net cannot run on these inputs: ",
        ),
        (
            ["energy_nets:net_and_images", "--batch-size", "6"],
            "error: less than one batch of 6: give more samples or text\n",
        ),
        (
            ["energy_nets:net_and_images", "--per", "token"],
            "error: the number of tokens is unknown",
        ),
        (
            ["energy_nets:images"],
            "energy_nets:images() failed: images() missing 1",
        ),
        (["energy_nets:broken"], "energy_nets:broken() failed: no weights here\n"),
        (
            ["energy_nets:net", "--decode", "2"],
            "--decode needs a language model, got ",
        ),
        (
            ["energy_nets:net", "--dtype", "float16"],
            "--dtype needs a language model, got ",
        ),
        (["--inputs", "energy_nets:flat"], "--inputs needs a package.module:function,"),
        (["--device", "nowhere"], "error: --device nowhere: Expected one of cpu, cuda"),
        (["--profile", "loihi-2"], "invalid choice: 'loihi-2' (choose from"),
        (["--text", "no_such_text.txt"], "--text no_such_text.txt cannot be read"),
        (["--text", "EMPTY"], "has 0 tokens and a sample has 128: give more text"),
        (["--text", "BINARY"], "cannot be read: 'utf-8' codec can't decode"),
        (["--context", "100000"], "give more text or a smaller --context\n"),
        (["--tokenizer", "EMPTY"], "has no tokenizer: "),
        (["--context", "0"], "--context must be 1 or more, got 0\n"),
        (["--batch-size", "0"], "--batch-size must be 1 or more, got 0\n"),
        (["--samples", "-1"], "--samples must be 1 or more, got -1\n"),
        (["--depth", "0"], "--depth must be 1 or more, got 0\n"),
        (["--decode", "-1"], "--decode must be 0 or more, got -1\n"),
        (["--samples", "many"], "argument --samples: invalid int value: 'many'\n"),
        (["--colour"], "unrecognized arguments: --colour\n"),
        (["--compare", "no_such.json"], "error: --compare no_such.json: [Errno 2]"),
        (["--compare", "OTHER.json"], "OTHER.json: expected a report of schema"),
        (["--compare", "no/such/model/here"], "no/such/model/here is no causal"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    run, nets, tmp_path, capsys, arguments, sentence
):
    (tmp_path / "EMPTY").write_text("")
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "OTHER.json").write_text(json.dumps({"schema": "another"}))
    here = {name: tmp_path / name for name in ("EMPTY", "BINARY", "OTHER.json")}
    assert run(*(here.get(word, word) for word in arguments)) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines(True) if "error: " in line]
    assert sentence in line
    assert "Traceback" not in shown.err
    assert "figures" not in shown.out
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(run, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert run() == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_model_that_writes_no_text_is_refused(run, tmp_path, capsys):
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, is_decoder=False,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    settings = json.loads((tmp_path / "bert" / "config.json").read_text())
    settings["model_type"] = "clip_vision_model"
    (tmp_path / "bert" / "config.json").write_text(json.dumps(settings))
    assert run(tmp_path / "bert") == 2
    assert "bert is no causal language model" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(run, models, text, capsys):
    options = ("--text", TINY_LLAMBA / "README.md", "--tokenizer", TINY_LLAMBA)
    assert run(models / "dense", *options) == 2
    error = capsys.readouterr().err
    assert f"error: {models / 'dense'} cannot run on these inputs: index out" in error


def test_a_model_without_a_cache_cannot_decode(example):
    class Forgetful(nn.Module):
        def forward(self, input_ids, use_cache):
            return {"logits": torch.zeros(1, 1, 2)}

    batch = {"input_ids": torch.tensor([[1]]), "use_cache": True}
    subject = example.Subject("it", SpikeOpCounter(Forgetful()), [batch], {"token": 1})
    options = example.Namespace(device="cpu", decode=1)
    with pytest.raises(ValueError, match="--decode needs a cache, it has none"):
        example.run(subject, [batch], options)
