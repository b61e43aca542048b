"""Spikes as pixels: exact where there is room, fair where several share a pixel."""

import numpy as np
import pytest
import torch

from mar_snn.spike_image import as_array, spike_image, unit_spikes

RED, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
WHITE = [1.0, 1.0, 1.0]


def image(rows, steps=1, neurons=1):
    """The picture of spikes written as [T, N] rows, red for +1 and green for -1."""
    spikes = np.array(rows, dtype=np.int8)
    return spike_image(spikes, steps, neurons, colours=(RED, GREEN)).tolist()


def test_time_runs_along_a_row_and_neurons_along_a_column():
    # three steps of two neurons: two rows of three pixels
    assert image([[1, 0], [0, -1], [0, 0]]) == [
        [[1.0, 0.0, 0.0], WHITE, WHITE],
        [WHITE, [0.0, 1.0, 0.0], WHITE],
    ]


def test_silence_is_white():
    assert image([[0, 0], [0, 0]]) == [[WHITE, WHITE], [WHITE, WHITE]]
    assert image([[0, 0], [0, 0]], steps=2, neurons=2) == [[WHITE]]


def test_one_pixel_shows_the_mean_colour_of_what_fired():
    # three +1 and one -1 in a block of 2 x 2
    assert image([[1, 1], [1, -1]], steps=2, neurons=2) == [[[0.75, 0.25, 0.0]]]


def test_a_pixel_with_fewer_spikes_is_weaker_but_never_lost():
    # 4 of 4 cells fire, then 1 of 4: 0.35 + 0.65 / 4 of the ink
    full, lone = image([[1, 1, 1, 0], [1, 1, 0, 0]], steps=2, neurons=2)
    np.testing.assert_allclose(full, [[1.0, 0.0, 0.0]], atol=1e-6)
    ink = 0.35 + 0.65 * 0.25
    np.testing.assert_allclose(lone, [[1.0, 1 - ink, 1 - ink]], atol=1e-6)


def test_a_lone_spike_among_a_million_cells_has_its_full_colour():
    spikes = np.zeros((1000, 1000), dtype=np.int8)
    spikes[999, 0] = -1
    pixels = spike_image(spikes, 100, 100, colours=(RED, GREEN))
    assert pixels.shape == (10, 10, 3)
    np.testing.assert_allclose(pixels[0, 9], GREEN, atol=1e-6)
    coloured = (pixels != 1.0).any(-1)
    assert coloured.sum() == 1


def test_pixels_at_the_edges_stand_for_fewer_spikes():
    # five steps by two: blocks of 2, 2 and 1; the last one is half red by itself
    (row,) = image([[1, 1], [1, 1], [0, 0], [0, 0], [1, -1]], steps=2, neurons=2)
    assert row == [[1.0, 0.0, 0.0], WHITE, [0.5, 0.5, 0.0]]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.half, torch.int8]
)
def test_spikes_of_every_dtype_become_int8(dtype):
    spikes = unit_spikes(torch.tensor([[1, 0, -1]], dtype=dtype))
    assert spikes.dtype == np.int8
    assert spikes.tolist() == [[1, 0, -1]]


def test_binary_spikes_may_be_boolean_or_unsigned():
    assert unit_spikes(torch.tensor([[True, False]])).tolist() == [[1, 0]]
    assert unit_spikes(np.array([[1, 0]], dtype=np.uint8)).tolist() == [[1, 0]]


def test_spikes_may_need_a_gradient():
    assert unit_spikes(torch.ones(1, 2, requires_grad=True)).tolist() == [[1, 1]]


@pytest.mark.gpu
def test_spikes_may_be_on_a_gpu():
    assert unit_spikes(torch.ones(1, 2, device="cuda")).tolist() == [[1, 1]]


def test_bfloat16_keeps_its_values():
    assert as_array(torch.tensor([0.5, 3.0], dtype=torch.bfloat16)).tolist() == [0.5, 3]
    assert as_array(np.array([0.5])).tolist() == [0.5]


@pytest.mark.parametrize("shape", [(4,), (4, 7, 16), (0, 3), (3, 0)])
def test_other_shapes_are_refused_with_the_way_out(shape):
    with pytest.raises(ValueError, match=r"must be \[T, N\]") as error:
        unit_spikes(torch.zeros(shape))
    assert f"got the shape {shape}" in str(error.value)
    assert "spike_seq.transpose(0, 1).flatten(0, 1)" in str(error.value)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.5"), (2.0, "2"), (-7.0, "-7"), (float("nan"), "nan")]
)
def test_values_that_are_not_spikes_are_refused_and_shown(value, shown):
    with pytest.raises(ValueError, match="must be -1, 0 or") as error:
        unit_spikes(torch.tensor([[1.0, value]]))
    assert f"got {shown}: pass unit spikes" in str(error.value)
