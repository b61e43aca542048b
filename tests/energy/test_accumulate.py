"""Running sums: exact, additive, by row and by pass, and read only at the end."""

from collections import Counter

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts, accumulate
from mar_snn.energy.accumulate import Ledger, RowTally
from mar_snn.energy.counts import BatchCounts, ByteCounts, Cost
from mar_snn.energy.spike_trains import SpikeTrain


def int64(value):
    return torch.tensor(value, dtype=torch.int64)


LAYER = nn.Linear(1, 1)


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def row(ledger):
    return ledger.row("a.b", LAYER, "Linear", "")


def test_numbers_and_device_numbers_add_up_in_one_field(ledger, row):
    ledger.add(row, Cost({"mac": 3, "ac_add": int64(4)}, dense={"mac": 7}))
    ledger.add(row, Cost({"mac": int64(2**40), "ac_add": 1}))
    (read,) = ledger.read_rows()
    assert read.ops == OpCounts(mac=2**40 + 3, ac_add=5)
    assert read.dense_ops == OpCounts(mac=2**40 + 7, ac_add=1)
    assert (read.name, read.type, read.group) == ("a.b", "Linear", "Linear")
    assert read.time_steps == read.calls == 0


def test_bytes_add_up_beside_the_operations(ledger, row):
    moved = {"weight_dense": 64, "weight_touched": int64(16), "activation": 8}
    ledger.add(row, Cost({}, moved=moved, dense_moved={"weight_dense": 64}))
    ledger.add(row, Cost({}, moved={"cache": 5}))
    (read,) = ledger.read_rows()
    assert read.moved == ByteCounts(
        weight_dense=64, weight_touched=16, activation=8, cache=5
    )
    assert read.dense_moved == ByteCounts(weight_dense=64, cache=5)
    assert read.ops == read.dense_ops == OpCounts()


def test_reading_twice_gives_the_same(ledger, row):
    ledger.add(row, Cost({"add": int64(4)}))
    assert ledger.read_rows() == ledger.read_rows()


def test_reading_does_not_end_the_adding(ledger, row):
    ledger.add(row, Cost({"add": int64(4)}))
    ledger.read_rows()
    ledger.add(row, Cost({"add": int64(3)}))
    assert ledger.read_rows()[0].ops == OpCounts(add=7)


def test_rows_differ_by_name_by_group_and_by_phase(ledger):
    names = [("a", "x", ""), ("a", "x", "decode"), ("a", "y", ""), ("b", "x", "")]
    for count, (name, group, phase) in enumerate(names, start=1):
        ledger.add(ledger.row(name, LAYER, group, phase), Cost({"mul": count}))
    ledger.add(ledger.row("a", LAYER, "y", ""), Cost({"mul": 10}))
    rows = ledger.read_rows()
    assert [(r.name, r.group, r.phase) for r in rows] == names
    assert [r.ops.mul for r in rows] == [1, 2, 13, 4]


def test_a_row_that_cost_nothing_is_not_listed(ledger, row):
    ledger.add(row, Cost({"mac": 0}))
    assert ledger.read_rows() == []


def test_each_pass_is_a_batch_and_passes_add_up_to_the_row(ledger, row):
    for count in (1, 2, 3):
        ledger.begin_batch("")
        ledger.add(row, Cost({"mac": 10, "ac_add": int64(count)}, dense={"mac": 5}))
        ledger.end_batch(whole=True)
    batches = ledger.read_batches()
    assert [b.ops for b in batches] == [OpCounts(mac=10, ac_add=n) for n in (1, 2, 3)]
    assert {b.dense_ops for b in batches} == {OpCounts(mac=5)}
    (read,) = ledger.read_rows()
    assert read.ops == OpCounts(mac=30, ac_add=6)


def test_a_pass_that_did_not_end_is_no_batch_but_its_operations_ran(ledger, row):
    ledger.begin_batch("")
    ledger.add(row, Cost({"mac": int64(10)}))
    ledger.end_batch(whole=False)
    assert ledger.read_batches() == ()
    assert ledger.read_rows()[0].ops == OpCounts(mac=10)


