"""Prices and memories, each with its source."""

import pytest

from mar_snn.energy import EnergyProfile, OpCounts, register_profile
from mar_snn.energy.reporting import profiles
from mar_snn.energy.reporting.profiles import (
    MemoryTier,
    Price,
    available_profiles,
    get_profile,
)

SHIPPED = [
    "horowitz-45nm-fp16", "horowitz-45nm-fp32", "horowitz-45nm-int8",
    "jouppi-7nm-bf16", "jouppi-7nm-fp32", "jouppi-7nm-int8",
]  # fmt: skip


def price(value_pj):
    return Price(value_pj=value_pj, source="a data sheet, table 1")


def tier(**values):
    given = {"name": "cache", "kind": "sram", "low_pj": 2.0, "high_pj": 4.0}
    return MemoryTier(**given | {"source": "a data sheet, table 2"} | values)


def own_profile(name="own", **prices):
    required = dict.fromkeys(("mac", "ac", "mul", "add"), price(1.0))
    return EnergyProfile(
        name=name, node_nm=7.0, voltage_v=0.7, accumulator="fp32", **required | prices
    )


@pytest.fixture(autouse=True)
def profiles_as_before(monkeypatch):
    monkeypatch.setattr(profiles, "_profiles", dict(profiles._profiles))


@pytest.mark.parametrize(
    ("name", "mac", "mul", "add", "accumulator"),
    [
        ("horowitz-45nm-fp32", 4.6, 3.7, 0.9, "fp32"),
        ("horowitz-45nm-fp16", 1.5, 1.1, 0.4, "fp16"),
        # int8 · int8 = 0.2, summed in 32 bits: 0.1; other products are 32 bits wide
        ("horowitz-45nm-int8", 0.3, 3.1, 0.1, "int32"),
    ],
)
def test_the_figures_at_45_nm_are_those_of_horowitz(name, mac, mul, add, accumulator):
    profile = get_profile(name)
    assert (profile.mac.value_pj, profile.mul.value_pj) == (mac, mul)
    assert profile.add.value_pj == profile.ac.value_pj == add
    assert profile.accumulator == accumulator
    assert (profile.node_nm, profile.voltage_v) == (45.0, 0.9)
    assert profile.special is profile.lookup is None
    assert (profile.int8_mul.value_pj, profile.int32_add.value_pj) == (0.2, 0.1)
    for entry in profile.prices.values():
        assert "10.1109/ISSCC.2014.6757323" in entry.source
    assert "convention" in profile.cmp.note


@pytest.mark.parametrize(
    ("name", "mac", "mul", "add", "accumulator"),
    [
        # 1.31 + 0.38
        ("jouppi-7nm-fp32", 1.69, 1.31, 0.38, "fp32"),
        # bfloat16 product 0.21, summed in 32 bits: 0.38
        ("jouppi-7nm-bf16", 0.59, 1.31, 0.38, "fp32"),
        # int8 product 0.07, summed in 32 bits: 0.03
        ("jouppi-7nm-int8", 0.1, 1.48, 0.03, "int32"),
    ],
)
def test_the_figures_at_7_nm_are_those_of_jouppi(name, mac, mul, add, accumulator):
    profile = get_profile(name)
    assert (profile.mac.value_pj, profile.mul.value_pj) == (mac, mul)
    assert profile.add.value_pj == profile.ac.value_pj == add
    assert profile.accumulator == accumulator
    # the paper names no voltage, and none is guessed
    assert (profile.node_nm, profile.voltage_v) == (7.0, None)
    assert (profile.int8_mul.value_pj, profile.int32_add.value_pj) == (0.07, 0.03)
    for entry in (*profile.prices.values(), *profile.memory):
        assert "Table 2, doi:10.1109/ISCA52012.2021.00010" in entry.source


