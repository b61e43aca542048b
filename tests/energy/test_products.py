"""Every number below is derived in the comment beside it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts
from mar_snn.energy.counts import ByteCounts


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def spiking(dense: int, add: int, sub: int = 0, **others: int) -> OpCounts:
    """Counts of a projection of spikes: nothing is multiplied."""
    return OpCounts(
        dense_mac=dense, ac_add=add, ac_sub=sub, sop_unit=add + sub, **others
    )


def test_a_binary_spike_adds_one_weight_for_every_output(count_spikes):
    # 3 spikes, each reaching 3 outputs; the dense layer: 2 rows · 4 · 3
    counts = count_spikes(linear(4, 3), [[1.0, 0, 1, 0], [0, 0, 0, 1]])
    assert counts == spiking(24, add=9)


def test_a_bias_is_added_once_an_output_and_is_no_synaptic_operation(count_spikes):
    # as above, and 2 rows · 3 outputs of bias
    counts = count_spikes(linear(4, 3, bias=True), [[1.0, 0, 1, 0], [0, 0, 0, 1]])
    assert counts == spiking(24, add=9, bias_add=6)


def test_a_negative_spike_subtracts_and_does_not_cancel_a_positive_one(count_spikes):
    # two +1 and two -1, three outputs each; a signed sum would give 0
    counts = count_spikes(linear(4, 3), [[1.0, -1, 0, 0], [0, 0, -1, 1]])
    assert counts == spiking(24, add=6, sub=6)


def test_all_negative_spikes_are_as_many_operations_as_positive_ones(count_spikes):
    # two -1, three outputs each; a signed sum would give -6
    counts = count_spikes(linear(4, 3), [[-1.0, 0, 0, -1]])
    assert counts == spiking(12, add=0, sub=6)


def test_silence_costs_nothing(count_spikes):
    assert count_spikes(linear(4, 3), [[0.0, 0, 0, 0]]) == spiking(12, add=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_counts_beyond_the_precision_of_the_spikes_are_exact(count_spikes, dtype):
    # 3 · 257 spikes reaching 5 outputs: 3855, which bfloat16 would round to 3840
    layer = linear(257, 5).to(dtype)
    counts = count_spikes(layer, [[1] * 257] * 3, dtype=dtype)
    assert counts == spiking(3855, add=3855)


def test_values_that_look_like_spikes_are_multiplied_where_no_neuron_says_so(
    count_dense,
):
    # 2 rows · 4 inputs · 3 outputs
    x = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    assert count_dense(linear(4, 3), x) == OpCounts(dense_mac=24, mac=24)


def test_a_weight_of_zeros_is_still_multiplied(count_dense):
    layer = linear(4, 3)
    nn.init.zeros_(layer.weight)
    assert count_dense(layer, torch.rand(1, 4)) == OpCounts(dense_mac=12, mac=12)


def test_a_functional_projection_counts_like_a_module(count_spikes):
    # 3 spikes · 3 outputs
    counts = count_spikes(
        lambda x: F.linear(x, torch.ones(3, 4)), [[1.0, 0, 1, 0], [0, 0, 0, 1]]
    )
    assert counts == spiking(24, add=9)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 1, 2, 4)])
def test_the_shape_around_the_features_does_not_matter(count_spikes, shape):
    rows = torch.Size(shape).numel() // 4
    # one -1 in each row, five outputs
    spikes = torch.tensor([0.0, -1, 0, 0]).expand(shape).tolist()
    counts = count_spikes(linear(4, 5), spikes)
    assert counts == spiking(rows * 20, add=0, sub=rows * 5)


def test_spikes_on_the_right_of_a_product_reach_the_rows_on_its_left(count_spikes):
    # [2, 3] @ [3, 4]: four spikes, each reaching 2 rows
    counts = count_spikes(
        lambda x: torch.ones(2, 3) @ x, [[1.0, 0, 0, -1], [0, 0, 0, 0], [1, 1, 0, 0]]
    )
    assert counts == spiking(24, add=6, sub=2)


def test_batched_products_count_each_batch(count_spikes):
    # [2, 1, 2] @ [2, 2, 5]: three spikes of 5 outputs
    counts = count_spikes(
        lambda x: torch.bmm(x, torch.ones(2, 2, 5)), [[[1.0, -1]], [[0, 1]]]
    )
    assert counts == spiking(20, add=10, sub=5)


def test_einsum_is_counted_as_the_products_it_is_made_of(count_spikes):
    # two spikes reaching 3 outputs
    counts = count_spikes(
        lambda x: torch.einsum("bi,oi->bo", x, torch.ones(3, 2)), [[1.0, 0], [0, -1]]
    )
    assert counts == spiking(12, add=3, sub=3)


def test_spikes_meet_spikes_only_where_both_fire(fire, count_model):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = fire(), fire(), fire()

        def forward(self, q, k, v):
            return (self.q(q) @ self.k(k).mT) @ self.v(v)

    # Q Kᵀ with L = 2, d = 3: channel 0 fires in q twice and in k once (2 meetings),
    # channel 1 once and once (1), channel 2 never and once (0): 3 coincidences.
    q = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    k = torch.tensor([[1.0, -1, 0], [0, 0, 1]])
    # The scores are integers, not spikes; two spikes of V reach 2 rows each: 4.
    v = torch.tensor([[1.0, 0, 0], [0, 0, 1]])
    counts = count_model(Attention(), q, k, v).total()
    # dense: 2 · 2 · 3 and 2 · 3 · 2
    assert counts == OpCounts(dense_mac=24, ac_coincidence=3, ac_add=4, sop_unit=7)


def test_two_spiking_vectors_meet_in_one_number(fire, count_model):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = fire(), fire()

        def forward(self, a, b):
            return self.left(a) @ self.right(b)

    # both fire at 0 and at 2
    model = Inner()
    counts = count_model(
        model, torch.tensor([1.0, 1, -1, 0]), torch.tensor([1.0, 0, 1, 1])
    )
    assert counts.total() == OpCounts(dense_mac=4, ac_coincidence=2, sop_unit=2)


def test_a_matrix_times_a_spiking_vector_adds_columns(count_spikes):
    # two spikes, a column of 3 each
    counts = count_spikes(lambda v: torch.mv(torch.ones(3, 4), v), [1.0, 0, 0, -1])
    assert counts == spiking(12, add=3, sub=3)


@pytest.mark.parametrize(("beta", "alpha"), [(1, 1), (0, 1), (2, 3)])
def test_scaled_sums_pay_for_their_factors(count_dense, beta, alpha):
    outputs = 2 * 5  # [2, 3] @ [3, 5]
    counts = count_dense(
        lambda b, x, y: torch.addmm(b, x, y, beta=beta, alpha=alpha),
        torch.ones(5),
        torch.ones(2, 3),
        torch.ones(3, 5),
    )
    assert counts == OpCounts(
        dense_mac=30,
        mac=30,
        bias_add=outputs if beta else 0,
        mul={1: 0, 0: 0, 2: 2 * outputs}[beta],
    )


def test_matrix_vector_and_batched_sums_with_a_bias(count_dense):
    # [3, 4] @ [4] and a bias of 3
    vector = count_dense(torch.addmv, torch.ones(3), torch.ones(3, 4), torch.ones(4))
    assert vector == OpCounts(dense_mac=12, mac=12, bias_add=3)
    # two of [1, 2] @ [2, 3], and a bias for each of the 6 outputs
    batched = count_dense(
        torch.baddbmm, torch.ones(2, 1, 3), torch.ones(2, 1, 2), torch.ones(2, 2, 3)
    )
    assert batched == OpCounts(dense_mac=12, mac=12, bias_add=6)


# ---- coders: T planes behind one dense value

#: Feature 0 fires +1, then -1: the planes cancel, the spikes do not.
PLANES = torch.tensor([[[1.0, 0, 1]], [[-1, 0, 1]], [[0, 0, -1]]])


def test_opposite_spikes_of_a_coder_are_two_operations_and_not_none(
    decode, count_model
):
    model = nn.Sequential(decode("sum"), linear(3, 5))
    # three +1 and two -1 over the planes, 5 outputs each; the dense layer runs once:
    # 1 row · 3 · 5
    row = count_model(model, PLANES).rows()[-1]
    assert row.ops == spiking(15, add=15, sub=10)
    assert (row.time_steps, row.readout) == (3, "sum")


def test_a_geometric_read_out_rescales_its_sums_between_the_planes(decode, count_model):
    model = nn.Sequential(decode("geometric"), linear(3, 5, bias=True))
    row = count_model(model, PLANES).rows()[-1]
    # Horner: (3 - 1) · 5 outputs; the bias is added once
    assert row.ops == spiking(15, add=15, sub=10, mul=10, bias_add=5)
    # the dense twin multiplies and rescales nothing
    assert row.dense_ops == OpCounts(dense_mac=15, mac=15, bias_add=5)


def test_a_coder_of_one_step_is_a_neuron(decode, count_model):
    model = nn.Sequential(decode("geometric"), linear(3, 5))
    row = count_model(model, PLANES[:1]).rows()[-1]
    # two +1, 5 outputs, nothing to rescale
    assert row.ops == spiking(15, add=10)
    assert row.readout == "unit"


def test_a_coder_times_a_spike_counts_the_planes_of_the_coder(
    decode, fire, count_model
):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.coder, self.neuron = decode("sum"), fire()

        def forward(self, planes, spikes):
            return self.coder(planes) @ self.neuron(spikes)

    # the product with a value that is not unit: 3 + 2 spikes, 2 columns each; summing
    # the planes is 3 additions of 3 (one to Python's 0)
    counts = count_model(Both(), PLANES, torch.eye(3)[:, :2]).total()
    assert counts.ac_add + counts.ac_sub == 10
    assert counts.ac_coincidence == 0


def test_a_neuron_with_planes_must_say_how_they_are_read(decode, count_model):
    model = nn.Sequential(decode(None), linear(3, 5))
    with pytest.raises(ValueError, match=r"Decode declares several spike planes.*None"):
        count_model(model, PLANES)


# ---- other products, and bytes


def test_other_forms_of_a_product_count_their_products(count_dense):
    # two of [1, 2] @ [2, 3], summed: 12 products, 3 results with a bias each
    summed = count_dense(
        torch.addbmm, torch.ones(1, 3), torch.ones(2, 1, 2), torch.ones(2, 2, 3)
    )
    assert summed == OpCounts(dense_mac=12, mac=12, bias_add=3)
    vectors = (torch.ones(4), torch.ones(4))
    assert count_dense(torch.vdot, *vectors) == OpCounts(dense_mac=4, mac=4)
    # 2 rows, 3 outputs, 4 x 5 inputs, two products each, and 6 biases
    bilinear = count_dense(nn.Bilinear(4, 5, 3), torch.ones(2, 4), torch.ones(2, 5))
    assert (bilinear.mac, bilinear.add) == (2 * 2 * 3 * 4 * 5, 6)


@pytest.mark.parametrize(
    ("gelu", "extra"), [(False, {"cmp": 6}), (True, {"special": 6, "mul": 6})]
)
def test_an_activation_fused_into_a_product_costs_what_it_costs_alone(
    count_dense, gelu, extra
):
    counts = count_dense(
        lambda b, x, y: torch._addmm_activation(b, x, y, use_gelu=gelu),
        torch.ones(3),
        torch.ones(2, 4),
        torch.ones(4, 3),
    )
    assert counts == OpCounts(dense_mac=24, mac=24, bias_add=6, **extra)


def test_a_projection_reads_the_columns_that_fire_at_any_step(decode, count_model):
    model = nn.Sequential(decode("sum"), linear(3, 5, bias=True))
    row = count_model(model, PLANES).rows()[-1]
    # features 0 and 2 fire, in three planes of 6 bits; 3 x 5 weights and 5 biases
    assert row.moved == ByteCounts(
        weight_dense=80, weight_touched=2 * 20 + 20, spike_bitmap=3, activation=20
    )
    assert row.dense_moved == ByteCounts(
        weight_dense=80, weight_touched=80, activation=20 + 12
    )


def test_a_dense_projection_reads_all_its_weights_in_their_own_size(count_model):
    (row,) = count_model(linear(4, 3).bfloat16(), torch.ones(2, 4).bfloat16()).rows()
    assert row.moved == ByteCounts(
        weight_dense=24, weight_touched=24, activation=(8 + 6) * 2
    )
    assert row.dense_moved == row.moved


def test_rows_that_fire_on_the_right_choose_columns_on_the_left(fire, count_model):
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.weight = fire(), nn.Parameter(torch.ones(2, 3))

        def forward(self, x):
            return self.weight @ self.neuron(x)

    x = torch.tensor([[1.0, 0, 0, -1], [0, 0, 0, 0], [1, 1, 0, 0]])
    (row,) = count_model(Transposed(), x).rows()
    # 2 of 3 columns of 2 floats; 12 elements of 2 bits; 8 results
    assert row.moved == ByteCounts(
        weight_dense=24, weight_touched=16, spike_bitmap=3, activation=32
    )


class Experts(nn.Module):
    """Two matrices [8, 8]; the first two rows go to one, the third to the other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 8, 8, dtype=torch.bfloat16))

    def forward(self, x):
        offsets = torch.tensor([2, 3], dtype=torch.int32)
        torch.histc(offsets.float(), 2, 0, 3)
        return torch.ops.aten._grouped_mm(x.bfloat16(), self.weight, offsets)


def test_a_row_meets_the_matrix_of_its_expert_alone(count_dense):
    # 3 rows · 8 · 8
    assert count_dense(Experts(), torch.ones(3, 8)) == OpCounts(dense_mac=192, mac=192)


def test_spikes_add_the_weights_of_their_expert(count_spikes):
    # 3 spikes, each reaching 8 outputs
    counts = count_spikes(Experts(), torch.eye(8)[[0, 3, 7]].tolist())
    assert counts == spiking(192, add=24)
