"""examples/energy_report.py from end to end, and its answers to bad input."""

import csv
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from spikingjelly.activation_based import functional
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from mar_snn.assets import TINY_LLAMBA
from mar_snn.energy import EnergyReport, Measurement, SpikeOpCounter
from mar_snn.energy.measured.measure import MeasuringInterrupted
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.neurons import ATMNNode
from mar_snn.spiking import SpikingConfig, spikify

EXAMPLE = Path(__file__).parent.parent / "examples" / "energy_report.py"
FILES = ("report.json", "report.md", "report.tex", "rows.csv")
DENSE_PICTURES = ("groups", "traffic")
SPIKING_PICTURES = (*DENSE_PICTURES, "profiles", "break_even", "firing")

NETS = '''
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from mar_snn.neurons import ATMNNode, replace_neurons


class Net(nn.Module):
    """Three steps of a convolution and a linear layer, with neurons before them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            neuron.LIFNode(v_reset=None),
            layer.Conv2d(1, 2, 1, bias=False),
            neuron.LIFNode(v_reset=None),
            layer.Flatten(),
            layer.Linear(18, 5, bias=False),
        )
        functional.set_step_mode(self, "m")

    def forward(self, image, *, gain=1.0):
        return self.body(gain * image.expand(3, *image.shape))


def net():
    made = Net()
    replace_neurons(made, ATMNNode)
    return made


def net_and_images():
    return net(), 4 * torch.rand(5, 1, 3, 3)


def images(size):
    return 4 * torch.rand(size, 1, 3, 3)


def arguments(size):
    return (4 * torch.rand(size, 1, 3, 3),)


def keywords(size):
    return {"image": torch.rand(size, 1, 3, 3), "gain": 4.0}


def flat(size):
    return torch.rand(size, 9)


def text():
    return "no module"


class Reader(nn.Module):
    """Looks tokens up."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)

    def forward(self, ids):
        return self.head(self.table(ids))


def reader():
    return Reader(), torch.tensor([[0, 1, 2], [3, 4, 5]])
'''


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("energy_report")