@pytest.mark.parametrize(
    ("node", "tiers"),
    [
        (
            "horowitz-45nm-fp32",
            {
                "SRAM 8 kB": (10, 10),
                "SRAM 32 kB": (20, 20),
                "SRAM 1 MB": (100, 100),
                "DRAM": (1300, 2600),
            },
        ),
        (
            "jouppi-7nm-int8",
            {
                "SRAM 8 kB": (7.5, 7.5),
                "SRAM 32 kB": (8.5, 8.5),
                "SRAM 1 MB": (14, 14),
                "HBM2": (250, 450),
                "GDDR6": (350, 480),
                "DDR4": (1300, 1300),
            },
        ),
    ],
)
def test_memory_is_priced_for_an_access_of_64_bits(node, tiers):
    memory = get_profile(node).memory
    assert {t.name: (t.low_pj, t.high_pj) for t in memory} == tiers
    assert {t.access_bits for t in memory} == {64}
    assert all(t.source for t in memory)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_constant_says_how_it_was_checked(name):
    profile = get_profile(name)
    for entry in (*profile.prices.values(), *profile.memory):
        assert entry.checked.startswith("equal in ")
    # two values of different standing are both told of
    checked = get_profile("jouppi-7nm-bf16").mac.checked
    assert "one public quotation" in checked
    assert "several public quotations" in checked


def test_the_drams_at_7_nm_are_interfaces_only():
    dram = [t for t in get_profile("jouppi-7nm-fp32").memory if t.kind == "dram"]
    assert len(dram) == 3
    assert all("interface alone" in tier.note for tier in dram)


def test_a_byte_costs_its_share_of_an_access_between_the_tiers_of_its_kind():
    profile = get_profile("horowitz-45nm-fp32")
    # 10 / 8 and 100 / 8; 1300 / 8 and 2600 / 8
    assert profile.pj_per_byte("sram") == (1.25, 12.5)
    assert profile.pj_per_byte("dram") == (162.5, 325.0)
    # 250 / 8 of HBM2, 1300 / 8 of DDR4
    assert get_profile("jouppi-7nm-fp32").pj_per_byte("dram") == (31.25, 162.5)
    assert own_profile().pj_per_byte("sram") is None
    # 32 bits: 4 bytes
    assert tier(access_bits=32).pj_per_byte == (0.5, 1.0)


def test_each_operation_is_charged_once_at_its_price():
    ops = OpCounts(
        dense_mac=1000, mac=10, ac_add=20, ac_sub=30, ac_coincidence=40, sop_unit=90,
        sop_graded=7,
        add=1, bias_add=2, mul=3, cmp=4, special=5, lookup=6,
    )  # fmt: skip
    profile = get_profile("horowitz-45nm-fp32")
    # 10 · 4.6 + 90 · 0.9 + 3 · 0.9 + 3 · 3.7 + 4 · 0.9 = 46 + 81 + 2.7 + 11.1 + 3.6
    assert profile.energy_pj(ops) == pytest.approx(144.4)
    assert profile.energy_by_price_pj(ops) == pytest.approx(
        {"mac": 46.0, "ac": 81.0, "add": 2.7, "mul": 11.1, "cmp": 3.6}
    )
    assert profile.unpriced(ops) == {"special": 5, "lookup": 6}


def test_a_profile_of_ones_own_may_price_what_horowitz_does_not():
    profile = register_profile(own_profile(special=price(20.0)))
    assert get_profile("own") is profile
    assert get_profile(profile) is profile
    assert profile.energy_pj(OpCounts(special=2, mac=1)) == 41.0
    assert profile.unpriced(OpCounts(special=2, cmp=1)) == {"cmp": 1}


def test_a_price_without_a_source_is_refused():
    with pytest.raises(ValueError, match=r"price of 2.0 pJ needs a source: name the"):
        Price(value_pj=2.0, source=" ")
    with pytest.raises(ValueError, match="memory cache needs a source: name the paper"):
        tier(source="")


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_price_below_zero_is_refused(value):
    with pytest.raises(ValueError, match="must not be below zero, got"):
        price(value)


def test_a_memory_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="cache must be an interval above zero, got 4"):
        tier(low_pj=4.0, high_pj=2.0)
    with pytest.raises(ValueError, match="kind must be one of sram, dram, got 'flash'"):
        tier(kind="flash")
    with pytest.raises(ValueError, match="access_bits must be at least 1, got 0"):
        tier(access_bits=0)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'horowitz-45nm-fp32' exists; give yours"):
        register_profile(own_profile("horowitz-45nm-fp32"))


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"named 'loihi-2'; choose from horowitz-45nm"):
        get_profile("loihi-2")
    assert available_profiles() == SHIPPED
