"""Train one small SpikingJelly network with three neurons, and compare them.

    python examples/swap_neurons.py
    python examples/swap_neurons.py --epochs 30 --seeds 5 --time_steps 8

scikit-learn's handwritten digits (8 x 8 pixels, a quarter held out), the same weights
and batches for every neuron: SpikingJelly's LIF, its ternary LIF with a fixed
threshold, and ATMN put in the place of the LIF by `replace_neurons`. The membrane of
all three is reset by subtraction.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from transformers import HfArgumentParser

from mar_snn.console import show_what_can_be_shown
from mar_snn.energy import SpikeOpCounter
from mar_snn.energy.counts import Firing
from mar_snn.neurons import ATMNNode, record_spikes, replace_neurons
from mar_snn.plots import plot_spike_raster
from mar_snn.provenance import machine, versions

HIDDEN_SIZE, BATCH_SIZE, LEARNING_RATE = 128, 64, 2e-3
RASTER_IMAGES = 8

console = Console()


@dataclass
class SwapArguments:
    """How long, how often, and where to."""

    epochs: int = field(default=15, metadata={"help": "passes over the training set"})
    seeds: int = field(default=3, metadata={"help": "runs with seeds 0, 1, 2, ..."})
    time_steps: int = field(default=4, metadata={"help": "steps for each image"})
    output_dir: str = field(default="outputs/swap_neurons")

    def __post_init__(self) -> None:
        for name in ("epochs", "seeds", "time_steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        if Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ValueError(f"--output_dir {self.output_dir} is a file, not a folder")


class DigitsNet(nn.Module):
    """The image at every step, two layers of neurons, logits averaged over time."""

    def __init__(self, make_neuron: Callable[[], nn.Module], time_steps: int) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.layers = nn.Sequential(
            layer.Linear(64, HIDDEN_SIZE),
            make_neuron(),
            layer.Linear(HIDDEN_SIZE, HIDDEN_SIZE),
            make_neuron(),
            layer.Linear(HIDDEN_SIZE, 10),
        )
        functional.set_step_mode(self, "m")

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, 10] of images [B, 64]; every call starts at rest."""
        functional.reset_net(self)
        return self.layers(images.expand(self.time_steps, *images.shape)).mean(0)


def lif() -> nn.Module:
    return neuron.LIFNode(v_reset=None, surrogate_function=surrogate.ATan())


def ternary_lif() -> nn.Module:
    return neuron.TernaryLIFNode(v_reset=None, surrogate_function=surrogate.ATan())


def build(name: str, time_steps: int) -> DigitsNet:
    """The network with the neuron called `name`."""
    net = DigitsNet(ternary_lif if name == "TernaryLIF" else lif, time_steps)
    if name == "ATMN":
        replace_neurons(net, ATMNNode)
    return net


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images, training labels, test labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        torch.tensor(images / 16.0, dtype=torch.float32),
        torch.tensor(labels),
        test_size=0.25,
        stratify=labels,
        random_state=seed,
    )
    return tuple(parts)


def train(net: DigitsNet, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimiser.zero_grad()
            F.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimiser.step()


@torch.no_grad()
def measure(net: DigitsNet, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Test accuracy, share of neurons that fire in a step, SynOps for each image."""
    with SpikeOpCounter(net) as counter:
        accuracy = (net(images).argmax(-1) == labels).float().mean().item()
    firing = Firing.pooled(counter.run().firing.values())
    return {
        "accuracy": accuracy,
        "firing_rate": firing.rate,
        "negative_rate": firing.p_neg,
        "synops": counter.total().sop_unit / len(images),
    }


def draw_raster(net: DigitsNet, images: Tensor, labels: Tensor, path: Path) -> None:
    """The first layer's spikes for a few test images, one after the other."""
    first, *_ = record_spikes(net, images[:RASTER_IMAGES]).values()
    # [T, B, N] -> [B T, N]
    spike_seq = first.transpose(0, 1).flatten(0, 1)
    figure = Figure(figsize=(8, 4), layout="constrained")
    shown = [str(label) for label in labels[:RASTER_IMAGES].tolist()]
    ax = plot_spike_raster(spike_seq, figure.subplots(), tokens=shown)
    ax.set_xlabel(f"handwritten digit ({net.time_steps} time steps each)")
    figure.savefig(path, dpi=150)


def mean_and_deviation(values: list[float], scale: float = 1.0) -> str:
    mean = f"{scale * statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.1f}"


def table(results: dict[str, list[dict[str, float]]]) -> Table:
    """One row for each neuron, mean ± standard deviation over the seeds."""
    rows = Table(title="Handwritten digits, held-out images")
    for heading in (
        "neuron",
        "accuracy %",
        "all spikes %",
        "-1 spikes %",
        "SynOps/image",
    ):
        rows.add_column(heading, justify="left" if heading == "neuron" else "right")
    for name, runs in results.items():
        cells = [
            mean_and_deviation([run[key] for run in runs], scale)
            for key, scale in (
                ("accuracy", 100.0),
                ("firing_rate", 100.0),
                ("negative_rate", 100.0),
                ("synops", 1.0),
            )
        ]
        rows.add_row(name, *cells)
    return rows


def run(args: SwapArguments) -> None:
    start, output = time.monotonic(), Path(args.output_dir)
    # written last: who finds it finds a finished run
    (output / "swap_neurons.json").unlink(missing_ok=True)
    results: dict[str, list[dict[str, float]]] = {}
    runs = [(n, s) for s in range(args.seeds) for n in ("LIF", "TernaryLIF", "ATMN")]
    for name, seed in track(runs, "Training", console=console, transient=True):
        images, test_images, labels, test_labels = digits(seed)
        torch.manual_seed(seed)
        net = build(name, args.time_steps)
        train(net, images, labels, args.epochs)
        results.setdefault(name, []).append(measure(net, test_images, test_labels))
    # the last network that was trained is the ATMN network of the last seed
    save_file(net.state_dict(), output / "atmn.safetensors")
    draw_raster(net, test_images, test_labels, output / "raster.png")
    report = {
        "arguments": asdict(args),
        "results": results,
        "seconds": time.monotonic() - start,
        "machine": machine(),
        "versions": versions("scikit-learn"),
    }
    (output / "swap_neurons.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(table(results))
    console.print(f"Results, weights and the raster of the first layer: {output}/")


def main() -> int:
    """Run; 0 when done, 2 after bad input."""
    try:
        (args,) = HfArgumentParser(SwapArguments).parse_args_into_dataclasses()
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # matrices this small lose time on a second thread; and the sums stay the same
    torch.set_num_threads(1)
    run(args)
    return 0


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main())
