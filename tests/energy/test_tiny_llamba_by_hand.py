"""The energy table of the package's own tiny model, worked out on paper."""

import pytest
import torch
from transformers import AutoTokenizer

from mar_snn.assets import TINY_LLAMBA
from mar_snn.energy import SpikeOpCounter
from mar_snn.llamba import LlambaForCausalLM
from mar_snn.neurons import record_spikes
from mar_snn.spiking import calibrate, coders, spikify

TEXT = "def read(self, size=-1):\n    return self._buffer.read(size)\n"
LAYERS = 4

#: MACs of one token in one layer, from the widths 256, 640 and 4 heads of 64 x 64
IN_PROJ = 256 * 1028  # x 256, B 256, C 256, z 256, A_log 4
OUT_PROJ = 256 * 256
FFN = 3 * 256 * 640  # gate, up, down
SCAN = 4 * (64 * 64 + 64 * 64 + 64)  # x ⊗ B, S C, D x
HEAD = 256 * 4096

#: Horowitz 2014, 45 nm, picojoules
MAC, MUL, ADD = 4.6, 3.7, 0.9


def taps(tokens: int) -> int:
    """Inputs that the convolution of one channel sees: 1, 2, 3, then always 4."""
    return 1 + 2 + 3 + 4 * (tokens - 3)


def everything_but_projections(tokens: int) -> dict[str, int]:
    """What the dense and the spiking model both do, per sequence."""
    return {
        "mac": LAYERS * (768 * taps(tokens) + SCAN * tokens) + HEAD * tokens,
        "add": tokens
        * (
            LAYERS * (768 + 256 + 2 * 256)  # conv bias, z + z_bias, two residuals
            + (2 * LAYERS + 1) * 256  # norms: sum of squares and epsilon
        ),
        "mul": tokens
        * (
            LAYERS * 4 * 64 * 64  # decay x state
            + LAYERS * 2 * 256  # silu(z) and gate
            + LAYERS * 2 * 640  # silu(gate) and product
            + (2 * LAYERS + 1) * (3 * 256 + 1)  # norms
        ),
    }


@pytest.fixture(scope="module")
def student():
    model = LlambaForCausalLM.from_pretrained(TINY_LLAMBA, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(TINY_LLAMBA)(
        TEXT, return_tensors="pt"
    ).input_ids
    spikify(model.eval())
    calibrate(model, [{"input_ids": ids}])
    return model, ids


def test_the_totals_of_the_tiny_model_are_those_worked_out_by_hand(student):
    model, ids = student
    tokens = ids.shape[1]
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(ids, use_cache=False)
    report = counter.report(profile="horowitz-45nm-fp32", per="run")
    report.assert_complete()

    shared = everything_but_projections(tokens)
    shared_pj = MAC * shared["mac"] + ADD * shared["add"] + MUL * shared["mul"]
    projections = LAYERS * tokens * (IN_PROJ + OUT_PROJ + FFN)
    dense_pj = shared_pj + MAC * projections

    spikes = record_spikes(model, ids, use_cache=False)
    #: outputs that a spike at each site reaches
    reach = {
        "mixer.in_neuron": 1028,
        "mixer.out_neuron": 256,
        "mlp.in_neuron": 2 * 640,
        "mlp.out_neuron": 256,
    }
    synops = resets = 0
    for name, coder in coders(model):
        fired = int(spikes[coder].abs().sum())
        resets += fired
        synops += fired * reach[name.split(".", 3)[3]]
    # channels of the four sites; T = 4: 8 comparisons and 3 leaks for each
    coded = LAYERS * tokens * (256 + 256 + 256 + 640)
    # outputs of the projections are rescaled between the four planes
    rescaled = LAYERS * tokens * 3 * (1028 + 256 + 2 * 640 + 256)
    neurons_pj = ADD * (8 * coded + resets) + MUL * (3 * coded + rescaled)
    spiking_pj = shared_pj + ADD * synops + neurons_pj

    assert report.total.mac == shared["mac"]
    assert report.total.dense_mac == shared["mac"] + projections
    assert report.total.sop_unit == synops
    assert report.baseline_pj == pytest.approx(dense_pj, rel=1e-12)
    assert report.energy_pj == pytest.approx(spiking_pj, rel=1e-12)
    assert report.ratio == pytest.approx(dense_pj / spiking_pj, rel=1e-12)


def test_one_token_of_the_dense_tiny_model_is_4_5_million_macs():
    # 4 (263,168 + 65,536 + 491,520 + 33,024 + 4 x 768) + 1,048,576
    tokens = 1000
    macs = everything_but_projections(tokens)["mac"] / tokens
    macs += LAYERS * (IN_PROJ + OUT_PROJ + FFN)
    assert round(macs) == 4_473_838
