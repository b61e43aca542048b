"""Running sums of counts, left on their device until somebody reads them.

Numbers that follow from shapes are added up at once. Those that depend on spikes are
scalars on a device: they are gathered during a forward pass and stacked into one vector
at its end. A pass leaves one small vector behind, and nothing waits for the device.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from mar_snn.energy.counts import BatchCounts, ByteCounts, Cost, ModuleRow, OpCounts
from mar_snn.energy.groups import group_of
from mar_snn.energy.spike_trains import SpikeTrain

__all__ = ["Deferred", "Key", "Ledger", "RowTally", "Sums", "numbers_of"]

#: A number of a row: (kind, field), such as ("ops", "mac") or ("columns", "touched").
Key = tuple[str, str]
Sums = Counter[Key]

#: What is kept of a single forward pass, in the order of its vector.
_BATCH_KEYS = [(kind, f.name) for kind in ("ops", "dense") for f in fields(OpCounts)]
_PLACE = {key: place for place, key in enumerate(_BATCH_KEYS)}
#: Scalars that are gathered before they are stacked, even within one pass.
_MANY = 4096


def numbers_of(cost: Cost) -> Iterator[tuple[Key, int | Tensor]]:
    """((kind, field), number) of everything in a cost."""
    for kind, numbers in (
        ("ops", cost.ops),
        ("dense", cost.dense),
        ("moved", cost.moved),
        ("dense_moved", cost.dense_moved),
    ):
        for name, number in numbers.items():
            yield (kind, name), number


class RowTally:
    """What the modules of one row did so far.

    Args:
        name: name of the row.
        module: the module of that name.
        group: group of the report; by default that of the module.
        phase: part of the run.
    """

    def __init__(
        self, name: str, module: nn.Module, group: str | None = None, phase: str = ""
    ) -> None:
        self.name, self.phase = name, phase
        self.type = type(module).__name__
        self.group = group_of(name, module) if group is None else group
        self.calls = 0
        #: what followed from shapes
        self.sums: Sums = Counter()
        self.time_steps, self.readout, self.detection = 0, "", ""

    def note_input(self, train: SpikeTrain, detection: str = "declared") -> None:
        """Remember what kind of spikes the module is fed."""
        self.time_steps = max(self.time_steps, train.steps)
        self.readout, self.detection = train.readout, detection

    def read(self, more: Sums) -> ModuleRow:
        """The sums, and more that were left on the device or deferred, as a row."""
        kinds: dict[str, dict[str, int]] = defaultdict(dict)
        for (kind, name), number in (self.sums + more).items():
            kinds[kind][name] = number
        return ModuleRow(
            name=self.name,
            type=self.type,
            group=self.group,
            calls=self.calls,
            ops=OpCounts(**kinds["ops"]),
            dense_ops=OpCounts(**kinds["dense"]),
            moved=ByteCounts(**kinds["moved"]),
            dense_moved=ByteCounts(**kinds["dense_moved"]),
            time_steps=self.time_steps,
            readout=self.readout,
            detection=self.detection,
            phase=self.phase,
            columns=kinds["columns"].get("all", 0),
            columns_touched=kinds["columns"].get("touched", 0),
        )


#: Reads a call whose numbers are settled late; may note in the row how they came about.
Deferred = Callable[[RowTally], Sums]


@dataclass(eq=False, slots=True)
class _Batch:
    """One forward pass of the whole model."""

    phase: str
    sums: Sums = field(default_factory=Counter)
    #: one for each device, in the order of _BATCH_KEYS
    vectors: list[Tensor] = field(default_factory=list)
    #: the row of the embedding that looked up first, and what it looked up
    first_table: RowTally | None = None
    tokens: int = 0
    deferred: list[tuple[RowTally, Deferred]] = field(default_factory=list)

    def read(self) -> BatchCounts:
        sums = Counter(self.sums)
        for row, call in self.deferred:
            sums.update(call(row))
        for vector in self.vectors:
            sums.update(dict(zip(_BATCH_KEYS, vector.tolist(), strict=True)))
        ops, dense = (
            OpCounts(**{name: n for (kind, name), n in sums.items() if kind == wanted})
            for wanted in ("ops", "dense")
        )
        return BatchCounts(
            ops=ops, dense_ops=dense, tokens=self.tokens, phase=self.phase
        )


class _Layout:
    """A sequence of scalars that passes repeat, and their sums over the passes."""

    def __init__(self, owners: Sequence[tuple[RowTally, Key]], like: Tensor) -> None:
        self.owners = owners
        self.total = torch.zeros_like(like)
        known = [i for i, (_, key) in enumerate(owners) if key in _PLACE]
        # to be copied to the device once, not at every pass
        self._sources = like.new_tensor(known)
        self._places = like.new_tensor([_PLACE[owners[i][1]] for i in known])

    def add(self, values: Tensor) -> Tensor:
        """Add one pass; returns its sums in the order of _BATCH_KEYS."""
        self.total = self.total + values
        return values.new_zeros(len(_BATCH_KEYS)).index_add(
            0, self._places, values[self._sources]
        )


def _as_int64(scalar: Tensor) -> Tensor:
    # long() is a call for every counter below, even where it changes nothing
    return scalar if scalar.dtype == torch.int64 else scalar.long()


class Ledger:
    """The sums of a run: by row, and by forward pass."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], RowTally] = {}
        self._batches: list[_Batch] = []
        self._current: _Batch | None = None
        self._gathered: dict[torch.device, list[tuple[tuple[RowTally, Key], Tensor]]]
        self._gathered = defaultdict(list)
        self._layouts: dict[object, _Layout] = {}
        self._deferred: list[tuple[RowTally, Deferred]] = []

    def row(self, name: str, module: nn.Module, group: str, phase: str) -> RowTally:
        """The row of this name, group and phase, a new one if need be."""
        key = (name, group, phase)
        if key not in self.rows:
            self.rows[key] = RowTally(name, module, group, phase)
        return self.rows[key]

    def begin_batch(self, phase: str) -> None:
        """From now on everything belongs to one forward pass as well."""
        self._current = _Batch(phase)

    def end_batch(self, *, whole: bool) -> None:
        """The pass is over; it is kept as a batch where it ran to its end."""
        self.flush()
        if whole and self._current is not None:
            self._batches.append(self._current)
        self._current = None

    def add(self, row: RowTally, cost: Cost) -> None:
        """Add one call."""
        for key, number in numbers_of(cost):
            self.add_number(row, key, number)

    def add_number(self, row: RowTally, key: Key, number: int | Tensor) -> None:
        """Add one number, or a number without dimensions on a device."""
        if isinstance(number, Tensor):
            gathered = self._gathered[number.device]
            gathered.append(((row, key), number))
            if len(gathered) >= _MANY:
                self.flush()
        elif number:
            row.sums[key] += number
            batch = self._current
            if batch is not None and key in _PLACE:
                batch.sums[key] += number
                if key == ("ops", "lookup") and batch.first_table in (None, row):
                    batch.first_table = row
                    batch.tokens += number

    def defer(self, row: RowTally, call: Deferred) -> None:
        """Add one call whose numbers are settled later."""
        self._deferred.append((row, call))
        if self._current is not None:
            self._current.deferred.append((row, call))

    def flush(self) -> None:
        """Stack what was gathered."""
        for device, gathered in self._gathered.items():
            owners, scalars = zip(*gathered, strict=True)
            with torch.no_grad():
                values = torch.stack([_as_int64(scalar) for scalar in scalars])
                layout = self._layouts.get((device, owners))
                if layout is None:
                    layout = self._layouts[device, owners] = _Layout(owners, values)
                vector = layout.add(values)
            if self._current is not None:
                self._current.vectors.append(vector)
        self._gathered.clear()

    def read_rows(self) -> list[ModuleRow]:
        """The rows that cost anything, in order of first use; waits for the device."""
        self.flush()
        more: dict[RowTally, Sums] = defaultdict(Counter)
        for layout in self._layouts.values():
            for (row, key), n in zip(layout.owners, layout.total.tolist(), strict=True):
                more[row][key] += n
        for row, call in self._deferred:
            more[row].update(call(row))
        rows = [tally.read(more[tally]) for tally in self.rows.values()]
        nothing = OpCounts(), OpCounts(), ByteCounts(), ByteCounts()
        return [
            row
            for row in rows
            if (row.ops, row.dense_ops, row.moved, row.dense_moved) != nothing
        ]

    def read_batches(self) -> tuple[BatchCounts, ...]:
        """The forward passes one by one; waits for the device."""
        return tuple(batch.read() for batch in self._batches)
