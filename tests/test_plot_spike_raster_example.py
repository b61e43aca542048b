"""examples/plot_spike_raster.py with tiny models, and its answers to bad input."""

import runpy
import sys
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from matplotlib.image import imread
from transformers import AutoModelForCausalLM

from mar_snn import plots
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.neurons import listen_to_spikes
from mar_snn.spiking import SITES, SpikingConfig, calibrate, spikify
from tests.seed import SEED

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZES = {
    "d_model": 12,
    "n_layer": 2,
    "mlp_cfg": {"intermediate_size": 20},
    "ssm_cfg": {"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
}


def save(folder, tokenizer, spiking):
    torch.manual_seed(SEED)
    model = LlambaForCausalLM(LlambaConfig(vocab_size=256, **SIZES))
    if spiking is not None:
        spikify(model, spiking)
        calibrate(model, [{"input_ids": torch.randint(256, (1, 16))}])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spiking_llm(tmp_path_factory, byte_tokenizer):
    sites = ("mixer.in", "mixer.out", "mlp.out")
    config = SpikingConfig(time_steps=3, sites=sites)
    return save(tmp_path_factory.mktemp("spiking"), byte_tokenizer(), config)


@pytest.fixture(scope="module")
def dense_llm(tmp_path_factory, byte_tokenizer):
    return save(tmp_path_factory.mktemp("dense"), byte_tokenizer(), None)


def run(monkeypatch, script, *arguments):
    path = EXAMPLES / script
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    # where Python itself would look when it runs the script
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(path), run_name="__main__")
    return exit_.value.code


@pytest.fixture
def drawn(monkeypatch):
    """What the script hands to plot_spike_raster, which draws it as ever."""
    calls = []
    draw = plots.plot_spike_raster

    def spy(spike_seq, ax, *, tokens):
        calls.append((spike_seq, tokens, ax))
        return draw(spike_seq, ax, tokens=tokens)

    monkeypatch.setattr(plots, "plot_spike_raster", spy)
    return calls


@pytest.mark.parametrize("site", ["mixer.in", "mixer.out", "mlp.out"])
def test_a_sentence_becomes_the_raster_of_one_site(
    monkeypatch, capsys, tmp_path, spiking_llm, byte_tokenizer, drawn, site
):
    output = tmp_path / "raster.png"
    arguments = ("--model", spiking_llm, "--layer", 1, "--site", site)
    sentence = "a b\nc"
    code = run(
        monkeypatch,
        "plot_spike_raster.py",
        sentence,
        *arguments,
        "--output",
        output,
    )
    assert code == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert imread(output).shape[:2] == (750, 1500)
    ((raster, tokens, ax),) = drawn
    assert tokens == ["a", " ", "b", r"\n", "c"]
    assert ax.get_title(loc="left") == f"{site}, layer 1"
    # the same spikes, heard here: [T, 1, tokens, channels], a token's steps together
    model = AutoModelForCausalLM.from_pretrained(spiking_llm).eval()
    owner, slot, projection = SITES[site]
    module = getattr(model.backbone.layers[1], owner)
    heard = {}
    ids = byte_tokenizer()(sentence, return_tensors="pt").input_ids
    with torch.no_grad(), listen_to_spikes(lambda e: heard.update([e[:2]])):
        model(input_ids=ids)
    spike_seq = heard[getattr(module, slot)]
    assert raster.shape == (5 * 3, getattr(module, projection).in_features)
    for step in range(3):
        for token in range(5):
            expected = spike_seq[step, 0, token]
            torch.testing.assert_close(raster[3 * token + step], expected)
    assert raster.count_nonzero() > 0


def test_the_digits_network_is_drawn(monkeypatch, capsys, tmp_path, drawn):
    folder, output = tmp_path / "net", tmp_path / "raster.png"
    sizes = ("--epochs", 1, "--seeds", 1, "--time_steps", 3, "--output_dir", folder)
    assert run(monkeypatch, "swap_neurons.py", *sizes) == 0
    drawn.clear()
    arguments = ("--network", folder, "--output", output)
    for layer in (0, 1):
        command = ("plot_spike_raster.py", *arguments, "--layer", layer)
        assert run(monkeypatch, *command) == 0
    assert capsys.readouterr().out.endswith(f"{output}\n{output}\n")
    assert imread(output).shape[:2] == (750, 1500)
    (first, tokens, ax), (second, _, _) = drawn
    # eight images of three steps, 128 neurons in each layer
    assert first.shape == second.shape == (24, 128)
    assert not torch.equal(first, second)
    assert len(tokens) == 8
    assert set(tokens) <= {f"a {digit}" for digit in range(10)}
    assert ax.get_title(loc="left") == f"{folder}, layer 0"