@pytest.fixture(scope="module")
def models(tmp_path_factory, byte_tokenizer) -> Path:
    """A folder with a random Llamba of bytes, and with its spiking copy."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlambaConfig(
        vocab_size=256,
        d_model=16,
        n_layer=2,
        mlp_cfg={"intermediate_size": 24},
        ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
        initializer_range=0.2,
    )
    model = LlambaForCausalLM(config)
    for name in ("dense", "spiking"):
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
        spikify(model, SpikingConfig(time_steps=3))
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    """48 bytes."""
    path = tmp_path / "text.txt"
    path.write_text("what a model reads " * 3)
    path.write_text(path.read_text()[:48])
    return path


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Path:
    """The folder of the module energy_nets, which can be imported."""
    (tmp_path / "energy_nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "energy_nets", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


class Unsaved(Figure):
    """Laying out and saving are most of the time of a run."""

    def savefig(self, path: Path, **_: object) -> None:
        assert self.axes[0].has_data()
        path.touch()


@pytest.fixture
def run(example, tmp_path, monkeypatch) -> Callable[..., int]:
    """Run the example; files go to out/, empty pictures too unless they are drawn."""

    def run(*arguments: object, drawn: bool = False) -> int:
        monkeypatch.setattr(example, "Figure", Figure if drawn else Unsaved)
        words = [*arguments, "--output_dir", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["energy_report.py", *map(str, words)])
        try:
            return example.main()
        except SystemExit as exit_:
            return exit_.code

    return run


def check_folder(folder: Path, pictures: tuple[str, ...]) -> EnergyReport:
    """The report of a folder that has all files, those pictures and no others."""
    assert all((folder / name).stat().st_size > 100 for name in FILES)
    assert {path.stem for path in folder.glob("*.png")} == set(pictures)
    assert "Not a measurement" in (folder / "report.md").read_text()
    assert "\\begin{table}" in (folder / "report.tex").read_text()
    report = EnergyReport.load(folder / "report.json")
    with (folder / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [row.name for row in report.rows]
    assert sum(int(row["mac"]) for row in rows) == report.total.mac
    return report


def check_pictures(folder: Path) -> None:
    for path in folder.glob("*.png"):
        image = imread(path)
        assert image.shape[:2] == (600, 1080)
        assert image[..., :3].min() < 0.5 < image[..., :3].max()  # something is drawn


def test_without_arguments_the_tiny_llamba_reads_its_model_card(run, tmp_path, capsys):
    assert run("--context", 8, "--samples", 3, "--depth", 2, drawn=True) == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    check_pictures(tmp_path / "out")
    # 3 samples of 8 tokens; the LM head has 256 inputs and 4096 outputs
    assert report.units == 24
    assert report.groups["lm_head"].counts.dense_mac == 24 * 256 * 4096
    assert report.ratio == 1.0
    assert len(report.batches) == 3
    report.assert_complete()
    workload = report.methodology["workload"]
    assert workload["model"] == "tiny_llamba"
    assert workload["model_revision"] == "local files"
    assert workload["dataset"] == "tiny_llamba/README.md"
    assert (workload["samples"], workload["batch"], workload["context"]) == (3, 1, 8)
    assert report.methodology["model"]["dtypes"] == ["torch.bfloat16"]
    shown = capsys.readouterr().out
    assert "Arithmetic by group" in shown
    assert "backbone.layers " in shown  # two parts of the names of its modules
    assert "With the traffic of weights" in shown
    assert "NOT INCLUDED" in shown
    assert f"figures: {tmp_path / 'out'}/" in shown.replace("\n", "")


def test_a_spiking_model_is_priced_by_its_spikes(run, models, text, tmp_path, capsys):
    options = ("--text", text, "--context", 12, "--batch-size", 2, "--samples", 5)
    assert run(models / "spiking", *options, "--dtype", "float32", drawn=True) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    check_pictures(tmp_path / "out")
    # 48 bytes are four samples of 12, two batches of 2
    assert report.units == 48
    assert [batch.tokens for batch in report.batches] == [24, 24]
    assert report.methodology["workload"]["dataset"].endswith("/text.txt")
    assert report.methodology["detection"]["declared"] == 1.0
    assert report.methodology["model"]["dtypes"] == ["torch.float32"]
    (kind,) = report.methodology["temporal"]
    assert (kind["T"], kind["neurons"]) == (3, 8)  # four sites in two layers
    head = report.groups["lm_head"].counts
    assert (head.mac, head.sop_unit) == (48 * 16 * 256, 0)
    assert report.groups["ffn"].counts.mac == 0
    assert report.groups["ffn"].counts.dense_mac == 48 * 2 * 3 * 16 * 24
    assert report.total.sop_unit > 0
    assert "Break-even" in capsys.readouterr().out


def test_pictures_of_an_earlier_run_do_not_stay(run, models, text, tmp_path):
    options = ("--text", text, "--context", 24)
    assert run(models / "spiking", *options, "--compare", models / "dense") == 0
    assert (tmp_path / "out" / "comparison.md").exists()
    assert run(models / "dense", *options) == 0
    check_folder(tmp_path / "out", DENSE_PICTURES)
    assert not (tmp_path / "out" / "comparison.md").exists()


def test_several_profiles_are_priced_from_one_count(
    run, example, models, text, tmp_path, monkeypatch, capsys
):
    counted = []
    monkeypatch.setattr(
        example, "count", lambda *a, count=example.count: counted.append(count(*a))
    )
    names = ("horowitz-45nm-fp32", "horowitz-45nm-fp16", "jouppi-7nm-bf16")
    model = models / "spiking"
    assert run(model, "--text", text, "--context", 24, "--profile", *names) == 0
    assert len(counted) == 1
    first, *others = [
        check_folder(tmp_path / "out" / folder, SPIKING_PICTURES)
        for folder in ("", *names[1:])
    ]
    assert [r.profile.name for r in (first, *others)] == list(names)
    for other in others:
        assert other.rows == first.rows
        assert other.energy_pj == other.profile.energy_pj(first.total) / 48
        assert other.energy_pj != first.energy_pj
    shown = capsys.readouterr().out
    assert shown.count("Arithmetic by group") == 3
    assert "\njouppi-7nm-bf16\n" in shown


def test_decoded_tokens_are_a_phase_of_their_own(run, models, text, tmp_path):
    options = ("--text", text, "--context", 20, "--samples", 2, "--decode", 3)
    assert run(models / "spiking", *options) == 0
    report = check_folder(tmp_path / "out", SPIKING_PICTURES)
    # each of 2 samples: 20 tokens in one pass, then three passes of one token
    assert report.units == 46
    assert report.methodology["workload"]["decode"] == 3
    assert [(batch.phase, batch.tokens) for batch in report.batches] == [
        ("prefill", 20), ("decode", 1), ("decode", 1), ("decode", 1),
    ] * 2  # fmt: skip
    assert report.units_of_phase("decode") == 6
    heads = {row.phase: row for row in report.rows if row.group == "lm_head"}
    assert heads["prefill"].ops.mac == 2 * 20 * 16 * 256
    assert heads["decode"].ops.mac == 2 * 3 * 16 * 256
    # cached tokens are not read again
    assert report.phases["decode"].counts.lookup == 6


def test_tokens_are_decoded_as_generate_does(run, example, models, text, monkeypatch):
    model = LlambaForCausalLM.from_pretrained(models / "dense", dtype=torch.float32)
    ids = torch.tensor([list(text.read_bytes()[:20])])
    written = model.eval().generate(
        ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )
    fed = []
    forward = LlambaForCausalLM.forward

    def listen(self, input_ids, **keywords):
        fed.append(input_ids)
        return forward(self, input_ids, **keywords)

    monkeypatch.setattr(LlambaForCausalLM, "forward", listen)
    subject = example.Subject(
        "model", SpikeOpCounter(model), [{"input_ids": ids, "use_cache": True}], {}
    )
    options = example.Namespace(device="cpu", decode=4)
    example.run(subject, subject.batches, options)
    assert torch.equal(torch.cat(fed, dim=1), written)


def test_a_foreign_language_model_is_counted(run, byte_tokenizer, text, tmp_path):
    config = LlamaConfig(
        vocab_size=256, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    options = ("--text", text, "--context", 16, "--samples", 1, "--decode", 2)
    assert run(tmp_path / "llama", *options) == 0
    report = check_folder(tmp_path / "out", DENSE_PICTURES)
    report.assert_complete()
    assert report.groups["lm_head"].counts.mac == 18 * 8 * 256
    assert report.phases["decode"].counts.lookup == 2


# ---- modules of functions


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


def test_functions_are_found_in_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets_beside.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ["energy_report.py", "nets_beside:net_and_images", "--output-dir", "here"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert exit_.value.code == 0
    check_folder(tmp_path / "here", SPIKING_PICTURES)
    check_pictures(tmp_path / "here")


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
    assert measured.conditions == {"unit": "token", "batch": 1}
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


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no/such/model/here"], "error: no/such/model/here is no causal language"),
        (["no_module:net"], "error: no_module:net is no package.module:name: No mod"),
        (["energy_nets:nothing"], "module 'energy_nets' has no attribute 'nothing'"),
        (["energy_nets:text"], "energy_nets:text made no module but a str\n"),
        (["energy_nets:net"], "name a tensor or a function of the batch size: --inp"),
        (
            ["energy_nets:net", "--inputs", "energy_nets:picture"],
            "error: energy_nets:picture is no package.module:name",
        ),
        (
            ["energy_nets:net", "--inputs", "energy_nets:flat"],
            "error: energy_nets:net cannot run on these inputs: ",
        ),
        (
            ["energy_nets:net_and_images", "--batch-size", "6"],
            "error: less than one batch of 6: give more samples or text\n",
        ),
        (
            ["energy_nets:net_and_images", "--per", "token"],
            "error: the number of tokens is unknown",
        ),
        (["energy_nets:net", "--decode", "2"], "--decode needs a language model, not"),
        (["--profile", "loihi-2"], "invalid choice: 'loihi-2' (choose from"),
        (["--text", "no_such_text.txt"], "--text no_such_text.txt cannot be read"),
        (["--text", "EMPTY"], "has 0 tokens and a sample has 128: give more text"),
        (["--text", "BINARY"], "cannot be read: 'utf-8' codec can't decode"),
        (["--context", "100000"], "give more text or a smaller --context\n"),
        (["--tokenizer", "EMPTY"], "has no tokenizer: "),
        (["--context", "0"], "--context must be 1 or more, got 0\n"),
        (["--batch-size", "0"], "--batch must be 1 or more, got 0\n"),
        (["--samples", "-1"], "--samples must be 1 or more, got -1\n"),
        (["--depth", "0"], "--depth must be 1 or more, got 0\n"),
        (["--decode", "-1"], "--decode must be 0 or more, got -1\n"),
        (["--samples", "many"], "argument --samples: invalid int value: 'many'\n"),
        (["--colour"], "unrecognized arguments: --colour\n"),
        (["--compare", "no_such.json"], "error: --compare no_such.json: [Errno 2]"),
        (["--compare", "OTHER.json"], "OTHER.json: expected a report of schema"),
        (["--compare", "no/such/model/here"], "no/such/model/here is no causal"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    run, nets, capsys, arguments, sentence
):
    (nets / "EMPTY").write_text("")
    (nets / "BINARY").write_bytes(b"\xff\xfe\x00")
    (nets / "OTHER.json").write_text(json.dumps({"schema": "another"}))
    here = {name: nets / name for name in ("EMPTY", "BINARY", "OTHER.json")}
    assert run(*(here.get(word, word) for word in arguments)) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines(True) if "error: " in line]
    assert sentence in line
    assert "Traceback" not in shown.err
    assert "figures" not in shown.out
    assert not (nets / "out" / "report.json").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(run, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert run() == 2
    assert "File exists" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_model_that_writes_no_text_is_refused(run, tmp_path, capsys):
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, is_decoder=False,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    settings = json.loads((tmp_path / "bert" / "config.json").read_text())
    settings["model_type"] = "clip_vision_model"
    (tmp_path / "bert" / "config.json").write_text(json.dumps(settings))
    assert run(tmp_path / "bert") == 2
    assert "bert is no causal language model" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(run, models, text, capsys):
    options = ("--text", TINY_LLAMBA / "README.md", "--tokenizer", TINY_LLAMBA)
    assert run(models / "dense", *options) == 2
    error = capsys.readouterr().err
    assert f"error: {models / 'dense'} cannot run on these inputs: index out" in error


def test_a_model_without_a_cache_cannot_decode(example):
    class Forgetful(nn.Module):
        def forward(self, input_ids, use_cache):
            return {"logits": torch.zeros(1, 1, 2)}

    batch = {"input_ids": torch.tensor([[1]]), "use_cache": True}
    subject = example.Subject("it", SpikeOpCounter(Forgetful()), [batch], {"token": 1})
    options = example.Namespace(device="cpu", decode=1)
    with pytest.raises(ValueError, match="--decode needs a cache, it returns none"):
        example.run(subject, [batch], options)
