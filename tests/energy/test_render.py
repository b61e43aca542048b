"""What a console shows, in 80 columns."""

import io
from dataclasses import replace

import pytest
import rich.console

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.render import measured_lines, table_of
from mar_snn.energy.reporting.sections import Section
from tests.energy.energy_runs import RUN, UP_PROJ


def text_of(renderable, width=80):
    console = rich.console.Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def report():
    return EnergyReport.of(RUN, "horowitz-45nm-fp32")


def test_everything_is_printed_together_in_its_order(report):
    text = text_of(report)
    parts = (
        "Modelled energy per token of Tiny",
        "Arithmetic by group",
        "Largest modules",
        "With the traffic of weights",
        "Baselines",
        "Break-even",
        "Over 2 batches",
        "Firing",
        "NOT INCLUDED",
        "Not a \nmeasurement.",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_no_line_is_wider_than_the_console_and_no_number_is_cut(report):
    text = text_of(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "1.24\N{EN DASH}2.03x" in text
    assert "zero-skipping dense" in text


def test_a_table_by_module_names_neurons_and_not_the_largest_modules(report):
    text = text_of(report.table("module"))
    assert "Arithmetic by module" in text
    assert "Largest modules" not in text
    assert "layers.0.mlp.in_neuron" in text_of(report.table("module"), width=120)


def test_a_model_without_neurons_shows_no_firing(report):
    text = text_of(EnergyReport.of(replace(RUN, firing={}), "horowitz-45nm-fp32"))
    assert "Firing" not in text


def test_names_with_brackets_are_no_markup():
    phases = tuple(replace(row, phase="bold") for row in RUN.rows)
    run = replace(RUN, rows=(replace(UP_PROJ, name="[red]x"), *phases))
    text = text_of(EnergyReport.of(run, "horowitz-45nm-fp32").table("module"), 120)
    assert "[red]x" in text
    assert "lm_head [bold]" in text


def test_measured_figures_stand_apart_at_the_end():
    measured = {"source": "nvml", "joules_gross": [1.5, 1.6], "warnings": []}
    text = text_of(
        EnergyReport.of(RUN, "horowitz-45nm-fp32", measured=measured), width=100
    )
    modelled, apart = text.split("Measured, never to be divided by a modelled figure")
    assert "Not a measurement." in modelled
    assert "joules_gross: 1.5, 1.6" in apart
    assert "warnings: none" in apart
    assert "nvml" not in modelled


def test_a_measurement_is_listed_entry_by_entry():
    assert measured_lines({"a": {"b": 1, "c": None}, "d": "", "e": 0}) == [
        "a.b: 1", "a.c: none", "d: none", "e: 0",
    ]  # fmt: skip


def test_a_section_without_lines_is_its_notes():
    empty = Section(title="none", header=("a",), lines=(), notes=("nothing here",))
    assert text_of(table_of(empty)) == "nothing here\n"


def test_the_last_line_of_a_total_stands_below_a_rule():
    section = Section(
        title="t", header=("a", "b"), lines=(("x", "1"), ("total", "1")), total=True
    )
    lines = [line.strip() for line in text_of(table_of(section)).splitlines()]
    assert [line.split() for line in lines[-4:]] == [["x", "1"], [], ["total", "1"], []]
