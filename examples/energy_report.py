r"""Count what a model computes, price it, and write the energy report.

    python examples/energy_report.py                                # the tiny Llamba
    python examples/energy_report.py outputs/distill_llamba --text my_text.txt \
        --compare mar_snn/assets/tiny_llamba
    python examples/energy_report.py my_nets:make_vgg --inputs my_nets:images

MODEL is the folder or hub name of a causal language model, dense or spiking, or
package.module:function, which is called without arguments and returns a module, or a
module and its inputs. Inputs are a tensor [samples, ...], or a function of the batch
size that returns a batch: a tensor, a tuple of arguments or a dictionary of keywords.
"""

import hashlib
import re
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import command
import torch
from accelerate.utils import send_to_device
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import mar_snn.llamba  # noqa: F401  AutoModelForCausalLM learns of Llamba by it
from mar_snn import plots
from mar_snn.assets import TINY_LLAMBA
from mar_snn.energy import EnergyMeter, EnergyReport, SpikeOpCounter
from mar_snn.energy.measured.measure import MeasuringInterrupted, measure
from mar_snn.energy.reporting.profiles import available_profiles
from mar_snn.energy.reporting.render import table_of
from mar_snn.energy.reporting.sections import part_section
from mar_snn.energy.reporting.sensitivity import at_profile

