from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "sharded_head.py"


@pytest.mark.slow
def test_a_head_sharded_over_two_processes_has_the_gradient_of_a_whole_one(
    tmp_path, run_processes
):
    # the processes have unequal token counts, and FSDP takes the mean over them
    whole = run_processes(SCRIPT, tmp_path / "one.pt", 1)
    shared = run_processes(SCRIPT, tmp_path / "two.pt", 2)
    assert [tuple(g.shape) for g in whole] == [(51, 6), (51,)]
    assert all(g.any() for g in whole)
    torch.testing.assert_close(shared, whole, rtol=0, atol=1e-12)
