"""--compare and --measure."""

import runpy
import sys
from pathlib import Path

import pytest

from mar_snn.energy import Measurement, SpikeOpCounter
from mar_snn.energy.measured.measure import MeasuringInterrupted
from tests.energy.example.folders import (
    DENSE_PICTURES,
    SPIKING_PICTURES,
    check_folder,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "energy_report.py"


# ---- comparison


def test_two_models_are_compared_on_the_same_tokens(
    run, models, text, tmp_path, capsys
):
    options = ("--text", text, "--context", 16, "--compare", models / "dense")
    assert run(models / "spiking", *options) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    table = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    (head,) = [line.split(" | ") for line in table if line.startswith("| lm_head")]
    assert head[1] == head[2]
    assert head[4] == "1.00x"
    (total,) = [line for line in table if line.startswith("| total")]
    # the dense copy costs what the report's own dense twin does
    assert f"| {report.energy_pj / report.baseline_pj:.2f}x |" in total
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"a is {models / 'dense'}, b is {models / 'spiking'}" in shown
    assert "SynOps b" in shown


def test_a_written_report_is_compared_at_the_prices_of_this_one(
    run, models, text, tmp_path
):
    options = ("--text", text, "--context", 16)
    assert run(models / "spiking", *options) == 0
    before = (tmp_path / "out" / "report.json").rename(tmp_path / "before.json")
    at = ("--profile", "jouppi-7nm-fp32")
    assert run(models / "spiking", *options, *at, "--compare", before) == 0
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert "jouppi-7nm-fp32" in table
    ratios = [line.split(" | ")[4] for line in table.splitlines() if " | " in line][1:]
    assert set(ratios) == {"1.00x", "-"}  # looking up is unpriced


def test_reports_per_token_and_per_sample_are_not_compared(
    run, models, text, tmp_path, capsys
):
    options = ("--text", text, "--context", 16)
    assert run(models / "dense", *options, "--per", "sample") == 0
    before = (tmp_path / "out" / "report.json").rename(tmp_path / "before.json")
    assert run(models / "dense", *options, "--compare", before) == 2
    error = capsys.readouterr().err
    assert "the unit is 'sample' and 'token'" in error
    # what was counted is not lost
    check_folder(tmp_path / "out", DENSE_PICTURES)


# ---- measurement


def test_without_a_sensor_a_sentence_stands_in_the_place_of_joules(
    run, example, models, text, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        "mar_snn.energy.measured.windows.open_sensors",
        lambda asked: ([], [f"{asked}: this machine has no sensor"]),
    )
    options = ("--text", text, "--context", 16, "--measure")
    assert run(models / "dense", *options) == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    measured = Measurement.from_dict(report.measured)
    assert (measured.source, measured.joules_gross) == ("none", None)
    assert measured.warnings == ("not measured: auto: this machine has no sensor",)
    assert "this machine has no sensor" in capsys.readouterr().out.replace("\n", " ")


def test_what_is_measured_stands_beside_the_model(
    run, example, models, text, tmp_path, monkeypatch
):
    passes = []
    monkeypatch.setattr(
        example, "send_to_device", lambda batch, _: passes.append(batch) or batch
    )

    def measure(workload, *, units, meter):
        passes.clear()
        workload()
        assert len(passes) == 3  # all batches
        return Measurement(
            source="nvml",
            joules_gross=(6.0,),
            seconds=(2.0,),
            tokens=(units,),
            conditions=meter.conditions,
        )

    monkeypatch.setattr(example, "measure", measure)
    options = ("--text", text, "--context", 16, "--decode", 2, "--measure")
    assert run(models / "spiking", *options) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    measured = Measurement.from_dict(report.measured)
    # three samples of 16 tokens read and 2 written
    assert measured.tokens == (54,)
    assert measured.j_per_token.mean == 6.0 / 54
    expected = {"unit": "token", "batch": 1, "context": 16, "decode": 2}
    assert measured.conditions == expected
    # the passes of the meter are not counted
    assert report.units == sum(batch.tokens for batch in report.batches) == 54
    assert report.methodology["quantity"] == "modelled"


def test_an_interrupted_measurement_leaves_the_report(
    run, example, models, text, tmp_path, monkeypatch
):
    def measure(workload, **_):
        raise MeasuringInterrupted(
            {"workload": Measurement(source="none", warnings=("stopped",))}
        )

    monkeypatch.setattr(example, "measure", measure)
    assert run(models / "dense", "--text", text, "--context", 16, "--measure") == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    assert report.measured["warnings"] == ["stopped"]


def test_ctrl_c_leaves_with_130_and_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(SpikeOpCounter, "__enter__", interrupted)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["energy_report.py", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert exit_.value.code == 130
    assert "Interrupted: nothing more is written\n" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
