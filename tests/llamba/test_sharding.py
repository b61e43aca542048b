"""FSDP2: every block and the root sharded over two processes change no number."""

from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "sharded.py"


@pytest.mark.slow
def test_a_sharded_spiking_llamba_has_the_logits_and_gradients_of_the_whole(
    tmp_path, run_processes
):
    one, two = (run_processes(SCRIPT, tmp_path / f"{n}.pt", n) for n in (1, 2))
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
