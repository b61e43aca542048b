"""FSDP2: every block and the root sharded over two processes change no number."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "sharded.py"


def run(path: Path, processes: int) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(path)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return torch.load(path)


@pytest.mark.slow
def test_a_sharded_spiking_llamba_has_the_logits_and_gradients_of_the_whole(tmp_path):
    one, two = (run(tmp_path / f"{n}.pt", n) for n in (1, 2))
    torch.testing.assert_close(two["logits"], one["logits"], rtol=0, atol=1e-10)
    # eleven a layer and four thresholds; embedding and last norm
    assert len(one["gradients"]) == 2 * 15 + 2
    assert two["gradients"].keys() == one["gradients"].keys()
    for name, expected in one["gradients"].items():
        # thresholds are summed in float32
        rounding = 1e-5 if name.endswith("neuron.a") else 1e-10
        bound = rounding * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            two["gradients"][name], expected, rtol=0, atol=bound, msg=name
        )
        assert expected.abs().max() > 0