def test_a_layer_that_the_digits_network_lacks_is_refused(
    monkeypatch, capsys, tmp_path
):
    sizes = ("--epochs", 1, "--seeds", 1, "--time_steps", 2, "--output_dir", tmp_path)
    assert run(monkeypatch, "swap_neurons.py", *sizes) == 0
    output = tmp_path / "new.png"
    arguments = ("--network", tmp_path, "--layer", 2, "--output", output)
    assert run(monkeypatch, "plot_spike_raster.py", *arguments) == 2
    message = "error: --layer must be 0 or 1 for this network, got 2\n"
    assert capsys.readouterr().err.endswith(message)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'error: which sentence? Give it in quotes: "def add(a, b):"\n'),
        (["", "--model", "."], 'error: which sentence? Give it in quotes: "def'),
        (
            ["a", "--model", "{out}/none"],
            "error: no model in {out}/none: run examples/distill_llamba.py\n",
        ),
        (
            ["--network", "{out}/none"],
            "error: no network in {out}/none: run examples/swap_neurons.py\n",
        ),
        (
            ["a", "--model", "{spiking}", "--site", "mlp.in"],
            "error: nothing spikes at mlp.in of layer 0: the model has 2 layers and 6 "
            "neurons\n",
        ),
        (
            ["a", "--model", "{spiking}", "--site", "mlp.out", "--layer", "2"],
            "error: nothing spikes at mlp.out of layer 2: the model has 2 layers and 6 "
            "neurons\n",
        ),
        (
            ["a", "--model", "{dense}"],
            "error: nothing spikes at mlp.in of layer 0: the model has 2 layers and 0 "
            "neurons\n",
        ),
        (["a", "--site", "mlp.gate"], "argument --site: invalid choice: 'mlp.gate'"),
        (["a", "--layer", "first"], "argument --layer: invalid int value: 'first'\n"),
        (["a", "--colour", "red"], "error: "),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    monkeypatch, capsys, tmp_path, spiking_llm, dense_llm, arguments, message
):
    folders = {"out": tmp_path, "spiking": spiking_llm, "dense": dense_llm}
    output = tmp_path / "raster.png"
    filled = [argument.format(**folders) for argument in arguments]
    command = ("plot_spike_raster.py", *filled, "--output", output)
    assert run(monkeypatch, *command) == 2
    shown = capsys.readouterr()
    assert message.format(**folders) in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raster.docx", "error: Format 'docx' is not supported"),
        ("none/raster.png", "error: [Errno 2] No such file or directory"),
    ],
)
def test_a_picture_that_cannot_be_written_is_an_error(
    monkeypatch, capsys, tmp_path, spiking_llm, name, message
):
    arguments = ("a", "--model", spiking_llm, "--site", "mlp.out")
    output = ("--output", tmp_path / name)
    assert run(monkeypatch, "plot_spike_raster.py", *arguments, *output) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "written"),
    [("pic", "pic.png"), ("pic.", "pic.png"), ("a.b.svg", "a.b.svg")],
)
def test_the_name_that_is_printed_is_the_file(
    monkeypatch, capsys, tmp_path, spiking_llm, name, written
):
    arguments = ("a", "--model", spiking_llm, "--site", "mlp.out")
    output = ("--output", tmp_path / name)
    assert run(monkeypatch, "plot_spike_raster.py", *arguments, *output) == 0
    assert capsys.readouterr().out == f"{tmp_path / written}\n"
    assert [path.name for path in tmp_path.iterdir()] == [written]


def test_a_folder_is_no_picture(monkeypatch, capsys, tmp_path):
    arguments = ("a", "--output", tmp_path)
    assert run(monkeypatch, "plot_spike_raster.py", *arguments) == 2
    assert "is a folder: name a picture in it" in capsys.readouterr().err


def test_nothing_is_left_in_pyplot(monkeypatch, tmp_path, spiking_llm):
    made = []
    remember = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, *a, **k: made.append(figure) or remember(figure, *a, **k),
    )
    arguments = ("a", "--model", spiking_llm, "--site", "mlp.out")
    output = ("--output", tmp_path / "raster.pdf")
    assert run(monkeypatch, "plot_spike_raster.py", *arguments, *output) == 0
    assert len(made) == 1
    assert not matplotlib.pyplot.get_fignums()
    assert (tmp_path / "raster.pdf").read_bytes().startswith(b"%PDF")
