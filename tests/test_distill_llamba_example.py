"""examples/distill_llamba.py from end to end at a tiny size, and its answers."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import datasets
import pytest
import torch
from matplotlib.image import imread
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    TrainerCallback,
)

from mar_snn.distill import TrainingInterrupted
from mar_snn.energy import EnergyReport
from mar_snn.spiking import coders

PICTURES = ("energy", "firing", "raster", "thresholds", "training")


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("distill_llamba")


@pytest.fixture(scope="module")
def teacher(llambas) -> Path:
    return llambas["dense"]


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"body": f"line {i} of a text. " * 5}) for i in range(40)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def run(example, teacher, texts, tmp_path, monkeypatch):
    """Run the example on the tiny teacher; options override."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(**options: object) -> int:
        options = {
            "teacher": teacher,
            "train_data": texts,
            "text_column": "body",
            "output_dir": tmp_path / "out",
            "max_length": 16,
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "spike_logging_steps": 2,
            "use_cpu": True,
            **options,
        }
        arguments = [
            word
            for name, value in options.items()
            for word in (f"--{name}", *str(value).split())
        ]
        monkeypatch.setattr(sys, "argv", ["distill_llamba.py", *arguments])
        return example.main()

    return run


def losses(folder: Path) -> list[float]:
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    history = json.loads(state.read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_everything_the_example_promises_is_there(run, tmp_path, capsys):
    assert run() == 0
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["perplexity"].keys() == {"teacher", "calibrated", "distilled"}
    assert metrics["perplexity_ratio"] == pytest.approx(
        metrics["perplexity"]["distilled"] / metrics["perplexity"]["teacher"]
    )
    assert 0 < metrics["firing_rate"] < 1
    assert -1 < metrics["sign_balance"] < 1
    assert metrics["synops_per_token"] > 0
    assert metrics["seconds"] > 0
    assert metrics["seed"] == 0
    assert metrics["versions"]["torch"] == torch.__version__
    assert metrics["machine"]["cores"] == os.cpu_count()
    report = EnergyReport.load(out / "energy.json")
    assert report.ratio == metrics["energy_ratio"]
    assert report.ratio_without("lm_head") == metrics["energy_ratio_without_lm_head"]
    assert "Not a measurement" in (out / "energy.md").read_text()
    for picture in PICTURES:
        assert imread(out / f"{picture}.png").shape[:2] == (600, 1080)
    assert not (out / "unfinished").exists()
    printed = capsys.readouterr().out
    for figure in metrics["perplexity"].values():
        assert f"{figure:.2f}" in printed
    assert "modelled" in printed

    student = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(list(coders(student))) == 8
    ids = tokenizer("a text", return_tensors="pt").input_ids
    assert student.generate(ids, max_new_tokens=3).shape == (1, 9)


def test_the_options_reach_the_student(run, tmp_path):
    options = {"time_steps": 2, "tau": 1.0, "readout": "sum", "fire_ratio": 1.0}
    assert run(sites="mlp.in mlp.out", max_steps=2, **options) == 0
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    (_, coder), *others = coders(student)
    assert len(others) == 3
    assert {name: getattr(coder, name) for name in options} == options


def test_interrupted_and_resumed_is_bitwise_uninterrupted(
    run, example, tmp_path, monkeypatch, capsys
):
    assert run(output_dir=tmp_path / "whole", save_steps=6) == 0

    class CtrlC(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    class Interrupted(example.SBDSTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, callbacks=[CtrlC()], **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(example, "SBDSTrainer", Interrupted)
        assert run(save_steps=6) == 130
    out = tmp_path / "out"
    said = capsys.readouterr().err
    assert f"--resume_from_checkpoint {out / 'checkpoint-4'}" in said
    assert not (out / "metrics.json").exists()
    assert not (out / "model.safetensors").exists()
    assert run(save_steps=6, save_total_limit=1, resume_from_checkpoint="last") == 0
    assert losses(out) == losses(tmp_path / "whole")
    metrics = [
        json.loads((folder / "metrics.json").read_text())["perplexity"]
        for folder in (out, tmp_path / "whole")
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train_data": "no_such_file.jsonl"}, "a file that does not exist"),
        ({"text_column": "text"}, "has no column 'text'"),
        ({"sites": "ffn"}, "sites must be one or more of mixer.in"),
        ({"tau": -2.0}, "tau must be a finite float above zero, got -2.0"),
        ({"time_steps": 0}, "time_steps must be at least 1, got 0"),
        ({"alpha": -1.0}, "alpha must not be negative"),
        ({"max_length": 1}, "--max_length must be at least 2, got 1"),
        ({"max_steps": 0}, "--max_steps must be at least 1, got 0"),
        (
            {"max_steps": -1, "num_train_epochs": 0},
            "--num_train_epochs must be above zero, got 0.0",
        ),
        (
            {"per_device_train_batch_size": -1},
            "--per_device_train_batch_size must be at least 1, got -1",
        ),
        (
            {"gradient_accumulation_steps": 0},
            "--gradient_accumulation_steps must be at least 1, got 0",
        ),
        ({"teacher_sharding": "fsdp"}, "start several with accelerate launch"),
        ({"teacher_device": "cuda:99"}, "there is no device 'cuda:99' here"),
        ({"teacher_device": "gpu0"}, "there is no device 'gpu0' here"),
        ({"feature_layers": '{"0":9}'}, "blocks 0..1 of the teacher, got 0: 9"),
        ({"feature_layers": '{"0":"x"}'}, "feature_layers must give a block of the"),
        ({"feature_layers": "[1]"}, "feature_layers must give a block of the teacher"),
        ({"report_to": "no_such"}, "no_such is not supported"),
        ({"max_length": 100000}, "do not fill one row of 100000 tokens"),
        ({"teacher": "no/such/folder/here"}, "no/such/folder/here"),
        ({"resume_from_checkpoint": "last"}, "no checkpoint there"),
        ({"resume_from_checkpoint": "nowhere"}, "no checkpoint there"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    run, tmp_path, capsys, options, sentence
):
    assert run(**options) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert sentence in line
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(run, texts, capsys):
    before = texts.read_text()
    assert run(output_dir=texts) == 2
    assert "texts.jsonl is a file, not a folder" in capsys.readouterr().err
    assert texts.read_text() == before


@pytest.mark.parametrize("folder", ["texts.jsonl/deeper", "closed"])
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(
    run, example, texts, folder, monkeypatch, capsys
):
    def refuse(*, dir: Path) -> None:  # noqa: A002  as a file system mounted read-only does
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(example.command, "TemporaryFile", refuse)
    monkeypatch.setattr(example, "load_teacher", None)  # not even called
    assert run(output_dir=texts.parent / folder) == 2
    error = capsys.readouterr().err
    assert "give --output_dir a folder that can be written to\n" in error
    assert folder in error


def test_a_diverged_run_keeps_its_results_and_says_so(
    run, example, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thresholds.png").touch()  # of a run before
    # nor does an estimate that cannot be had keep anybody from training
    monkeypatch.setattr(example, "estimate_memory", lambda *_: int("x"))
    assert run(learning_rate=1e4, eval_strategy="steps", eval_steps=3) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert not math.isfinite(metrics["perplexity"]["distilled"])
    assert math.isfinite(metrics["perplexity"]["calibrated"])
    assert metrics["steps"] == 6
    assert EnergyReport.load(out / "energy.json").ratio == metrics["energy_ratio"]
    AutoModelForCausalLM.from_pretrained(out)
    printed, errors = capsys.readouterr()
    assert "Memory cannot be estimated: ValueError: invalid literal" in printed
    assert "Training diverged: give a lower --learning_rate" in errors
    assert f"{out / 'thresholds.png'} is not drawn: thresholds must be" in errors
    assert not (out / "thresholds.png").exists()
    assert (out / "energy.png").exists()
    (state,) = out.glob("checkpoint-*/trainer_state.json")
    history = json.loads(state.read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [3, 6]


def test_the_way_on_can_be_pasted_into_a_shell(example, tmp_path):
    folder = tmp_path / "my 'own' $folder" / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    for interrupt in (KeyboardInterrupt(), TrainingInterrupted(str(folder))):
        with (
            pytest.raises(KeyboardInterrupt) as stop,
            example.command.checkpoints_named(str(folder.parent)),
        ):
            raise interrupt
        *_, option, path = shlex.split(str(stop.value))
        assert (option, path) == ("--resume_from_checkpoint", str(folder))


def test_without_a_checkpoint_nothing_is_promised(example, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt) as stop,
        example.command.checkpoints_named(str(tmp_path)),
    ):
        raise KeyboardInterrupt
    assert str(stop.value) == ""


def test_empty_data_is_refused(run, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert run(train_data=empty) == 2
    assert "empty.jsonl" in capsys.readouterr().err


def test_an_option_that_does_not_exist_is_refused_without_a_page_of_usage(run, capsys):
    assert run(no_such_option=1) == 2
    error = capsys.readouterr().err
    assert "no_such_option" in error
    assert len(error.splitlines()) <= 3


def test_a_tokenizer_with_more_tokens_than_the_teacher_is_refused(
    run, byte_tokenizer, tmp_path, capsys
):
    byte_tokenizer(["<more>"]).save_pretrained(tmp_path / "tokenizer")
    assert run(tokenizer=tmp_path / "tokenizer") == 2
    assert "the tokenizer has 257 tokens, the teacher knows 256" in (
        capsys.readouterr().err
    )


def test_a_teacher_that_is_no_causal_language_model_is_refused(
    run, byte_tokenizer, tmp_path, capsys
):
    config = BertConfig(
        vocab_size=256,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    settings = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(
        json.dumps(settings | {"model_type": "clip_vision_model"})
    )
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    assert run(teacher=tmp_path / "bert") == 2
    assert "is not a causal language model" in capsys.readouterr().err


def test_a_teacher_that_spikes_already_is_refused(run, tmp_path, capsys):
    assert run(max_steps=1) == 0
    assert run(teacher=tmp_path / "out", output_dir=tmp_path / "again") == 2
    assert "spikes already" in capsys.readouterr().err


def test_a_second_run_into_one_folder_changes_nothing_of_the_first(
    run, tmp_path, capsys
):
    output = tmp_path / "out"
    output.mkdir()
    (output / "metrics.json").write_text("of the first", encoding="utf-8")
    code = (
        "import sys; from mar_snn.distill.checkpoints import only_run_in\n"
        "with only_run_in(sys.argv[1]): print('runs', flush=True); sys.stdin.read()"
    )
    first = [sys.executable, "-c", code, str(output)]
    pipe = subprocess.PIPE
    with subprocess.Popen(first, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "runs\n"
        assert run() == 2
        process.kill()
    assert f"error: another run writes into {output}" in capsys.readouterr().err
    assert (output / "metrics.json").read_text(encoding="utf-8") == "of the first"
