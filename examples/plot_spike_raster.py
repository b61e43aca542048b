"""Draw the spikes of one layer: of a distilled LLM, or of the digits network.

    python examples/plot_spike_raster.py "def add(a, b):" --layer 0 --site mlp.in
    python examples/plot_spike_raster.py --network outputs/swap_neurons

The folders are those that distill_llamba.py and swap_neurons.py wrote.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

import mar_snn.llamba  # noqa: F401  AutoModelForCausalLM learns of Llamba by it
from mar_snn.console import show_what_can_be_shown
from mar_snn.neurons import record_spikes
from mar_snn.plots import plot_spike_raster
from mar_snn.spiking import SITES, coders


@dataclass
class RasterArguments:
    """Whose spikes, and where the picture goes."""

    model: str = field(default="outputs/distill_llamba", metadata={"help": "folder"})
    network: str = field(default="", metadata={"help": "folder, instead of a model"})
    layer: int = field(default=0, metadata={"help": "index of the layer"})
    site: str = field(default="mlp.in", metadata={"choices": list(SITES)})
    output: str = field(default="raster.png", metadata={"help": "picture to write"})


def llm_raster(args: RasterArguments, sentence: str) -> tuple[Tensor, list[str]]:
    """The spikes [tokens T, channels] of one coder, and the tokens."""
    if not sentence:
        raise ValueError('which sentence? Give it in quotes: "def add(a, b):"')
    if not (Path(args.model) / "config.json").is_file():
        raise ValueError(f"no model in {args.model}: run examples/distill_llamba.py")
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    neurons = dict(coders(model))
    owner, slot, _ = SITES[args.site]
    name = f"backbone.layers.{args.layer}.{owner}.{slot}"
    if name not in neurons:
        raise ValueError(
            f"nothing spikes at {args.site} of layer {args.layer}: the model has "
            f"{model.config.num_hidden_layers} layers and {len(neurons)} neurons"
        )
    ids = tokenizer(sentence, return_tensors="pt").input_ids
    # [T, 1, tokens, channels] -> [tokens T, channels]
    raster = (
        record_spikes(model, ids)[neurons[name]][:, 0].transpose(0, 1).flatten(0, 1)
    )
    tokens = [tokenizer.decode(token) for token in ids[0]]
    return raster, [t.encode("unicode_escape").decode() for t in tokens]


def network_raster(folder: Path, layer: int) -> tuple[Tensor, list[str]]:
    """The spikes [images T, neurons] of one layer, and what the images show."""
    import swap_neurons  # beside this file; needs scikit-learn

    report = folder / "swap_neurons.json"
    if not report.is_file():
        raise ValueError(f"no network in {folder}: run examples/swap_neurons.py")
    trained = json.loads(report.read_text())["arguments"]
    net = swap_neurons.build("ATMN", trained["time_steps"])
    net.load_state_dict(load_file(folder / "atmn.safetensors"))
    _, images, _, labels = swap_neurons.digits(trained["seeds"] - 1)
    spikes = list(record_spikes(net, images[:8]).values())
    if layer not in (0, 1):
        raise ValueError(f"--layer must be 0 or 1 for this network, got {layer}")
    # [T, images, neurons] -> [images T, neurons]
    raster = spikes[layer].transpose(0, 1).flatten(0, 1)
    return raster, [f"a {label}" for label in labels[:8].tolist()]


def main() -> int:
    """Draw; 0 when done, 2 after bad input."""
    parser = HfArgumentParser(RasterArguments, description=__doc__)
    parser.add_argument("sentence", nargs="?", default="", help="what the LLM reads")
    try:
        args, rest = parser.parse_args_into_dataclasses()
        if args.network:
            raster, labels = network_raster(Path(args.network), args.layer)
        else:
            raster, labels = llm_raster(args, rest.sentence)
        figure = Figure(figsize=(10, 5), layout="constrained")
        ax = plot_spike_raster(raster, figure.subplots(), tokens=labels)
        ax.set_title(f"{args.network or args.site}, layer {args.layer}", loc="left")
        figure.savefig(args.output, dpi=150)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(args.output)
    return 0


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main())
