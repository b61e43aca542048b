"""The appendix."""

from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.markdown import _bullets, markdown, markdown_table
from tests.energy.energy_runs import RUN


@pytest.fixture
def text():
    return markdown(EnergyReport.of(RUN, "horowitz-45nm-fp32"))


def headings(text):
    return [line for line in text.splitlines() if line.startswith("#")]


def test_every_part_has_a_heading(text):
    assert headings(text) == [
        "# Modelled energy per token of Tiny, horowitz-45nm-fp32",
        "## Arithmetic by group",
        "## With the traffic of weights",
        "## Baselines, arithmetic only",
        "## Break-even of T·rate, arithmetic only",
        "## Over 2 batches",
        "## Firing",
        "## Arithmetic by module",
        "## Methodology",
    ]


def test_tables_have_their_numbers_and_a_bold_total(text):
    assert (
        "| ffn | 100 | 0 | 20 | 0 | 0 | 0 | 75.0 % | 18 pJ | 6.8 % | 460 pJ | 25.56x |"
        in text
    )
    assert "| **total** | 150 | 50 | 20 |" in text
    assert "| `layers.0.mlp.in_neuron` | 4 | 0.1750 | 0.400 0.150 0.080 0.070 |" in text
    assert "| `lm_head` | 50 | 50 | 0 |" in text


def test_every_table_has_as_many_cells_as_columns(text):
    tables = [b for b in text.split("\n\n") if b.startswith("|")]
    assert len(tables) == 7
    for table in tables:
        header, *lines = table.splitlines()
        assert {line.count("|") for line in lines} == {header.count("|")}


def test_baselines_are_defined_and_exclusions_counted(text):
    assert "- *quantised dense, 4 bits*: the dense model with 4-bit inputs" in text
    assert "- *zero-skipping dense*: the dense model that multiplies only where" in text
    assert "NOT INCLUDED: memory traffic" in text
    assert "Not a measurement." in text


def test_the_methodology_has_every_price_with_unit_and_source(text):
    block = text.split("## Methodology")[1]
    assert "      - value: 4.6" in block
    assert "      - unit: pJ an operation" in block
    assert "      - node_nm: 45.0" in block
    assert "doi:10.1109/ISSCC.2014.6757323" in block
    assert "- hardware: none: nothing was measured" in block


def test_measured_figures_have_a_part_of_their_own():
    measured = {"source": "none", "joules_gross": None, "warnings": ["no sensor"]}
    report = EnergyReport.of(RUN, "horowitz-45nm-fp32", measured=measured)
    part = markdown(report).split("## Measured")[1]
    assert "never to be divided by a modelled figure" in part
    assert "- source: none" in part
    assert "- joules_gross: none" in part
    assert "  - no sensor" in part
    assert "measured apart, source none" in markdown(report)


def test_without_neurons_there_is_no_firing():
    report = EnergyReport.of(replace(RUN, firing={}), "horowitz-45nm-fp32")
    assert "## Firing" not in markdown(report)
    assert "- temporal: none" in markdown(report)


def test_nested_blocks_become_nested_lists():
    block = {
        "a": 1, "b": {"c": "x"}, "d": ["one", {"T": 4, "tau": None}], "e": [], "f": 0,
        "g": {}, "h": False,
    }  # fmt: skip
    assert _bullets(block) == [
        "- a: 1", "- b:", "  - c: x", "- d:", "  - one", "  - T 4", "- e: none",
        "- f: 0", "- g: none", "- h: False",
    ]  # fmt: skip


def test_a_bar_in_a_cell_is_no_column():
    assert markdown_table(("a|b", "c"), [("x|y", "1")]) == [
        "| a\\|b | c |", "|---|---:|", "| x\\|y | 1 |",
    ]  # fmt: skip
