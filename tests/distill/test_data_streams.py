"""Rows shared by processes and workers, and training that goes on at the same row."""

import copy
import json
import os
import socket
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest

from mar_snn.distill import SBDSTrainer
from mar_snn.distill.data import PackedStream, Reading, Source, collate, load_text, pack
from tests.distill.letters import Letters
from tests.distill.shard_rows import TEXTS

pytestmark = pytest.mark.usefixtures("away_from_home")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_of_two_workers_see_every_row_once(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distill.shard_rows", str(tmp_path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    every = sorted([ord(text[0]) - 96, ord(text[1]) - 96] for text in TEXTS)
    assert ranks[0].keys() == {"data set", "stream", "stream, read by both"}
    for kind in ranks[0]:
        (first, again), (other, other_again) = (rank[kind] for rank in ranks)
        assert sorted(first + other) == every, kind
        assert len(first) == len(other) == 32
        assert (first, other) == (again, other_again)


def mixture(folder: Path) -> list[Source]:
    """Two files, one of them with a bad record, about five rows of twelve tokens."""
    for name, letters in (("a", "abcdefg"), ("b", "hijklmn")):
        lines = [json.dumps({"text": letters[i % 5 :]}) for i in range(5)]
        lines.insert(2, "oops")
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return [Source(str(folder / "a.jsonl"), 0.7), Source(str(folder / "b.jsonl"), 0.3)]


def stream(folder: Path, workers: int) -> PackedStream:
    reading = Reading(streaming=True, shards=max(workers, 1), on_bad_record="skip")
    texts = load_text(mixture(folder), seed=7, reading=reading)
    return PackedStream(texts["train"], Letters(), 12, boundaries=True)


def data_set(folder: Path, workers: int):
    texts = load_text(mixture(folder), reading=Reading(on_bad_record="skip"))
    return pack(texts["train"], Letters(), 12, boundaries=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train_rows", [stream, data_set])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    student, teacher, config, tmp_path, train_rows, workers
):
    # an epoch has some ten rows: at step 4, of 4 rows each, either is in its second
    options = {
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": 4.0,
        "dataloader_num_workers": workers,
    }
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        trainer = SBDSTrainer(
            copy.deepcopy(student),
            teacher,
            config(**options),
            train_dataset=train_rows(tmp_path, workers),
            data_collator=collate,
        )
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    losses = [
        [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        for run in runs
    ]
    assert len(losses[0]) == 7
    assert losses[0] == losses[1]
    for one, two in zip(
        runs[0].model.parameters(), runs[1].model.parameters(), strict=True
    ):
        assert one.equal(two)


def test_the_batches_of_a_stream_differ_from_epoch_to_epoch(tmp_path):
    rows = [row["input_ids"] for row in islice(stream(tmp_path, 0), 40)]
    assert all(len(row) == 12 for row in rows)
    # the first ten rows hold an epoch; none of the next ones repeats all of them
    epochs = [rows[start : start + 10] for start in range(0, 40, 10)]
    assert all(a != b for a, b in pairwise(epochs))
