"""The reports in the documentation are those that the committed code would write."""

from pathlib import Path

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.profiles import get_profile
from mar_snn.energy.rules.registry import RULES_VERSION

REPORTS = Path(__file__).parents[2] / "docs" / "reports"
PICTURES = {"groups", "traffic", "profiles", "break_even", "firing"}


@pytest.fixture(params=["llamba", "vgg"])
def folder(request) -> Path:
    return REPORTS / request.param


@pytest.fixture
def report(folder) -> EnergyReport:
    return EnergyReport.load(folder / "report.json")


def test_the_text_is_what_the_counts_say(folder, report, tmp_path):
    report.to_markdown(tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == (folder / "report.md").read_text()


def test_rules_and_prices_are_those_of_today(report):
    assert report.methodology["rules"] == RULES_VERSION
    assert report.profile == get_profile(report.profile.name)
    report.assert_complete()
    assert report.methodology["detection"]["declared"] == 1.0


def test_they_come_from_a_commit_and_name_no_place_of_a_machine(folder, report):
    assert len(report.methodology["git"]) == 40
    for path in folder.glob("*.md"):
        assert "/root" not in path.read_text()
        assert "/home" not in path.read_text()
    assert " /" not in report.methodology["command"]


def test_every_figure_is_there_small_and_shown(folder):
    shown = (REPORTS / "index.md").read_text(encoding="utf-8")
    assert {path.stem for path in folder.glob("*.png")} == PICTURES
    for path in folder.glob("*.png"):
        assert path.stat().st_size < 150_000
        assert f"({folder.name}/{path.name})" in shown
