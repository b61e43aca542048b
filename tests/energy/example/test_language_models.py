"""The report of a language model, from its text to its files."""

import functools
import hashlib

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mar_snn.assets import TINY_LLAMBA
from mar_snn.energy import SpikeOpCounter
from mar_snn.llamba import LlambaForCausalLM
from tests.energy.example.folders import (
    DENSE_PICTURES,
    SPIKING_PICTURES,
    check_folder,
    check_pictures,
)


def test_without_arguments_the_tiny_llamba_reads_its_model_card(run, tmp_path, capsys):
    assert run("--context", 8, "--samples", 3, "--depth", 2, drawn=True) == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    check_pictures(tmp_path / "out")
    # 3 samples of 8 tokens; the LM head has 256 inputs and 4096 outputs
    assert report.units == 24
    assert report.groups["lm_head"].counts.dense_mac == 24 * 256 * 4096
    assert report.ratio == 1.0
    assert len(report.batches) == 3
    report.assert_complete()
    workload = report.methodology["workload"]
    assert workload["model"] == "tiny_llamba"
    assert workload["model_revision"] == "local files"
    assert workload["dataset"] == "tiny_llamba/README.md"
    digest = hashlib.sha256((TINY_LLAMBA / "README.md").read_bytes()).hexdigest()
    assert workload["dataset_revision"] == f"sha256 {digest[:16]}"
    assert (workload["samples"], workload["batch"], workload["context"]) == (3, 1, 8)
    assert report.methodology["model"]["dtypes"] == ["torch.bfloat16"]
    shown = capsys.readouterr().out
    assert "Arithmetic by group" in shown
    assert "backbone.layers " in shown  # two parts of the names of its modules
    assert "With the traffic of weights" in shown
    assert "NOT INCLUDED" in shown
    assert f"figures: {tmp_path / 'out'}/" in shown.replace("\n", "")


def test_a_spiking_model_is_priced_by_its_spikes(run, models, text, tmp_path, capsys):
    options = ("--text", text, "--context", 12, "--batch-size", 2, "--samples", 5)
    assert run(models / "spiking", *options, "--dtype", "float32", drawn=True) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    check_pictures(tmp_path / "out")
    # 48 bytes are four samples of 12, two batches of 2
    assert report.units == 48
    assert [batch.tokens for batch in report.batches] == [24, 24]
    assert report.methodology["workload"]["dataset"].endswith("/text.txt")
    assert report.methodology["detection"]["declared"] == 1.0
    assert report.methodology["model"]["dtypes"] == ["torch.float32"]
    (kind,) = report.methodology["temporal"]
    assert (kind["T"], kind["neurons"]) == (3, 8)  # four sites in two layers
    head = report.groups["lm_head"].counts
    assert (head.mac, head.sop_unit) == (48 * 16 * 256, 0)
    assert report.groups["ffn"].counts.mac == 0
    assert report.groups["ffn"].counts.dense_mac == 48 * 2 * 3 * 16 * 24
    assert report.total.sop_unit > 0
    assert "Break-even" in capsys.readouterr().out


def test_pictures_of_an_earlier_run_do_not_stay(run, models, text, tmp_path):
    options = ("--text", text, "--context", 24)
    assert run(models / "spiking", *options, "--compare", models / "dense") == 0
    assert (tmp_path / "out" / "comparison.md").exists()
    assert run(models / "dense", *options) == 0
    check_folder(tmp_path / "out", DENSE_PICTURES)
    assert not (tmp_path / "out" / "comparison.md").exists()


def test_several_profiles_are_priced_from_one_count(
    run, example, models, text, tmp_path, monkeypatch, capsys
):
    counted = []
    monkeypatch.setattr(
        example, "count", lambda *a, count=example.count: counted.append(count(*a))
    )
    names = ("horowitz-45nm-fp32", "horowitz-45nm-fp16", "jouppi-7nm-bf16")
    model = models / "spiking"
    assert run(model, "--text", text, "--context", 24, "--profile", *names) == 0
    assert len(counted) == 1
    first, *others = [
        check_folder(tmp_path / "out" / folder, SPIKING_PICTURES)
        for folder in ("", *names[1:])
    ]
    assert [r.profile.name for r in (first, *others)] == list(names)
    for other in others:
        assert other.rows == first.rows
        assert other.energy_pj == other.profile.energy_pj(first.total) / 48
        assert other.energy_pj != first.energy_pj
    shown = capsys.readouterr().out
    assert shown.count("Arithmetic by group") == 3
    assert "\njouppi-7nm-bf16\n" in shown


def test_decoded_tokens_are_a_phase_of_their_own(run, models, text, tmp_path):
    options = ("--text", text, "--context", 20, "--samples", 2, "--decode", 3)
    assert run(models / "spiking", *options) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    # each of 2 samples: 20 tokens in one pass, then three passes of one token
    assert report.units == 46
    assert report.methodology["workload"]["decode"] == 3
    assert [(batch.phase, batch.tokens) for batch in report.batches] == [
        ("prefill", 20), ("decode", 1), ("decode", 1), ("decode", 1),
    ] * 2  # fmt: skip
    assert report.units_of_phase("decode") == 6
    heads = {row.phase: row for row in report.rows if row.group == "lm_head"}
    assert heads["prefill"].ops.mac == 2 * 20 * 16 * 256
    assert heads["decode"].ops.mac == 2 * 3 * 16 * 256
    # cached tokens are not read again
    assert report.phases["decode"].counts.lookup == 6


def test_tokens_are_decoded_as_generate_does(run, example, models, text, monkeypatch):
    model = LlambaForCausalLM.from_pretrained(models / "dense", dtype=torch.float32)
    ids = torch.tensor([list(text.read_bytes()[:20])])
    written = model.eval().generate(
        ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )
    fed = []
    forward = LlambaForCausalLM.forward

    @functools.wraps(forward)
    def listen(self, input_ids, **keywords):
        fed.append(input_ids)
        return forward(self, input_ids, **keywords)

    monkeypatch.setattr(LlambaForCausalLM, "forward", listen)
    subject = example.Subject(
        "model", SpikeOpCounter(model), [{"input_ids": ids, "use_cache": True}], {}
    )
    options = example.Namespace(device="cpu", decode=4)
    example.run(subject, subject.batches, options)
    assert torch.equal(torch.cat(fed, dim=1), written)


def test_a_foreign_language_model_is_counted(run, byte_tokenizer, text, tmp_path):
    config = LlamaConfig(
        vocab_size=256, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    options = ("--text", text, "--context", 16, "--samples", 1, "--decode", 2)
    assert run(tmp_path / "llama", *options) == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    report.assert_complete()
    assert report.groups["lm_head"].counts.mac == 18 * 8 * 256
    assert report.phases["decode"].counts.lookup == 2