def test_what_runs_outside_of_passes_is_in_the_rows_only(ledger, row):
    ledger.add(row, Cost({"mac": int64(10), "add": 1}))
    ledger.begin_batch("decode")
    ledger.flush()
    ledger.end_batch(whole=True)
    assert ledger.read_batches()[0].ops == OpCounts(mac=10)


def test_the_tokens_of_a_pass_are_those_of_its_first_table(ledger):
    words, places = (ledger.row(name, LAYER, "", "") for name in ("words", "places"))
    ledger.begin_batch("decode")
    for row, looked_up in ((words, 6), (places, 6), (words, 2)):
        ledger.add(row, Cost({"lookup": looked_up}))
    ledger.end_batch(whole=True)
    (batch,) = ledger.read_batches()
    # an encoder's 6 tokens and a decoder's 2 by the same table, positions apart
    both = OpCounts(lookup=14)
    assert batch == BatchCounts(ops=both, dense_ops=both, tokens=8, phase="decode")


def test_a_pass_leaves_one_vector_behind_however_many_numbers_it_made(ledger, row):
    for _ in range(3):
        ledger.begin_batch("")
        for _ in range(50):
            ledger.add(row, Cost({"ac_add": int64(1), "ac_sub": int64(2)}))
        ledger.end_batch(whole=True)
    assert [len(batch.vectors) for batch in ledger._batches] == [1, 1, 1]
    assert not ledger._gathered
    # 2 fields, executed and dense, 50 calls: once for all three passes
    assert [layout.total.shape for layout in ledger._layouts.values()] == [(200,)]
    assert {b.ops for b in ledger.read_batches()} == {OpCounts(ac_add=50, ac_sub=100)}


def test_a_pass_of_very_many_numbers_is_stacked_on_the_way(ledger, row, monkeypatch):
    monkeypatch.setattr(accumulate, "_MANY", 4)
    ledger.begin_batch("")
    for count in range(5):
        ledger.add(row, Cost({"ac_add": int64(count)}))  # executed and dense
    assert sum(map(len, ledger._gathered.values())) == 2
    ledger.end_batch(whole=True)
    assert ledger.read_batches()[0].ops == OpCounts(ac_add=10)
    assert ledger.read_rows()[0].ops == OpCounts(ac_add=10)


def test_numbers_of_other_integer_types_are_taken_too(ledger, row):
    ledger.add(row, Cost({"ac_add": torch.tensor(3, dtype=torch.int32)}))
    assert ledger.read_rows()[0].ops == OpCounts(ac_add=3)


def test_a_call_that_is_settled_late_counts_as_it_is_when_it_is_read(ledger, row):
    settled = {("ops", "mac"): 7}
    ledger.begin_batch("")
    ledger.defer(row, lambda tally: settled)
    ledger.end_batch(whole=True)
    ledger.defer(row, lambda tally: {("ops", "add"): 1})
    assert ledger.read_rows()[0].ops == OpCounts(mac=7, add=1)
    settled[("ops", "mac")] = 8
    assert ledger.read_rows()[0].ops == OpCounts(mac=8, add=1)
    assert ledger.read_batches()[0].ops == OpCounts(mac=8)


def test_columns_are_no_operations(ledger, row):
    ledger.add_number(row, ("columns", "all"), 12)
    ledger.add_number(row, ("columns", "touched"), int64(5))
    ledger.add(row, Cost({"add": 1}))
    (read,) = ledger.read_rows()
    assert (read.columns, read.columns_touched) == (12, 5)
    assert read.ops == OpCounts(add=1)


def test_a_row_remembers_the_longest_spike_train_it_was_fed():
    tally = RowTally("", LAYER)
    plane = torch.ones(1)
    tally.note_input(SpikeTrain([plane] * 3, "sum"))
    tally.note_input(SpikeTrain([plane] * 2, "sum"))
    row = tally.read(Counter())
    assert (row.time_steps, row.readout, row.detection) == (3, "sum", "declared")
    assert row.group == "Linear"
