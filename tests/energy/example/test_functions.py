"""The report of a module that package.module:function makes."""

import runpy
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional

from mar_snn.energy import EnergyReport
from mar_snn.neurons import ATMNNode
from tests.energy.example.folders import (
    DENSE_PICTURES,
    SPIKING_PICTURES,
    check_folder,
    check_pictures,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "energy_report.py"


def test_a_network_of_spikingjelly_is_counted_spike_by_spike(run, nets, tmp_path):
    assert run("energy_nets:net_and_images", "--batch-size", 2, "--seed", 7) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    # of five images four fill two batches
    assert (report.per, report.units) == ("sample", 4)
    assert len(report.batches) == 2
    workload = report.methodology["workload"]
    assert workload["dataset"] == "energy_nets:net_and_images"
    assert (workload["samples"], workload["seed"]) == (4, 7)
    assert workload["context"] is None

    torch.manual_seed(7)
    net, images = sys.modules["energy_nets"].net_and_images()
    spikes = []
    for node, fan_out in ((net.body[0], 2), (net.body[2], 5)):
        assert isinstance(node, ATMNNode)
        node.register_forward_hook(
            lambda _, __, out, fan_out=fan_out: spikes.append(
                out.count_nonzero().item() * fan_out
            )
        )
    for batch in images[:4].split(2):
        functional.reset_net(net)
        net(batch)
    assert report.total.sop_unit == sum(spikes) > 0
    # three steps, four images: nine pixels to two channels, 18 inputs to 5 outputs
    assert report.total.dense_mac == 3 * 4 * (9 * 2 + 18 * 5)


@pytest.mark.parametrize("inputs", ["images", "arguments", "keywords"])
def test_a_function_of_the_batch_size_makes_the_inputs(run, nets, tmp_path, inputs):
    given = ("--inputs", f"energy_nets:{inputs}", "--samples", 3, "--per", "run")
    assert run("energy_nets:net", *given) == 0
    report = EnergyReport.load(tmp_path / "out" / "report.json")
    assert (report.per, report.units, len(report.batches)) == ("run", 1, 3)
    assert report.total.dense_mac == 3 * 3 * (9 * 2 + 18 * 5)
    assert report.methodology["workload"]["dataset"] == f"energy_nets:{inputs}"


def test_spikes_can_be_inferred(run, nets, tmp_path):
    reports = []
    for spikes in ("declared", "inferred"):
        assert run("energy_nets:net_and_images", "--spikes", spikes) == 0
        reports.append(EnergyReport.load(tmp_path / "out" / "report.json"))
    for report, how in zip(reports, ("declared", "inferred"), strict=True):
        assert report.methodology["detection"][how] == 1.0
    assert reports[0].total.sop_unit == reports[1].total.sop_unit > 0


def test_a_module_that_looks_tokens_up_can_be_priced_per_token(run, nets, tmp_path):
    assert run("energy_nets:reader", "--per", "token") == 0
    report = EnergyReport.load(tmp_path / "out" / "report.json")
    assert (report.per, report.units) == ("token", 6)
    assert report.total.mac == 6 * 4 * 7


def test_a_recurrent_network_has_a_report(run, nets, tmp_path):
    assert run("energy_nets:lstm") == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    report.assert_complete()
    # 6 samples of 5 tokens: 4 gates of 4 units from 8 inputs and 4 states
    assert report.total.mac == 6 * 5 * 16 * 12


def test_a_model_without_weights_has_a_report_without_their_traffic(
    run, nets, tmp_path
):
    assert run("energy_nets:relu") == 0
    report = check_folder(tmp_path / "out", ("groups",))
    assert report.total.cmp == 6 * 8


def test_a_model_that_costs_nothing_is_told_so(run, nets, tmp_path, capsys):
    assert run("energy_nets:flatten") == 2
    error = capsys.readouterr().err
    assert "flatten does nothing that is counted: it only moves values" in error


def test_inputs_of_another_kind_are_named(run, nets, capsys):
    assert run("energy_nets:named") == 2
    assert "a function of the batch size" in (error := capsys.readouterr().err)
    assert error.endswith("got dict\n")


def test_a_console_that_cannot_show_everything_gets_all_files(
    run, nets, tmp_path, monkeypatch
):
    console = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert run("energy_nets:net_and_images") == 0
    console.flush()
    assert b"Reports, rows and figures" in console.buffer.getvalue()
    check_folder(tmp_path / "out", SPIKING_PICTURES)


def test_all_files_are_written_before_anything_is_printed(
    run, nets, example, tmp_path, monkeypatch
):
    def fail(*shown):
        if any(isinstance(part, EnergyReport) for part in shown):
            raise UnicodeEncodeError("ascii", "·", 0, 1, "no such character")

    monkeypatch.setattr(example.console, "print", fail)
    given = ("--compare", "energy_nets:net", "--inputs", "energy_nets:images")
    assert run("energy_nets:net", *given) == 2
    check_folder(tmp_path / "out", SPIKING_PICTURES)
    assert (tmp_path / "out" / "comparison.md").stat().st_size > 100


def test_functions_are_found_in_the_working_directory(tmp_path, monkeypatch, capsys):
    nets = Path(__file__).with_name("energy_nets.py")
    (tmp_path / "nets_beside.py").write_bytes(nets.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["energy_report.py", "nets_beside:net_and_images", "--output-dir", "here"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert exit_.value.code == 0
    check_folder(tmp_path / "here", SPIKING_PICTURES)
    check_pictures(tmp_path / "here")
