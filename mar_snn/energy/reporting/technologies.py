"""The constants that the package ships, each as its source prints it.

Left out, because no source that could be checked agrees on them: 16-bit floating point
at 7 nm, exp, division and other special functions, table look-ups, and every price of a
neuromorphic chip that its maker did not publish.
"""

from mar_snn.energy.reporting.prices import EnergyProfile, MemoryTier, Price

__all__ = ["TECHNOLOGIES"]

_HOROWITZ = "Horowitz, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323"
_JOUPPI = "Jouppi et al., ISCA 2021, Table 2, doi:10.1109/ISCA52012.2021.00010"

_COMPARE = "a comparison is priced as an addition: a convention, not in the table"
_INT_SUM = "int32 addition: sums of 8-bit weights do not fit in 8 bits"
_OUTSIDE = "outside a MAC it acts on sums and states, in the width of the accumulator"


def _horowitz(value_pj: float, note: str) -> Price:
    return Price(value_pj=value_pj, source=_HOROWITZ, note=note)


def _jouppi(value_pj: float, note: str) -> Price:
    return Price(value_pj=value_pj, source=_JOUPPI, note=note)


def _sram(size: str, value_pj: float, source: str) -> MemoryTier:
    return MemoryTier(
        name=f"SRAM {size}", kind="sram", low_pj=value_pj, high_pj=value_pj,
        source=source, note="cache access, 64 bits",
    )  # fmt: skip


def _dram(name: str, low_pj: float, high_pj: float, source: str) -> MemoryTier:
    return MemoryTier(
        name=name, kind="dram", low_pj=low_pj, high_pj=high_pj, source=source,
        note="64 bits; an interval, as printed" if high_pj > low_pj else "64 bits",
    )  # fmt: skip


_MEMORY_45 = (
    _sram("8 kB", 10.0, _HOROWITZ),
    _sram("32 kB", 20.0, _HOROWITZ),
    _sram("1 MB", 100.0, _HOROWITZ),
    _dram("DRAM", 1300.0, 2600.0, _HOROWITZ),
)
_MEMORY_7 = (
    _sram("8 kB", 7.5, _JOUPPI),
    _sram("32 kB", 8.5, _JOUPPI),
    _sram("1 MB", 14.0, _JOUPPI),
    _dram("HBM2", 250.0, 450.0, _JOUPPI),
    _dram("GDDR6", 350.0, 480.0, _JOUPPI),
    _dram("DDR4", 1300.0, 1300.0, _JOUPPI),
)


def _at_45_nm(
    arithmetic: str,
    accumulator: str,
    *,
    mac: tuple[float, str],
    ac: tuple[float, str],
    mul: tuple[float, str],
) -> EnergyProfile:
    add_pj = ac[0]
    return EnergyProfile(
        name=f"horowitz-45nm-{arithmetic}",
        node_nm=45.0,
        voltage_v=0.9,
        accumulator=accumulator,
        mac=_horowitz(*mac),
        ac=_horowitz(*ac),
        mul=_horowitz(*mul),
        add=_horowitz(add_pj, f"{accumulator} addition"),
        cmp=_horowitz(add_pj, _COMPARE),
        int8_mul=_horowitz(0.2, "int8 multiplication"),
        int32_add=_horowitz(0.1, "int32 addition"),
        memory=_MEMORY_45,
    )


def _at_7_nm(
    arithmetic: str,
    accumulator: str,
    *,
    mac: tuple[float, str],
    ac: tuple[float, str],
    mul: tuple[float, str],
) -> EnergyProfile:
    add_pj = ac[0]
    return EnergyProfile(
        name=f"jouppi-7nm-{arithmetic}",
        node_nm=7.0,
        voltage_v=None,
        accumulator=accumulator,
        mac=_jouppi(*mac),
        ac=_jouppi(*ac),
        mul=_jouppi(*mul),
        add=_jouppi(add_pj, f"{accumulator} addition"),
        cmp=_jouppi(add_pj, _COMPARE),
        int8_mul=_jouppi(0.07, "int8 multiplication"),
        int32_add=_jouppi(0.03, "int32 addition"),
        memory=_MEMORY_7,
    )


#: The profiles that `get_profile` knows from the start.
TECHNOLOGIES = (
    _at_45_nm(
        "fp32", "fp32",
        mac=(4.6, "fp32 multiplication 3.7 + fp32 addition 0.9"),
        ac=(0.9, "fp32 addition"),
        mul=(3.7, "fp32 multiplication"),
    ),
    _at_45_nm(
        "fp16", "fp16",
        mac=(1.5, "fp16 multiplication 1.1 + fp16 addition 0.4"),
        ac=(0.4, "fp16 addition"),
        mul=(1.1, "fp16 multiplication"),
    ),
    _at_45_nm(
        "int8", "int32",
        mac=(0.3, "int8 multiplication 0.2 + int32 addition 0.1"),
        ac=(0.1, _INT_SUM),
        mul=(3.1, f"int32 multiplication: {_OUTSIDE}"),
    ),
    _at_7_nm(
        "fp32", "fp32",
        mac=(1.69, "fp32 multiplication 1.31 + fp32 addition 0.38"),
        ac=(0.38, "fp32 addition"),
        mul=(1.31, "fp32 multiplication"),
    ),
    _at_7_nm(
        "bf16", "fp32",
        mac=(0.59, "bfloat16 multiplication 0.21 + fp32 addition 0.38"),
        ac=(0.38, "fp32 addition: bfloat16 products are summed in 32 bits"),
        mul=(1.31, f"fp32 multiplication: {_OUTSIDE}"),
    ),
    _at_7_nm(
        "int8", "int32",
        mac=(0.1, "int8 multiplication 0.07 + int32 addition 0.03"),
        ac=(0.03, _INT_SUM),
        mul=(1.48, f"int32 multiplication: {_OUTSIDE}"),
    ),
)  # fmt: skip
