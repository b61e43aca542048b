"""Running examples/energy_report.py on small models."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib.figure import Figure

from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import SpikingConfig, spikify
from tests.seed import SEED


@pytest.fixture(scope="module")
def example(load_example) -> ModuleType:
    return load_example("energy_report")


@pytest.fixture(scope="module")
def models(tmp_path_factory, byte_tokenizer) -> Path:
    """A folder with a random Llamba of bytes, and with its spiking copy."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(SEED)
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
def nets(monkeypatch) -> None:
    """The module energy_nets can be imported, as if it stood beside the user."""
    monkeypatch.delitem(sys.modules, "energy_nets", raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parent)


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
