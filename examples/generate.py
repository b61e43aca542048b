"""Talk to a spiking language model, and see what a token costs beside its teacher's.

    python examples/generate.py                  # the student of distill_llamba.py
    python examples/generate.py my_student --teacher my_teacher --int8
    python examples/generate.py --prompt "def add(a, b):" "    # and" --temperature 0.8

Without --prompt it asks for one, until an empty line or Ctrl-D; every turn goes on from
the cache of the one before. Projections read the weights of neurons that fired, unless
--dense is given. The counts are those of the last tokens of the reply, read once more.
"""

import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from mar_snn import load
from mar_snn.assets import TINY_LLAMBA
from mar_snn.console import show_what_can_be_shown
from mar_snn.energy import EnergyReport, SpikeOpCounter
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.sparse import EventLinear, optimize_for_decoding
from mar_snn.spiking import projections

console = Console()
STUDENT = "outputs/distill_llamba"
#: tokens of a reply that are counted
COUNTED = 8


class Stopwatch(TextStreamer):
    """Writes tokens as they come, or only notes when they came."""

    def __init__(self, tokenizer: Any, *, silent: bool) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.silent, self.times = silent, list[float]()

    def put(self, value: Tensor) -> None:
        """Note the time; the first call brings the prompt."""
        self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write what is whole words by now."""
        if not self.silent:
            super().on_finalized_text(text, stream_end)

    def tokens_per_second(self) -> float:
        """Of the steps behind the prompt; nan for fewer than two tokens."""
        steps = self.times[1:]
        if len(steps) < 2:
            return float("nan")
        return (len(steps) - 1) / (steps[-1] - steps[0])


class Talker:
    """A model in a conversation: all tokens so far, and the cache that read them."""

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.ids = torch.empty(1, 0, dtype=torch.long, device=model.device)
        self.cache: Any = None

    @torch.no_grad()
    def reply(self, prompt: str, options: Namespace, *, silent: bool) -> Stopwatch:
        """Read the prompt and write up to `max_new_tokens` tokens."""
        self.ids = torch.cat([self.ids, self._encoded(prompt)], dim=1)
        watch = Stopwatch(self.tokenizer, silent=silent)
        sampling = {"do_sample": False}
        if options.temperature > 0:
            sampling = {"do_sample": True, "temperature": options.temperature}
        told = self.model.generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            max_new_tokens=options.max_new_tokens,
            return_dict_in_generate=True,
            streamer=watch,
            **sampling,
            **({} if self.cache is None else {CACHE_NAME: self.cache}),
        )
        self.ids, self.cache = told.sequences, told[CACHE_NAME]
        return watch

    def _encoded(self, prompt: str) -> Tensor:
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        else:
            ids = self.tokenizer(
                prompt, add_special_tokens=not self.ids.numel(), return_tensors="pt"
            )["input_ids"]
        return ids.to(self.model.device)

    @torch.no_grad()
    def cost(self) -> EnergyReport:
        """What the last tokens cost, read one by one behind all others."""
        counted = min(COUNTED, self.ids.shape[1] - 1)
        context, tokens = self.ids[:, :-counted], self.ids[:, -counted:]
        cache = self.model(context, use_cache=True)[CACHE_NAME]
        with SpikeOpCounter(self.model) as counter:
            for token in tokens.unbind(1):
                self.model(token[:, None], use_cache=True, **{CACHE_NAME: cache})
        return counter.report(tokens=counted)


def main() -> int:
    """Talk; 0 when done, 2 after bad input."""
    options = parse_arguments()
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        talkers = [*load_talkers(options)]
        for prompt in options.prompt or questions():
            take_turn(talkers, prompt, options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def parse_arguments() -> Namespace:
    """The options; leaves with a sentence and exit code 2 for bad ones."""
    parser = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", nargs="?", default=STUDENT, help="folder or hub name of the student")
    add("--teacher", help="its dense teacher; default: the tiny one, for the demo's")
    add("--tokenizer", help="where the tokenizer is; default: the model")
    add("--prompt", nargs="+", help="what to say, turn by turn")
    add("--max_new_tokens", "--max-new-tokens", default=48, type=int)
    add("--temperature", default=0.0, type=float, help="0: the likeliest token")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="of the CPU")
    add("--seed", default=0, type=int)
    add("--int8", action="store_true", help="round weights and head of the student")
    add("--dense", action="store_true", help="read all weights, fired or not")
    options = parser.parse_args()
    if options.max_new_tokens < 2:
        parser.error(
            f"--max_new_tokens must be 2 or more, got {options.max_new_tokens}"
        )
    if options.temperature < 0:
        parser.error(f"--temperature must be 0 or more, got {options.temperature}")
    if options.int8 and options.dense:
        parser.error("--int8 is an option of the path that --dense turns off")
    if options.teacher is None and options.model == STUDENT:
        options.teacher = str(TINY_LLAMBA)
    return options


def load_talkers(options: Namespace) -> Iterator[Talker]:
    """The student, ready to decode, and its teacher if there is one."""
    if options.model == STUDENT and not (Path(STUDENT) / "config.json").is_file():
        raise ValueError(
            f"no model in {STUDENT}: run examples/distill_llamba.py (make demo), or "
            "name a spiking checkpoint"
        )
    student = load(options.model, dtype=options.dtype).to(options.device).eval()
    if not options.dense:
        weights = "int8" if options.int8 else "same"
        plan = optimize_for_decoding(student, weights=weights, head=weights)
        console.print(str(plan), style="dim", highlight=False)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model)
    yield Talker("spiking", student, tokenizer)
    if options.teacher:
        # in the student's dtype, so that a byte is a byte
        teacher = AutoModelForCausalLM.from_pretrained(
            options.teacher, dtype=student.dtype
        )
        yield Talker("dense teacher", teacher.to(options.device).eval(), tokenizer)


def questions() -> Iterator[str]:
    """What is typed, until nothing is."""
    while True:
        try:
            line = console.input("\n[bold]> [/bold]")
        except EOFError:
            return
        if not line:
            return
        yield line


def take_turn(talkers: Iterable[Talker], prompt: str, options: Namespace) -> None:
    """The student answers aloud, the teacher in silence; then the bill of both."""
    table = Table(title="a token")
    table.add_column("")
    columns = []
    for talker in talkers:
        watch = talker.reply(prompt, options, silent=talker.name != "spiking")
        table.add_column(talker.name, justify="right")
        columns.append(figures(talker, watch))
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)


def figures(talker: Talker, watch: Stopwatch) -> dict[str, str]:
    """The lines of the table."""
    report = talker.cost()
    total, moved = report.total, report.moved
    fired = [firing.rate for firing in report.firing.values()]
    event_driven = any(
        isinstance(m, EventLinear) for _, m, _ in projections(talker.model)
    )
    read = moved.weight_touched if event_driven else moved.weight_dense
    units = report.units
    return {
        "tokens per second": f"{watch.tokens_per_second():.1f}",
        "spikes per neuron and step": (
            f"{sum(fired) / len(fired):.3f}" if fired else "-"
        ),
        "synaptic operations": f"{total.sop_unit / units / 1e6:.3f} M",
        "multiply-accumulates": f"{total.mac / units / 1e6:.3f} M",
        "weights read": f"{read / units / 1e6:.2f} MB",
        f"modelled energy, {report.profile.name}": (f"{report.energy_pj / 1e6:.2f} uJ"),
    }


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main())
