"""What examples/distill_llamba.py makes of its options for data."""

import json
from itertools import islice
from types import ModuleType
from typing import Any

import pytest
from torch.utils.data import DataLoader

from mar_snn.distill.data import PackedStream, collate

pytestmark = pytest.mark.usefixtures("away_from_home")


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("distill_llamba")


@pytest.fixture
def load(example, byte_tokenizer, tmp_path):
    """Rows of two files of 60 chats and 60 lines, of which one is bad."""
    chats = [json.dumps({"text": f"q {i}", "answer": f"a {i}"}) for i in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(["oops", *chats]))
    lines = [json.dumps({"text": f"p {i}", "answer": f"b {i}"}) for i in range(60)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))

    def load(workers: int = 0, **options: Any) -> dict[str, Any]:
        names = [f"{tmp_path}/chats.jsonl=0.75", f"{tmp_path}/lines.jsonl=0.25"]
        options = {
            "train_data": names,
            "completion_column": "answer",
            "chat_template": "plain",
            "on_bad_record": "skip",
            "max_length": 64,
            "eval_rows": 2,
            **options,
        }
        arguments = example.DistillArguments(**options)
        return example.load_rows(arguments, byte_tokenizer(), 3, workers)

    return load


def test_a_mixture_of_chats_is_packed(load, byte_tokenizer):
    rows = load()
    decoded = byte_tokenizer().decode(rows["train"][0]["input_ids"])
    assert "User: " in decoded
    assert "Assistant: " in decoded
    assert rows["train"].column_names == ["input_ids"]
    assert 1 <= len(rows["heldout"]) <= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_rows_for_every_worker(load, workers):
    rows = load(workers, streaming=True, boundaries=True)
    assert isinstance(rows["train"], PackedStream)
    assert len(rows["heldout"]) == 2
    loader = DataLoader(rows["train"], 2, collate_fn=collate, num_workers=workers)
    for batch in islice(loader, 4):
        assert batch["input_ids"].shape == batch["seq_idx"].shape == (2, 64)
        assert batch["seq_idx"].max() >= 1
        assert (batch["labels"] == -100).sum() == batch["seq_idx"].max(1).values.sum()


def test_bad_records_are_fatal_unless_they_are_to_be_skipped(load):
    with pytest.raises(ValueError, match=r"chats\.jsonl:1: is not JSON"):
        load(on_bad_record="raise")


def test_streaming_needs_something_to_stream(load):
    with pytest.raises(ValueError, match="--streaming is for --train_data"):
        load(streaming=True, train_data=None)
