"""Prices, each with its source."""

import pytest

from mar_snn.energy import EnergyProfile, OpCounts, profiles, register_profile
from mar_snn.energy.profiles import Price, available_profiles, get_profile


def price(value_pj):
    return Price(value_pj=value_pj, source="a data sheet, table 1")


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
def test_the_figures_are_those_of_horowitz(name, mac, mul, add, accumulator):
    profile = get_profile(name)
    assert (profile.mac.value_pj, profile.mul.value_pj) == (mac, mul)
    assert profile.add.value_pj == profile.ac.value_pj == add
    assert profile.accumulator == accumulator
    assert (profile.node_nm, profile.voltage_v) == (45.0, 0.9)
    assert profile.special is profile.lookup is None
    for entry in profile.prices.values():
        assert "10.1109/ISSCC.2014.6757323" in entry.source
    assert "convention" in profile.cmp.note


def test_each_operation_is_charged_once_at_its_price():
    ops = OpCounts(
        dense_mac=1000, mac=10, ac_add=20, ac_sub=30, ac_coincidence=40, sop_unit=90,
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


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_price_below_zero_is_refused(value):
    with pytest.raises(ValueError, match="must not be below zero, got"):
        price(value)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="'horowitz-45nm-fp32' exists; give yours"):
        register_profile(own_profile("horowitz-45nm-fp32"))


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"named 'loihi-2'; choose from horowitz-45nm"):
        get_profile("loihi-2")
    assert available_profiles() == [
        "horowitz-45nm-fp16", "horowitz-45nm-fp32", "horowitz-45nm-int8",
    ]  # fmt: skip