console = Console()
FUNCTION = re.compile(r"[\w.]+:[\w.]+")  # package.module:function
#: what transformers calls the cache, from version to version and model to model
CACHES = ("cache", "past_key_values", "cache_params")
#: options that only a language model has, and only a function
ABOUT_TEXT = ("text", "tokenizer", "context", "decode", "dtype")
ABOUT_FUNCTIONS = ("inputs",)
#: what bad input raises in what it is given to
ERRORS = (
    AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


@dataclass
class Subject:
    """A model, what it runs on, and what came out."""

    name: str
    counter: SpikeOpCounter
    #: what each call takes: an input, a tuple of them, or a dictionary of keywords
    batches: list[Any]
    #: unit -> how many of them the batches have, the usual unit first
    units: dict[str, int]
    measured: dict[str, Any] | None = None


@command.ended("nothing more is written")
def main() -> int:
    """Count, price, write and print; 0 when done."""
    options = parse_arguments()
    output = command.output_folder(options.output_dir)
    # 1. load
    counter, inputs = load_model(options.model, options)
    model = Subject(options.model, counter, *load_inputs(inputs, options))
    other = load_other(model, options) if options.compare else None
    # 2. count, once; and measure, if that is asked for
    count(model, options)
    if options.measure:
        measure_all(model, options)
    # 3. price and write, as often as there are profiles; compare
    first, *more = [price(model, name, options) for name in options.profile]
    write(first, output)
    for report in more:
        write(report, output / report.profile.name)
    (output / "comparison.md").unlink(missing_ok=True)
    found = None if other is None else EnergyReport.compare(other, first)
    if found is not None:
        (output / "comparison.md").write_text(found.to_markdown(), "utf-8")
    # 4. print, last: a console may fail, and all is written
    console.print(table_of(part_section(first, "module", options.depth)), first)
    for report in more:
        console.print(report.profile.name, table_of(part_section(report)))
    if found is not None:
        console.print(f"a is {options.compare}, b is {options.model}", found)
    console.print(f"Reports, rows and figures: {output}/")
    return 0


def parse_arguments() -> Namespace:
    """The options; leaves with a sentence and exit code 2 for bad ones."""
    parser = ArgumentParser(
        description=__doc__,
        usage="%(prog)s [MODEL] [--text FILE] ... (--help lists all)",
        formatter_class=RawDescriptionHelpFormatter,
    )
    add, names = parser.add_argument, available_profiles()
    add("model", nargs="?", metavar="MODEL", default=str(TINY_LLAMBA))
    add("--text", default=str(TINY_LLAMBA / "README.md"), help="UTF-8 file to read")
    add("--tokenizer", help="where the tokenizer is; default: MODEL")
    add("--inputs", help="package.module:name of the inputs, if MODEL is a function")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--batch-size", default=1, type=int, help="samples of a pass")
    add("--context", default=128, type=int, help="tokens of a sample of the text")
    add("--samples", default=8, type=int, help="samples at most")
    add("--decode", default=0, type=int, help="tokens to write after each sample")
    add("--seed", default=0, type=int, help="of what a function draws")
    add("--spikes", default="declared", choices=["declared", "inferred"])
    add("--profile", nargs="+", default=["horowitz-45nm-fp32"], choices=names)
    add("--per", choices=["token", "sample", "run"], help="default: token, for text")
    add("--depth", default=3, type=int, help="parts of the names of modules")
    add("--compare", metavar="OTHER", help="another MODEL, or the report.json of one")
    add("--measure", action="store_true", help="read energy sensors too: minutes")
    add("--output_dir", "--output-dir", default="outputs/energy_report")
    options = parser.parse_args()
    given = vars(options)
    for name in ("batch_size", "context", "samples", "depth", "decode"):
        if given[name] < (least := int(name != "decode")):
            option = name.replace("_", "-")
            parser.error(f"--{option} must be {least} or more, got {given[name]}")
    is_function = FUNCTION.fullmatch(options.model) is not None
    for name in ABOUT_TEXT if is_function else ABOUT_FUNCTIONS:
        if given[name] != parser.get_default(name):
            kind = "a language model" if is_function else "a package.module:function"
            parser.error(f"--{name} needs {kind}, got {options.model}")
    return options


@contextmanager
def blame(what: str) -> Iterator[None]:
    """Errors of the block as one ValueError, in one line that begins with `what`."""
    try:
        yield
    except ERRORS as error:
        raise ValueError(f"{what}: {error}") from error


def load_model(name: str, options: Namespace) -> tuple[SpikeOpCounter, Any]:
    """The counter of a model, and the inputs that came with it."""
    torch.manual_seed(options.seed)
    if FUNCTION.fullmatch(name):
        make = imported(name)
        with blame(f"{name}() failed"):
            made = make()
        module, inputs = made if isinstance(made, tuple) else (made, None)
        if not isinstance(module, nn.Module):
            raise ValueError(f"{name} made no module but a {type(module).__name__}")
    else:
        inputs = None
        with blame(f"{name} is no causal language model, nor package.module:function"):
            module = AutoModelForCausalLM.from_pretrained(name, dtype=options.dtype)
    with blame(f"--device {options.device}"):
        module = module.to(options.device).eval()
    return SpikeOpCounter(module, spikes=options.spikes), inputs


def imported(reference: str) -> Any:
    """What package.module:name names."""
    with blame(f"{reference} is no package.module:name"):
        return resolve_name(reference)


def load_inputs(inputs: Any, options: Namespace) -> tuple[list[Any], dict[str, int]]:
    """Batches of equal size for MODEL, and how much they have of each unit."""
    is_text, size = not FUNCTION.fullmatch(options.model), options.batch_size
    if is_text:
        inputs = read_text(options)
    elif options.inputs:
        inputs = imported(options.inputs)
    if not (isinstance(inputs, Tensor) or callable(inputs)):
        raise ValueError(
            "name a tensor or a function of the batch size: --inputs, got "
            f"{type(inputs).__name__}"
        )
    least = len(inputs) if isinstance(inputs, Tensor) else options.samples
    number = min(options.samples, least) // size
    if not number:
        raise ValueError(f"less than one batch of {size}: give more samples or text")
    if isinstance(inputs, Tensor):
        batches = list(inputs[: number * size].split(size))
    else:
        batches = [inputs(size) for _ in range(number)]
    if not is_text:
        return batches, {"sample": number * size}
    batches = [{"input_ids": ids, "use_cache": options.decode > 0} for ids in batches]
    tokens = number * size * (options.context + options.decode)
    return batches, {"token": tokens, "sample": number * size}


def read_text(options: Namespace) -> Tensor:
    """The tokens of the text, in rows as long as the context."""
    with blame(f"--text {options.text} cannot be read"):
        text = Path(options.text).read_text(encoding="utf-8")
    with blame(f"{options.tokenizer or options.model} has no tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    rows = len(ids) // options.context
    if not rows:
        raise ValueError(
            f"--text {options.text} has {len(ids)} tokens and a sample has "
            f"{options.context}: give more text or a smaller --context"
        )
    return torch.tensor(ids[: rows * options.context]).view(rows, -1)


def load_other(model: Subject, options: Namespace) -> EnergyReport:
    """The report of --compare at the first profile: read from a file, or counted."""
    if options.compare.endswith(".json"):
        with blame(f"--compare {options.compare}"):
            return at_profile(EnergyReport.load(options.compare), options.profile[0])
    other = replace(model, name=options.compare)
    other.counter, _ = load_model(options.compare, options)
    count(other, options)
    return price(other, options.profile[0], options)


@torch.no_grad()
def run(subject: Subject, batches: Iterable[Any], options: Namespace) -> None:
    """Each batch from rest; then a pass for each token to write, as their own phase."""
    module, phase = subject.counter.model, subject.counter.phase
    for batch in batches:
        functional.reset_net(module)
        batch = send_to_device(batch, options.device)
        with phase("prefill") if options.decode else nullcontext():
            if isinstance(batch, Mapping):
                output = module(**batch)
            else:
                output = module(*(batch if isinstance(batch, tuple) else (batch,)))
        for _ in range(options.decode):
            # a cache may be returned by one of its names and taken by another
            given = [output[name] for name in CACHES if name in set(output)]
            takes = [
                name for name in CACHES if name in signature(module.forward).parameters
            ]
            if not (given and takes):
                raise ValueError(f"--decode needs a cache, {subject.name} has none")
            next_id = output["logits"][:, -1:].argmax(-1)
            with phase("decode"):
                output = module(next_id, use_cache=True, **{takes[0]: given[0]})


def count(subject: Subject, options: Namespace) -> None:
    """Run all batches once, counted."""
    batches = track(subject.batches, "Counting", console=console, transient=True)
    with blame(f"{subject.name} cannot run on these inputs"), subject.counter:
        run(subject, batches, options)
    counted = subject.counter.run()
    if not counted.rows:
        unknown = ", ".join(counted.uncounted) or "it only moves values"
        raise ValueError(f"{subject.name} does nothing that is counted: {unknown}")


def measure_all(subject: Subject, options: Namespace) -> None:
    """Run all batches for as long as sensors need; Ctrl-C leaves what they had."""
    unit, units = next(iter(subject.units.items()))
    conditions = {"unit": unit, "batch": options.batch_size}
    if unit == "token":
        conditions |= {"context": options.context, "decode": options.decode}
    meter = EnergyMeter(conditions=conditions)
    work = partial(run, subject, subject.batches, options)
    try:
        measured = measure(work, units=units, meter=meter)
    except MeasuringInterrupted as stop:
        measured = stop.measured["workload"]
    subject.measured = measured.as_dict()


def price(subject: Subject, profile: str, options: Namespace) -> EnergyReport:
    """The counts at the prices of a profile."""
    tokens, samples = subject.units.get("token"), subject.units["sample"]
    config = getattr(subject.counter.model, "config", None)
    local = Path(subject.name)
    workload = {
        # a path says where it lay, a name of the hub whose it is
        "model": local.name if local.exists() else subject.name,
        "model_revision": getattr(config, "_commit_hash", None) or "local files",
        "dataset": options.inputs or options.model,
        "samples": samples,
        "batch": options.batch_size,
        "context": None,
        "seed": options.seed,
    }
    if tokens:
        digest = hashlib.sha256(Path(options.text).read_bytes()).hexdigest()
        workload |= {
            "dataset": "/".join(Path(options.text).parts[-2:]),
            "dataset_revision": f"sha256 {digest[:16]}",
            "context": options.context,
            "decode": options.decode,
        }
    per = options.per or next(iter(subject.units))
    told = {"per": per, "workload": workload, "measured": subject.measured}
    return subject.counter.report(profile, tokens=tokens, samples=samples, **told)


def write(report: EnergyReport, folder: Path) -> None:
    """The figures and all files of a report, report.json last."""
    folder.mkdir(exist_ok=True)
    weighs = report.baseline_pj > 0 and report.moved.weight_dense
    for name, draw, drawn in (
        ("groups", plots.plot_energy_baselines, report),
        ("traffic", plots.plot_energy_waterfall, weighs and report),
        ("profiles", plots.plot_profiles, report.total.sop_unit and report),
        ("break_even", plots.plot_break_even, report.total.sop_unit and report),
        ("firing", plots.plot_firing_steps, report.firing),
    ):
        (folder / f"{name}.png").unlink(missing_ok=True)
        if drawn:
            figure = Figure(figsize=(9, 5), layout="constrained")
            draw(drawn, figure.subplots())
            figure.savefig(folder / f"{name}.png", dpi=120)
    report.to_csv(folder / "rows.csv")
    report.to_latex(folder / "report.tex")
    report.to_markdown(folder / "report.md")
    report.to_json(folder / "report.json")


if __name__ == "__main__":
    sys.path.append(str(Path.cwd()))  # the module of package.module:function
    sys.exit(main())
