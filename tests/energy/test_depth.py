"""Rows cut to a depth: fewer of them, and nothing else changes."""

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter


class Deep(nn.Module):
    """Names of one to three parts."""

    def __init__(self, fire):
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(fire(), nn.Linear(4, 4, bias=False)),
            nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()),
        )
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (
            None,
            [
                ("body.0.1", "Linear", 1),
                ("body.1.0", "Linear", 1),
                ("body.1.1", "ReLU", 1),
                ("head", "Linear", 1),
            ],
        ),
        (
            2,
            [
                ("body.0", "Linear", 1),
                ("body.1", "Linear", 1),
                ("body.1", "ReLU", 1),
                ("head", "Linear", 1),
            ],
        ),
        (1, [("body", "Linear", 2), ("body", "ReLU", 1), ("head", "Linear", 1)]),
        (0, [("", "Linear", 3), ("", "ReLU", 1)]),
    ],
)
def test_rows_deeper_than_the_depth_are_pooled_by_group(fire, depth, expected):
    model = Deep(fire)
    spikes = torch.tensor([[1.0, 0, 0, 0]])
    with torch.no_grad(), SpikeOpCounter(model, depth=depth) as counter:
        model(spikes)
    rows = counter.rows()
    assert [(row.name, row.group, row.calls) for row in rows] == expected
    # 4 of the spike, 4 · 4 and 4 · 2 products, 4 comparisons, whatever the depth
    assert counter.total() == OpCounts(
        dense_mac=40, mac=24, ac_add=4, sop_unit=4, cmp=4
    )
    by_group = {row.group: 0 for row in rows}
    for row in rows:
        by_group[row.group] += row.ops.mac + row.ops.cmp
    assert by_group == {"Linear": 24, "ReLU": 4}
    # a pooled row is of its ancestor's class, and knows what fed it
    types = {None: "Linear", 2: "Sequential", 1: "Sequential", 0: "Deep"}
    assert (rows[0].type, rows[0].detection) == (types[depth], "declared")
    assert (rows[0].columns_touched, rows[0].columns) == (1, 4)
    assert counter.run().settings["depth"] == ("all" if depth is None else str(depth))


def test_a_negative_depth_is_refused():
    with pytest.raises(ValueError, match=r"0 or more, got -1: 0 is one row a group"):
        SpikeOpCounter(nn.Identity(), depth=-1)
