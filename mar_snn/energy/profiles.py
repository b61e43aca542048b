"""What an operation costs in picojoules, each figure with its source."""

from dataclasses import dataclass

from mar_snn.energy.counts import OpCounts

__all__ = [
    "EnergyProfile",
    "Price",
    "available_profiles",
    "get_profile",
    "register_profile",
]

_HOROWITZ = "Horowitz, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323"

#: Field of OpCounts -> the price that it is charged at. `dense_mac` and `sop_unit` are
#: figures about the others, so they have none.
CHARGED_AS = {
    "mac": "mac",
    "ac_add": "ac",
    "ac_sub": "ac",
    "ac_coincidence": "ac",
    "sop_graded": "sop_graded",
    "add": "add",
    "bias_add": "add",
    "mul": "mul",
    "cmp": "cmp",
    "special": "special",
    "lookup": "lookup",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The energy of one operation, and who says so.

    Raises:
        ValueError: for a negative price or one without a source.
    """

    value_pj: float
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if not self.value_pj >= 0:
            raise ValueError(f"value_pj must not be below zero, got {self.value_pj}")
        if not self.source.strip():
            raise ValueError(
                f"a price of {self.value_pj} pJ needs a source: name the paper, table "
                "or measurement it comes from"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyProfile:
    """Prices of one technology; None is unpriced: counted and named, but not paid.

    `accumulator` is the number format of the sums: its width, not that of the weights,
    decides what an accumulation costs.
    """

    name: str
    node_nm: float
    voltage_v: float
    accumulator: str
    mac: Price
    ac: Price
    mul: Price
    add: Price
    cmp: Price | None = None
    special: Price | None = None
    lookup: Price | None = None
    sop_graded: Price | None = None

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
        kinds = {kind: getattr(self, kind) for kind in CHARGED_AS.values()}
        return {kind: price for kind, price in kinds.items() if price is not None}


_profiles: dict[str, EnergyProfile] = {}


def register_profile(profile: EnergyProfile) -> EnergyProfile:
    """`profile`, known by its name from now on.

    Raises:
        ValueError: where the name is taken.
    """
    if profile.name in _profiles:
        raise ValueError(
            f"a profile named {profile.name!r} exists; give yours another name"
        )
    _profiles[profile.name] = profile
    return profile


def get_profile(profile: str | EnergyProfile) -> EnergyProfile:
    """The profile of that name; a profile is returned as it is.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(profile, EnergyProfile):
        return profile
    if profile not in _profiles:
        raise ValueError(
            f"no energy profile is named {profile!r}; choose from "
            f"{', '.join(available_profiles())}, or register_profile your own"
        )
    return _profiles[profile]


def available_profiles() -> list[str]:
    """The names that `get_profile` knows."""
    return sorted(_profiles)


def _price(value_pj: float, note: str) -> Price:
    return Price(value_pj=value_pj, source=_HOROWITZ, note=note)


_COMPARE = "a comparison is priced as an addition: a convention, not in the table"

register_profile(
    EnergyProfile(
        name="horowitz-45nm-fp32",
        node_nm=45.0,
        voltage_v=0.9,
        accumulator="fp32",
        mac=_price(4.6, "fp32 multiplication 3.7 + fp32 addition 0.9"),
        ac=_price(0.9, "fp32 addition"),
        mul=_price(3.7, "fp32 multiplication"),
        add=_price(0.9, "fp32 addition"),
        cmp=_price(0.9, _COMPARE),
    )
)
register_profile(
    EnergyProfile(
        name="horowitz-45nm-fp16",
        node_nm=45.0,
        voltage_v=0.9,
        accumulator="fp16",
        mac=_price(1.5, "fp16 multiplication 1.1 + fp16 addition 0.4"),
        ac=_price(0.4, "fp16 addition"),
        mul=_price(1.1, "fp16 multiplication"),
        add=_price(0.4, "fp16 addition"),
        cmp=_price(0.4, _COMPARE),
    )
)
register_profile(
    EnergyProfile(
        name="horowitz-45nm-int8",
        node_nm=45.0,
        voltage_v=0.9,
        accumulator="int32",
        mac=_price(0.3, "int8 multiplication 0.2 + int32 addition 0.1"),
        ac=_price(0.1, "int32 addition: sums of 8-bit weights do not fit in 8 bits"),
        mul=_price(
            3.1, "int32 multiplication: outside a MAC it acts on sums and states"
        ),
        add=_price(0.1, "int32 addition"),
        cmp=_price(0.1, _COMPARE),
    )
)
