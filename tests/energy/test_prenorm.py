"""mamba_ssm's residual stream, by stand-ins, fused and not."""

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts
from tests.energy.stand_ins import Block, Kernel, Model, named

RMS = named("mamba_ssm.ops.triton.layer_norm.RMSNorm", Kernel)
PATHS = ("mamba_ssm.modules.block.Block", "mamba_ssm.modules.mamba_simple.Block")
MODEL = "mamba_ssm.models.mixer_seq_simple.MixerModel"
WIDTH, ROWS = 4, 6


def model(path: str, norm: type[nn.Module], *, mlp: bool, fused: bool) -> nn.Module:
    blocks = [named(path, Block)(norm, WIDTH, mlp, fused) for _ in range(2)]
    return named(MODEL, Model)(blocks, norm(WIDTH), fused)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("norm", [RMS, nn.LayerNorm])
def test_every_norm_but_the_first_adds_to_the_residual(
    count_model, path, mlp, fused, norm
):
    total = count_model(model(path, norm, mlp=mlp, fused=fused),
                        torch.rand(2, 3, WIDTH)).total()  # fmt: skip
    norms = 5 if mlp else 3
    macs = (4 if mlp else 2) * ROWS * WIDTH**2
    sums = (norms - 1) * ROWS * WIDTH
    # RMS: 3 D + 1 mul, D add. Layer: mean D - 1 add and 1/D; D differences; D squares,
    # D - 1 add and 1/D; epsilon; D scalings; D weights and D shifts
    mul, add = (13, 4) if norm is RMS else (3 * 4 + 2, 2 * 3 + 4 + 1 + 4)
    assert total == OpCounts(
        dense_mac=macs,
        mac=macs,
        mul=norms * ROWS * mul,
        add=norms * ROWS * add + sums,
        special=norms * ROWS,
    )


def test_a_fused_norm_reads_its_weights_and_moves_the_residual(count_model):
    counter = count_model(
        model(PATHS[0], RMS, mlp=False, fused=True), torch.rand(2, 3, WIDTH)
    )
    last, first, second = (
        row for row in counter.rows() if row.name in ("layers.0", "layers.1", "")
    )
    tensor, weight = ROWS * WIDTH * 4, WIDTH * 4
    # read and written by the norm; with a sum two are read and one is written besides
    assert first.moved.activation == 2 * tensor
    assert second.moved.activation == last.moved.activation == 5 * tensor
    for row in (first, second, last):
        assert row.moved.weight_dense == weight
