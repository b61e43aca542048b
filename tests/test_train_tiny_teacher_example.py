"""examples/train_tiny_teacher.py at a tiny size, and the teacher it left behind."""

import re
import sys
from types import ModuleType

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from mar_snn.assets import TINY_LLAMBA
from mar_snn.distill.data import pack, standard_library_text
from mar_snn.distill.evaluation import perplexity
from mar_snn.llamba import LlambaForCausalLM


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("train_tiny_teacher")


@pytest.fixture
def few_texts() -> DatasetDict:
    text = "def add(first, second):\n    return first + second\n" * 20
    names = [f"file{i}.py" for i in range(6)]
    docs = Dataset.from_dict({"name": names, "text": [f"# {n}\n{text}" for n in names]})
    return DatasetDict(train=docs, heldout=docs.select([0]))


def test_it_trains_saves_and_describes_a_teacher(
    example, few_texts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(example, "standard_library_text", lambda: few_texts)
    assets = tmp_path / "assets"
    options = {
        "output_dir": tmp_path / "run",
        "asset_dir": assets,
        "max_length": 32,
        "vocab_size": 280,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "eval_steps": 2,
    }
    arguments = [str(w) for name, v in options.items() for w in (f"--{name}", v)]
    monkeypatch.setattr(sys, "argv", ["train_tiny_teacher.py", *arguments])
    assert example.main() == 0
    model = AutoModelForCausalLM.from_pretrained(assets)
    assert isinstance(model, LlambaForCausalLM)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(assets)
    assert len(tokenizer) == 280
    code = "\tdef größer(x):  return '✓'\r\n"
    assert tokenizer.decode(tokenizer(code).input_ids) == code
    card = (assets / "README.md").read_text()
    assert " ".join(["examples/train_tiny_teacher.py", *arguments]) in card
    assert "1 documents" in card
    rows = pack(few_texts["heldout"], tokenizer, 32)
    said = float(re.search(r"perplexity ([\d.]+)", card)[1])
    assert perplexity(model, rows) == pytest.approx(said, rel=0.02)
    assert card in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("vocab_size", 4, "--vocab_size must be at least 257, got 4"),
        ("max_length", 1, "--max_length must be at least 2, got 1"),
        ("max_steps", 0, "--max_steps must be at least 1, got 0"),
        ("asset_dir", __file__, "is a file, not a folder"),
        ("seed", -1, "Seed must be between 0 and 2**32 - 1"),
    ],
)
def test_bad_input_is_one_sentence(
    example, tmp_path, monkeypatch, capsys, option, value, sentence
):
    monkeypatch.setattr(example, "standard_library_text", None)  # not even called
    options = {"output_dir": tmp_path / "run", "asset_dir": tmp_path, option: value}
    words = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["train_tiny_teacher.py", *words])
    assert example.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert sentence in line


def test_the_teacher_in_the_package_is_what_its_card_says():
    card = (TINY_LLAMBA / "README.md").read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(TINY_LLAMBA, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMBA)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert model.config.spiking is None
    assert (TINY_LLAMBA / "model.safetensors").stat().st_size < 10_000_000
    # a part of the held-out text, on whatever Python this is
    held_out = standard_library_text()["heldout"]
    rows = pack(held_out, tokenizer, 512).shuffle(seed=0).select(range(16))
    said = float(re.search(r"perplexity ([\d.]+)", card)[1])
    assert perplexity(model, rows) == pytest.approx(said, rel=0.3)
