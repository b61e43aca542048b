"""Event-driven decoding of the models of other packages."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mar_snn.sparse import EventLinear, optimize_for_decoding
from mar_snn.spiking import projections

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

HOSTS = ("Mamba", "Mamba2", "Bamba", "Zamba2", "FalconH1", "NemotronH", "Qwen3")


@pytest.mark.parametrize("name", HOSTS)
def test_the_same_tokens_from_the_weights_that_fired(name):
    from tiny_hosts import make_spiking

    model = make_spiking(name)
    other = copy.deepcopy(model)
    plain = {found for found, *_ in projections(model)}
    optimize_for_decoding(model, break_even=1.0)
    assert {found for found, *_ in projections(model)} == plain
    for found, linear, _ in projections(model):
        assert isinstance(linear, EventLinear), found
    ids = torch.randint(3, 40, (1, 6))
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **how), other.generate(ids, **how))


def test_modules_that_share_weights_share_the_copy_by_input():
    from tiny_hosts import make_spiking

    model = make_spiking("Zamba2")
    optimize_for_decoding(model, break_even=1.0)
    found = [linear for name, linear, _ in projections(model) if "down" in name]
    assert all(isinstance(linear, EventLinear) for linear in found)
    assert len({linear.weight.data_ptr() for linear in found}) == 1
    assert not any(type(linear) is nn.Linear for linear in found)
