"""`accelerate launch examples/distill_llamba.py` on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "distill_llamba.py"
ACCELERATE = (
    "-m accelerate.commands.launch --cpu --num_processes=2 --num_machines=1 "
    "--mixed_precision=no --dynamo_backend=no --num_cpu_threads_per_process=1 "
    "--main_process_port=0"
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [json.dumps({"text": f"line {i} of a text. " * 5}) for i in range(40)]
    path.write_text("\n".join(lines))
    return path


def run(
    teacher: Path, texts: Path, output: Path, processes: int
) -> tuple[dict, list[float]]:
    options = {
        "teacher": teacher,
        "train_data": texts,
        "output_dir": output,
        "max_length": 16,
        "max_steps": 4,
        "per_device_train_batch_size": 4 // processes,
        "spike_logging_steps": 2,
        "save_steps": 4,
        "use_cpu": True,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    launch = ACCELERATE.split() if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, str(EXAMPLE), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # one process reports
    assert done.stdout.count("Dense teacher and spiking student") == 1
    assert done.stdout.count("Memory, estimated") == 1
    state = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())
    history = [e["loss"] for e in state["log_history"] if "loss" in e]
    return json.loads((output / "metrics.json").read_text()), history


@pytest.mark.slow
def test_two_processes_train_evaluate_and_write_as_one(llambas, texts, tmp_path):
    alone, losses = run(llambas["dense"], texts, tmp_path / "one", 1)
    shared, shared_losses = run(llambas["dense"], texts, tmp_path / "two", 2)
    # the rows come in another order, so only what is before training is the same
    for name, rel in (("teacher", 1e-6), ("calibrated", 1e-6), ("distilled", 1e-2)):
        expected = pytest.approx(alone["perplexity"][name], rel=rel)
        assert shared["perplexity"][name] == expected
    assert shared["firing_rate"] == pytest.approx(alone["firing_rate"], rel=0.05)
    assert len(losses) == len(shared_losses) == 4
    written = [
        sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("one", "two")
    ]
    assert written[0] == written[1]
