import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "sharded_head.py"


def gradients(path: Path, processes: int) -> list[torch.Tensor]:
    """The gradients of the head's parameters from a batch shared by some processes."""
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
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    return torch.load(path)


@pytest.mark.slow
def test_a_head_sharded_over_two_processes_has_the_gradient_of_a_whole_one(tmp_path):
    # the processes have unequal token counts, and FSDP takes the mean over them
    whole = gradients(tmp_path / "one.pt", processes=1)
    shared = gradients(tmp_path / "two.pt", processes=2)
    assert [tuple(g.shape) for g in whole] == [(51, 6), (51,)]
    assert all(g.any() for g in whole)
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-7)
