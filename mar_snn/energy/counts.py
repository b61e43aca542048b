"""What is counted: the integer fields of a report, the cost of one call, firing."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields

from torch import Tensor

__all__ = [
    "BatchCounts",
    "ByteCounts",
    "Cost",
    "CountedRun",
    "Firing",
    "ModuleRow",
    "OpCounts",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpCounts:
    """Numbers of operations; two of them add up field by field.

    `sop_unit` is not a further operation: it is the sum of `ac_add`, `ac_sub` and
    `ac_coincidence`, the figure that the literature calls SynOps. `dense_mac` is not an
    executed operation either: it is what the same layer costs without spikes.
    """

    #: multiply-accumulates of the dense layer, padding excluded
    dense_mac: int = 0
    #: multiply-accumulates that are left
    mac: int = 0
    #: accumulations of a weight because of a +1 spike
    ac_add: int = 0
    #: accumulations of a weight because of a -1 spike
    ac_sub: int = 0
    #: accumulations because two spikes met (spikes times spikes)
    ac_coincidence: int = 0
    #: synaptic operations of unit spikes
    sop_unit: int = 0
    #: synaptic operations of integer-valued spikes
    sop_graded: int = 0
    #: additions and subtractions outside a sum of products
    add: int = 0
    #: multiplications outside a sum of products
    mul: int = 0
    #: comparisons
    cmp: int = 0
    #: exp, sigmoid, rsqrt, division and the like
    special: int = 0
    #: rows read from a table
    lookup: int = 0
    #: additions of a bias to the result of a projection
    bias_add: int = 0

    def __post_init__(self) -> None:
        for name, value in self.as_dict().items():
            if value < 0:
                raise ValueError(f"{name} counts operations, got {value}")

    def __add__(self, other: "OpCounts") -> "OpCounts":
        mine, theirs = self.as_dict(), other.as_dict()
        return OpCounts(**{name: mine[name] + theirs[name] for name in mine})

    def as_dict(self) -> dict[str, int]:
        """Field name -> number, in the order of the report's schema."""
        return asdict(self)

    @classmethod
    def sum(cls, many: "Iterable[OpCounts]") -> "OpCounts":
        """The sum of many; zero where there are none."""
        total: Counter[str] = Counter()
        for counts in many:
            total.update(counts.as_dict())
        return cls(**total)


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteCounts:
    """Bytes that have to move once for each call; two of them add up field by field."""

    #: weights, every element once a call
    weight_dense: int = 0
    #: the weights that a spike touches: columns that fire at any step, for any sample
    weight_touched: int = 0
    #: dense activations, read and written
    activation: int = 0
    #: spikes, 2 bits for each element and step
    spike_bitmap: int = 0
    #: membranes, read and written at every step
    neuron_state: int = 0
    #: states of a recurrence and caches of keys and values, read and written
    cache: int = 0

    def __add__(self, other: "ByteCounts") -> "ByteCounts":
        mine, theirs = self.as_dict(), other.as_dict()
        return ByteCounts(**{name: mine[name] + theirs[name] for name in mine})

    def as_dict(self) -> dict[str, int]:
        """Field name -> number, in the order of the report's schema."""
        return asdict(self)

    @classmethod
    def sum(cls, many: "Iterable[ByteCounts]") -> "ByteCounts":
        """The sum of many; zero where there are none."""
        return sum(many, cls())


FIELDS = frozenset(f.name for f in fields(OpCounts))
BYTE_FIELDS = frozenset(f.name for f in fields(ByteCounts))


