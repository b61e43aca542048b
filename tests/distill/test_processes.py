import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "one_step.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_step(path: Path, processes: int, batch_size: int) -> tuple[dict, dict]:
    """The gradients and the logged terms of one step shared by some processes."""
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(path), str(batch_size)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return torch.load(path), json.loads(path.with_suffix(".json").read_text())


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_unequal_token_counts(tmp_path):
    alone, terms = one_step(tmp_path / "one.pt", processes=1, batch_size=8)
    shared, shared_terms = one_step(tmp_path / "two.pt", processes=2, batch_size=4)
    assert len(alone) > 20
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-7)
    assert shared_terms == pytest.approx(terms, rel=1e-4)
