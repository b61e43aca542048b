import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mar_snn.distill import SBDSTrainer

SCRIPT = Path(__file__).parent / "one_step.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_step(
    path: Path, processes: int, batch_size: int, **options
) -> tuple[dict, dict]:
    """The gradients and the logged terms of one step shared by some processes."""
    shared = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(path), str(batch_size), json.dumps(options)]
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
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
    terms = path.with_suffix(".json")
    return torch.load(path), json.loads(terms.read_text()) if terms.exists() else {}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[dict, dict]:
    """Eight rows in one process."""
    return one_step(tmp_path_factory.mktemp("alone") / "one.pt", 1, 8)


def assert_same_step(one: tuple[dict, dict], other: tuple[dict, dict]) -> None:
    assert len(one[0]) > 20
    torch.testing.assert_close(other[0], one[0], rtol=0, atol=1e-10)
    assert other[1] == pytest.approx(one[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_unequal_token_counts(
    alone, tmp_path
):
    assert_same_step(alone, one_step(tmp_path / "two.pt", 2, 4))


@pytest.mark.slow
def test_two_processes_share_every_option(tmp_path):
    """Sites held back, rates, teacher forcing, no logits, and a sharded teacher."""
    options = {
        "spiking_warmup_steps": 3,
        "firing_rate_target": 0.1,
        "teacher_forcing_steps": 1,
        "logit_loss": "chunked",
    }
    one = one_step(tmp_path / "one.pt", 1, 8, **options)
    two = one_step(tmp_path / "two.pt", 2, 4, teacher_sharding="fsdp", **options)
    assert_same_step(one, two)


@pytest.mark.slow
def test_a_student_sharded_by_fsdp2_has_the_same_gradient(alone, tmp_path):
    options = {"sharded_student": True, "logit_loss": "chunked"}
    gradients, _ = one_step(tmp_path / "two.pt", 2, 4, **options)
    torch.testing.assert_close(gradients, alone[0], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_compiled_student_has_the_same_gradient(alone, tmp_path):
    options = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    assert_same_step(alone, one_step(tmp_path / "compiled.pt", 1, 8, **options))


def test_a_teacher_is_not_sharded_in_one_process(tmp_path, student, teacher, config):
    with pytest.raises(ValueError, match="shares the teacher among processes and"):
        SBDSTrainer(student, teacher, config(teacher_sharding="fsdp"))