class Cost:
    """What one call costs, and what it would cost without spikes.

    A number that depends on spikes may be an int64 tensor without dimensions, which is
    read only when a report is asked for.

    Args:
        ops: numbers by field of OpCounts.
        dense: the same call in the dense model; by default it costs the same.
        moved: numbers by field of ByteCounts.
        dense_moved: the same in the dense model; by default the same.

    Raises:
        ValueError: for a field that OpCounts or ByteCounts does not have.
    """

    __slots__ = ("dense", "dense_moved", "moved", "ops")

    def __init__(
        self,
        ops: Mapping[str, int | Tensor],
        dense: Mapping[str, int | Tensor] | None = None,
        *,
        moved: Mapping[str, int | Tensor] | None = None,
        dense_moved: Mapping[str, int | Tensor] | None = None,
    ) -> None:
        self.ops = ops
        self.dense = ops if dense is None else dense
        self.moved: Mapping[str, int | Tensor] = moved or {}
        self.dense_moved = self.moved if dense_moved is None else dense_moved
        for known, given in (
            (FIELDS, {*self.ops, *self.dense}),
            (BYTE_FIELDS, {*self.moved, *self.dense_moved}),
        ):
            if unknown := sorted(given - known):
                raise ValueError(
                    f"a cost has the fields of OpCounts and ByteCounts, got "
                    f"{', '.join(unknown)}; choose from {', '.join(sorted(known))}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Firing:
    """How often one neuron module fired, by step.

    A step is one of the T spike planes of a call; a node in step mode "s" is called
    once a step, and its calls are pooled as one step.
    """

    #: the neuron's time constant and read-out, where it has any
    tau: float | None = None
    readout: str = ""

    #: +1 spikes by step
    pos: tuple[int, ...]
    #: -1 spikes by step
    neg: tuple[int, ...]
    #: elements that could have fired, by step
    elements: tuple[int, ...]
    #: channels of the last axis (of axis 1 for images), 0 where there was no call
    channels: int = 0
    #: of those: never fired; fired at every step of every sample
    silent_channels: int = 0
    saturated_channels: int = 0

    @property
    def time_steps(self) -> int:
        """T, the number of spike planes of a call."""
        return len(self.elements)

    @property
    def p_pos(self) -> float:
        """+1 spikes per element and step."""
        return _share(sum(self.pos), sum(self.elements))

    @property
    def p_neg(self) -> float:
        """-1 spikes per element and step."""
        return _share(sum(self.neg), sum(self.elements))

    @property
    def rate(self) -> float:
        """Spikes of either sign per element and step."""
        return _share(sum(self.pos) + sum(self.neg), sum(self.elements))

    @property
    def rate_by_step(self) -> list[float]:
        """Spikes of either sign per element, for each step."""
        steps = zip(self.pos, self.neg, self.elements, strict=True)
        return [_share(pos + neg, elements) for pos, neg, elements in steps]

    @property
    def sign_balance(self) -> float:
        """(pos - neg) / (pos + neg): 1 is all +1, -1 all -1, nan without spikes."""
        pos, neg = sum(self.pos), sum(self.neg)
        return _share(pos - neg, pos + neg)

    @classmethod
    def pooled(cls, firing: "Iterable[Firing]") -> "Firing":
        """All neurons as one, a single step long."""
        many = list(firing)
        return cls(
            pos=(sum(sum(f.pos) for f in many),),
            neg=(sum(sum(f.neg) for f in many),),
            elements=(sum(sum(f.elements) for f in many),),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleRow:
    """What one module did in all its calls, the modules inside it not included."""

    #: name inside the model, "" for the model itself
    name: str
    #: class of the module
    type: str
    #: group of the report that the row belongs to
    group: str
    calls: int
    ops: OpCounts
    #: the same in the dense model: projections multiply, neurons are not there
    dense_ops: OpCounts
    #: T of the spikes that the module was fed, 0 where it was fed none
    time_steps: int = 0
    #: how those spikes are read: "unit", "sum", "geometric", "" where there were none
    readout: str = ""
    #: how the spikes were known: "declared", "inferred", "" where there were none
    detection: str = ""
    #: the part of the run that the row belongs to, see SpikeOpCounter.phase
    phase: str = ""
    moved: ByteCounts = ByteCounts()
    dense_moved: ByteCounts = ByteCounts()
    #: inputs of the projection that fired at any step for any sample, summed over the
    #: calls, and all its inputs, summed likewise
    columns_touched: int = 0
    columns: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCounts:
    """One forward pass of the whole model: what statistics are taken over."""

    ops: OpCounts
    dense_ops: OpCounts
    #: token ids that the first embedding looked up, 0 without one
    tokens: int
    phase: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedRun:
    """Everything that was counted: what a report is a function of."""

    rows: tuple[ModuleRow, ...]
    #: neuron name -> how often it fired
    firing: dict[str, Firing]
    #: calls of operations and of modules that have a rule of their own
    calls: int
    #: name of an operation or class without a rule -> its calls
    uncounted: dict[str, int]
    #: class, number of parameters, data types of the model
    model: dict[str, object]
    #: the forward passes one by one
    batches: tuple[BatchCounts, ...] = ()
    #: the counter's settings: spikes, padding, causal, and how attention and scans ran
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> OpCounts:
        """The sum of all rows."""
        return OpCounts.sum(row.ops for row in self.rows)

    @property
    def tokens(self) -> int:
        """Token ids that were looked up, by the first embedding that ran; or 0."""
        return next((row.ops.lookup for row in self.rows if row.ops.lookup), 0)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
