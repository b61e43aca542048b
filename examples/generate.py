"""Talk to a spiking language model, and see what a token costs beside its teacher's.

    python examples/generate.py                  # the student of distill_llamba.py
    python examples/generate.py my_student --teacher my_teacher --int8
    python examples/generate.py --prompt "def add(a, b):" "    # and" --temperature 0.8

Without --prompt it asks for one, until an empty line or Ctrl-D; every turn goes on from
the cache of the one before, where a chat template leaves that one as it was read.
Projections read the weights of neurons that fired, unless --dense is given. The counts
are those of the last tokens of the reply, read once more.
"""

import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import command
import torch
from jinja2 import TemplateError
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

from mar_snn import load
from mar_snn.assets import TINY_LLAMBA
from mar_snn.devices import usable_device
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
    """A model in a conversation: all tokens so far, and the cache that read them.

    Raises:
        ValueError: for a tokenizer with tokens that the model does not know.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        known = model.config.vocab_size
        if len(tokenizer) > known:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the {name} model knows "
                f"{known}: name its own with --tokenizer"
            )
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.messages: list[dict[str, str]] = []
        self.ids = torch.empty(1, 0, dtype=torch.long, device=model.device)
        self.cache: Any = None

    @torch.no_grad()
    def reply(self, prompt: str, options: Namespace, *, silent: bool) -> Stopwatch:
        """Read the prompt and write up to `max_new_tokens` tokens."""
        ids = self._encoded(prompt)
        if not ids.numel():
            raise ValueError(f"the prompt {prompt!r} has no tokens")
        # a template may write earlier turns anew, and a state cannot be cut back
        if not ids[:, : self.ids.shape[1]].equal(self.ids):
            self.cache = None
        watch = Stopwatch(self.tokenizer, silent=silent)
        sampling = {"do_sample": False}
        if options.temperature > 0:
            sampling = {"do_sample": True, "temperature": options.temperature}
        told = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.max_new_tokens,
            eos_token_id=self._ends_of_reply() or None,
            return_dict_in_generate=True,
            streamer=watch,
            **sampling,
            **({} if self.cache is None else {CACHE_NAME: self.cache}),
        )
        self.ids, self.cache = told.sequences, told[CACHE_NAME]
        said = self.ids[0, ids.shape[1] :]
        answer = self.tokenizer.decode(said, skip_special_tokens=True)
        self.messages += [_message("user", prompt), _message("assistant", answer)]
        return watch

    def _encoded(self, prompt: str) -> Tensor:
        """The tokens of the conversation and of the prompt behind it."""
        if self.tokenizer.chat_template:
            turns = [*self.messages, _message("user", prompt)]
            return self._tokens(self._written(turns, add_generation_prompt=True))
        ids = self._tokens(prompt, add_special_tokens=not self.ids.numel())
        return torch.cat([self.ids, ids], dim=1)

    def _tokens(self, text: str, *, add_special_tokens: bool = False) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids
        return torch.tensor([ids], dtype=torch.long, device=self.model.device)

    def _written(self, messages: list[dict[str, str]], **options: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, **options
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses this: {error}") from error

    def _ends_of_reply(self) -> list[int]:
        """Tokens that end a reply: the model's, the tokenizer's, the template's."""
        ends = self.model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends])}
        ends.add(self.tokenizer.eos_token_id)
        if self.tokenizer.chat_template:
            turns = [_message("user", "?"), _message("assistant", "answer")]
            _, _, behind = self._written(turns).rpartition("answer")
            first = self._tokens(behind)[0, :1].tolist()
            ends |= {*first} & self.tokenizer.added_tokens_decoder.keys()
        return sorted(ends - {None})

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


@command.ended("the conversation is not kept")
def main() -> int:
    """Talk; 0 when done."""
    options = parse_arguments()
    torch.manual_seed(options.seed)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    talkers = [*load_talkers(options)]
    for prompt in options.prompt or questions():
        take_turn(talkers, prompt, options)
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
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads must be 1 or more, got {options.threads}")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed must be from 0 to 2**32 - 1, got {options.seed}")
    if "" in (options.prompt or ()):
        parser.error("--prompt must not be empty")
    if not options.temperature >= 0:
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
    device = usable_device(options.device)
    student = load(options.model, dtype=options.dtype).to(device).eval()
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
        yield Talker("dense teacher", teacher.to(device).eval(), tokenizer)


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


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


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
    sys.exit(main())
