"""Rows for other programs."""

import csv
import io
import re
from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.exports import csv_rows, latex
from tests.energy.energy_runs import RUN
from tests.energy.test_profiles import own_profile


@pytest.fixture
def report():
    return EnergyReport.of(RUN, "horowitz-45nm-fp32")


def test_the_csv_has_a_line_for_each_module(report):
    lines = list(csv.DictReader(io.StringIO(csv_rows(report))))
    assert [line["name"] for line in lines] == [row.name for row in report.rows]
    up_proj = lines[1]
    assert (up_proj["ac_add"], up_proj["mac"], up_proj["dense_model_mac"]) == (
        "150", "0", "1000",
    )  # fmt: skip
    assert (up_proj["weight_touched_bytes"], up_proj["T"]) == ("600", "4")
    assert (up_proj["columns_touched"], up_proj["columns"]) == ("15", "20")
    assert up_proj["detection"] == "declared"
    assert float(up_proj["energy_pj_per_token"]) == pytest.approx(18)
    assert float(up_proj["dense_pj_per_token"]) == pytest.approx(460)
    assert sum(float(line["share"]) for line in lines) == pytest.approx(1)


def test_no_two_columns_of_the_csv_have_one_name(report):
    header = csv_rows(report).splitlines()[0].split(",")
    assert len(header) == len(set(header))


def test_a_report_of_nothing_has_a_header_alone():
    empty = EnergyReport.of(replace(RUN, rows=()), "horowitz-45nm-fp32")
    assert len(csv_rows(empty).splitlines()) == 1


def test_the_table_for_latex_has_rules_groups_traffic_and_baselines(report):
    text = latex(report)
    assert text.startswith("\\begin{table}\n\\centering\n\\caption{Modelled energy per")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n\\end{table}\n")
    # below the header, before the total, the traffic and the baselines
    assert text.count("\\midrule") == 4
    assert r"lm\_head & 50 & 0 & 0 & 230 pJ & 87.0 \% & 230 pJ & 1.00x \\" in text
    assert r"total & 50 & 20 & 2 & 264 pJ & 100.0 \% & 690 pJ & 2.61x \\" in text
    assert (
        r"weights once a call, SRAM &  &  &  & 414 pJ--1.76 nJ &  & 840 pJ--2.19 nJ"
        r" & 1.24--2.03x \\"
    ) in text
    assert r"zero-skipping dense &  &  &  & 264 pJ &  & 253--322 pJ & 0.96" in text


def test_every_line_of_the_latex_table_has_as_many_columns(report):
    rows = [line for line in latex(report).splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}
    assert r"\begin{tabular}{lrrrrrrr}" in latex(report)


def test_the_caption_says_what_is_left_out_and_what_it_is_not(report):
    caption = re.search(r"\\caption\{(.*)\}\n", latex(report))[1]
    assert "NOT INCLUDED: memory traffic" in caption
    assert "Not a measurement." in caption
    assert r"100 \% of calls" in caption


def test_what_latex_would_read_is_escaped():
    rows = (replace(RUN.rows[0], group="[50]%_of {a}\\b & $c^2~<#>µ·"),)
    text = latex(EnergyReport.of(replace(RUN, rows=rows), "horowitz-45nm-fp32"))
    assert (
        r"{[}50]\%\_of \{a\}\textbackslash{}b \& "
        r"\$c\textasciicircum{}2\textasciitilde{}"
        r"\textless{}\#\textgreater{}\textmu{}$\cdot$ &"
    ) in text


def test_a_profile_without_memory_leaves_its_lines_out():
    text = latex(EnergyReport.of(RUN, own_profile()))
    assert text.count("\\midrule") == 3
