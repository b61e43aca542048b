"""The same counts at other prices."""

from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.profiles import available_profiles
from mar_snn.energy.reporting.sensitivity import at_profile, at_profiles
from mar_snn.energy.reporting.statistics import batch_statistics
from tests.energy.energy_runs import RUN


@pytest.fixture
def report():
    return EnergyReport.of(RUN, "horowitz-45nm-fp32")


@pytest.mark.parametrize("profile", available_profiles())
def test_counts_priced_again_are_those_of_a_report_at_that_price(report, profile):
    again, fresh = at_profile(report, profile), EnergyReport.of(RUN, profile)
    assert again.energy_pj == fresh.energy_pj
    assert again.ratio == fresh.ratio
    assert again.groups == fresh.groups
    assert batch_statistics(again) == batch_statistics(fresh)


def test_the_price_list_moves_the_ratio(report):
    # 7 nm, int8: 1500 · 0.1 = 150 against
    # 500 · 0.1 + 200 · 0.03 + 100 · 0.03 + 20 · 1.48
    assert at_profile(report, "jouppi-7nm-int8").ratio == pytest.approx(150 / 88.6)


def test_all_profiles_are_tried_unless_some_are_named(report):
    assert list(at_profiles(report)) == available_profiles()
    assert list(at_profiles(report, ["jouppi-7nm-fp32"])) == ["jouppi-7nm-fp32"]


def test_the_report_itself_stays_as_it_was(report):
    before = replace(report)
    at_profiles(report)
    assert report == before


def test_a_report_against_another_holds_no_counts_of_it(report):
    against = EnergyReport.of(RUN, "horowitz-45nm-fp32", baseline=report)
    with pytest.raises(ValueError, match="of Tiny this report holds energies: use a"):
        at_profile(against, "horowitz-45nm-fp16")
