"""What one operation and one memory access cost, and who says so."""

from dataclasses import dataclass

from mar_snn.energy.counts import OpCounts

__all__ = ["CHARGED_AS", "MEMORY_KINDS", "EnergyProfile", "MemoryTier", "Price"]

#: Field of OpCounts -> the price that it is charged at. `dense_mac`, `sop_unit` and
#: `sop_graded` are figures about the others, so they have none: a graded spike k is
#: charged as the |k| accumulations that it is.
CHARGED_AS = {
    "mac": "mac",
    "ac_add": "ac",
    "ac_sub": "ac",
    "ac_coincidence": "ac",
    "add": "add",
    "bias_add": "add",
    "mul": "mul",
    "cmp": "cmp",
    "special": "special",
    "lookup": "lookup",
}

#: Kind of memory -> how it is printed.
MEMORY_KINDS = {"sram": "SRAM", "dram": "DRAM"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The energy of one operation, and who says so.

    Raises:
        ValueError: for a negative price or one without a source.
    """

    value_pj: float
    source: str
    note: str = ""
    #: how the value was compared with its source
    checked: str = ""

    def __post_init__(self) -> None:
        if not self.value_pj >= 0:
            raise ValueError(f"value_pj must not be below zero, got {self.value_pj}")
        if not self.source.strip():
            raise ValueError(
                f"a price of {self.value_pj} pJ needs a source: name the paper, table "
                "or measurement it comes from"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTier:
    """The energy of one access to a memory, between `low_pj` and `high_pj`.

    Raises:
        ValueError: for an interval that is none, a kind that is neither "sram" nor
            "dram", an access without bits, and a tier without a source.
    """

    name: str
    #: "sram" or "dram"
    kind: str
    low_pj: float
    high_pj: float
    source: str
    #: bits that one access moves
    access_bits: int = 64
    note: str = ""
    #: how the value was compared with its source
    checked: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.low_pj <= self.high_pj:
            raise ValueError(
                f"the energy of {self.name} must be an interval above zero, got "
                f"{self.low_pj} to {self.high_pj} pJ"
            )
        if self.kind not in MEMORY_KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(MEMORY_KINDS)}, got {self.kind!r}"
            )
        if self.access_bits < 1:
            raise ValueError(f"access_bits must be at least 1, got {self.access_bits}")
        if not self.source.strip():
            raise ValueError(
                f"memory {self.name} needs a source: name the paper, table or "
                "measurement its energy comes from"
            )

    @property
    def pj_per_byte(self) -> tuple[float, float]:
        """(low, high): the access shared evenly among its bytes."""
        size = self.access_bits / 8
        return self.low_pj / size, self.high_pj / size


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyProfile:
    """Prices of one technology; None is unpriced: counted and named, but not paid.

    `accumulator` is the number format of the sums: its width, not that of the weights,
    decides what an accumulation costs. `int8_mul` and `int32_add` price the quantised
    baseline, whatever the format of the other prices.
    """

    name: str
    node_nm: float
    #: None where the source does not say
    voltage_v: float | None
    accumulator: str
    mac: Price
    ac: Price
    mul: Price
    add: Price
    cmp: Price | None = None
    special: Price | None = None
    lookup: Price | None = None
    int8_mul: Price | None = None
    int32_add: Price | None = None
    memory: tuple[MemoryTier, ...] = ()

    def energy_pj(self, ops: OpCounts) -> float:
        """The energy of `ops` in picojoules, unpriced operations left out."""
        return sum(self.energy_by_price_pj(ops).values())

    def energy_by_price_pj(self, ops: OpCounts) -> dict[str, float]:
        """Price name -> picojoules, for the prices that the profile has."""
        energy: dict[str, float] = {}
        for field, kind in CHARGED_AS.items():
            price: Price | None = getattr(self, kind)
            if price is not None:
                charge = getattr(ops, field) * price.value_pj
                energy[kind] = energy.get(kind, 0.0) + charge
        return energy

    def unpriced(self, ops: OpCounts) -> dict[str, int]:
        """Field -> number of operations that this profile has no price for."""
        counts = {
            field: int(getattr(ops, field))
            for field, kind in CHARGED_AS.items()
            if getattr(self, kind) is None
        }
        return {field: count for field, count in counts.items() if count}

    @property
    def prices(self) -> dict[str, Price]:
        """Price name -> price, without the unpriced."""
        kinds = (*dict.fromkeys(CHARGED_AS.values()), "int8_mul", "int32_add")
        prices = {kind: getattr(self, kind) for kind in kinds}
        return {kind: price for kind, price in prices.items() if price is not None}

    def pj_per_byte(self, kind: str) -> tuple[float, float] | None:
        """(lowest, highest) energy of a byte over the tiers of "sram" or "dram".

        None where the profile has no memory of that kind.
        """
        tiers = [tier.pj_per_byte for tier in self.memory if tier.kind == kind]
        if not tiers:
            return None
        return min(low for low, _ in tiers), max(high for _, high in tiers)
