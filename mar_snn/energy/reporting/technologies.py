"""The constants that the package ships, each as its source prints it.

Left out: exp, division and other special functions and table look-ups, for which the
sources have no value; 16-bit sums at 7 nm, where sums are 32 bits wide; and every price
of a neuromorphic chip that its maker did not publish.
"""

from typing import NamedTuple

from mar_snn.energy.reporting.prices import EnergyProfile, MemoryTier, Price

__all__ = ["TECHNOLOGIES"]


class _Value(NamedTuple):
    """Picojoules, and how they were checked."""

    pj: float
    checked: str


class _Node(NamedTuple):
    """A technology: a table of one publication."""

    author: str
    source: str
    voltage_v: float | None
    #: (operation, format) -> value
    operations: dict[tuple[str, str], _Value]
    memory: tuple[MemoryTier, ...]


# Nothing was compared with the printed pages, but everything with who quotes them.
_LISTING = "gist.github.com/V0XNIHILI/2b6fa61edd4c06d9ffce5551065124c1"
_LISTED = f"equal in a public listing of the table, {_LISTING}"
_TWICE = f"equal in PMC8934428, Table 3, and in a public listing, {_LISTING}"
_ONCE_QUOTED = "equal in one public quotation of the table"
_QUOTED = "equal in several public quotations of the table"

_HOROWITZ = "Horowitz, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323"
_JOUPPI = "Jouppi et al., ISCA 2021, Table 2, doi:10.1109/ISCA52012.2021.00010"
_CACHE = "cache access, 64 bits"
_INTERFACE = "64 bits; the energy of the interface alone, says the table's footnote"


def _tier(
    name: str, kind: str, pj: tuple[float, float], source: str, note: str, checked: str
) -> MemoryTier:
    return MemoryTier(
        name=name, kind=kind, low_pj=pj[0], high_pj=pj[1], source=source, note=note,
        checked=checked,
    )  # fmt: skip


_NODES = {
    45: _Node(
        "horowitz",
        _HOROWITZ,
        0.9,
        {
            ("mul", "int8"): _Value(0.2, _LISTED),
            ("add", "int32"): _Value(0.1, _TWICE),
            ("mul", "int32"): _Value(3.1, _TWICE),
            ("add", "fp16"): _Value(0.4, _LISTED),
            ("mul", "fp16"): _Value(1.1, _LISTED),
            ("add", "fp32"): _Value(0.9, _TWICE),
            ("mul", "fp32"): _Value(3.7, _TWICE),
        },
        (
            _tier("SRAM 8 kB", "sram", (10.0, 10.0), _HOROWITZ, _CACHE, _TWICE),
            _tier("SRAM 32 kB", "sram", (20.0, 20.0), _HOROWITZ, _CACHE, _LISTED),
            _tier("SRAM 1 MB", "sram", (100.0, 100.0), _HOROWITZ, _CACHE, _LISTED),
            _tier("DRAM", "dram", (1300.0, 2600.0), _HOROWITZ, "64 bits", _LISTED),
        ),
    ),
    7: _Node(
        "jouppi",
        _JOUPPI,
        None,
        {
            ("mul", "int8"): _Value(0.07, _QUOTED),
            ("add", "int32"): _Value(0.03, _QUOTED),
            ("mul", "int32"): _Value(1.48, _ONCE_QUOTED),
            ("mul", "bf16"): _Value(0.21, _ONCE_QUOTED),
            ("add", "fp32"): _Value(0.38, _QUOTED),
            ("mul", "fp32"): _Value(1.31, _QUOTED),
        },
        (
            _tier("SRAM 8 kB", "sram", (7.5, 7.5), _JOUPPI, _CACHE, _QUOTED),
            _tier("SRAM 32 kB", "sram", (8.5, 8.5), _JOUPPI, _CACHE, _QUOTED),
            _tier("SRAM 1 MB", "sram", (14.0, 14.0), _JOUPPI, _CACHE, _QUOTED),
            _tier("HBM2", "dram", (250.0, 450.0), _JOUPPI, _INTERFACE, _QUOTED),
            _tier("GDDR6", "dram", (350.0, 480.0), _JOUPPI, _INTERFACE, _ONCE_QUOTED),
            _tier("DDR4", "dram", (1300.0, 1300.0), _JOUPPI, _INTERFACE, _ONCE_QUOTED),
        ),
    ),
}


def _profile(node_nm: int, factors: str, sums: str) -> EnergyProfile:
    """Products of two `factors`, summed as `sums`.

    Outside of a MAC, operations act on sums and states: in the format of the sums.
    """
    node = _NODES[node_nm]

    def price(operation: str, number: str, note: str = "") -> Price:
        pj, checked = node.operations[operation, number]
        return Price(value_pj=pj, source=node.source, note=note, checked=checked)

    product, addition = price("mul", factors), price("add", sums, f"{sums} addition")
    checked = dict.fromkeys((product.checked, addition.checked))
    return EnergyProfile(
        name=f"{node.author}-{node_nm}nm-{factors}",
        node_nm=float(node_nm),
        voltage_v=node.voltage_v,
        accumulator=sums,
        mac=Price(
            value_pj=round(product.value_pj + addition.value_pj, 9),
            source=node.source,
            note=f"{factors} multiplication {product.value_pj} + {sums} addition "
            f"{addition.value_pj}",
            checked="; ".join(checked),
        ),
        ac=addition,
        mul=price("mul", sums, f"{sums} multiplication"),
        add=addition,
        cmp=price(
            "add", sums, "a comparison is priced as an addition: a convention, not in "
            "the table",
        ),
        int8_mul=price("mul", "int8", "int8 multiplication"),
        int32_add=price("add", "int32", "int32 addition"),
        memory=node.memory,
    )  # fmt: skip


#: The profiles that `get_profile` knows from the start. A sum is at least as wide as
#: its products need: 8-bit products are summed in int32, bfloat16 products in fp32.
TECHNOLOGIES = (
    _profile(45, "fp32", "fp32"),
    _profile(45, "fp16", "fp16"),
    _profile(45, "int8", "int32"),
    _profile(7, "fp32", "fp32"),
    _profile(7, "bf16", "fp32"),
    _profile(7, "int8", "int32"),
)
