r"""Turn a dense Llamba into a spiking one: spikify, calibrate, distil, measure, draw.

    python examples/distill_llamba.py                                # the tiny teacher
    python examples/distill_llamba.py --teacher cartesia-ai/Llamba-1B \
        --tokenizer meta-llama/Llama-3.2-1B --train_data my_texts.jsonl --bf16

Ctrl-C leaves a checkpoint; --resume_from_checkpoint last goes on from it. All of
transformers' TrainingArguments are arguments too.
"""

import copy
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import command
import torch
from distill_results import result_table, write_results
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed

import mar_snn.llamba  # noqa: F401  AutoModelForCausalLM learns of Llamba by it
from mar_snn.assets import TINY_LLAMBA
from mar_snn.distill import (
    SBDSConfig,
    SBDSTrainer,
    last_checkpoint,
)
from mar_snn.distill.checkpoints import is_complete, only_run_in
from mar_snn.distill.data import (
    PackedStream,
    Reading,
    apply_chat_template,
    collate,
    load_text,
    pack,
    parse_sources,
    standard_library_text,
)
from mar_snn.distill.evaluation import perplexity
from mar_snn.distill.memory import estimate_memory
from mar_snn.energy import EnergyReport, SpikeOpCounter
from mar_snn.provenance import machine, versions
from mar_snn.spiking import SITES, SpikingConfig, calibrate, spikify

console = Console()


@dataclass
class DistillArguments:
    """What is distilled, from what text, into which neurons."""

    teacher: str = field(
        default=str(TINY_LLAMBA),
        metadata={"help": "name or folder of a dense Llamba; default: the tiny one"},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "where the tokenizer is; default: teacher"}
    )
    train_data: list[str] | None = field(
        default=None,
        metadata={
            "help": "data set names, folders or .jsonl/.txt/.parquet files, each with "
            "its weight behind a '=' if there are several, or 'paper': the data of "
            "MAR; default: the text of Python's own library"
        },
    )
    text_column: str = field(
        default="text",
        metadata={"help": "column of train_data that holds the text or the messages"},
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "column of answers; text_column has prompts"}
    )
    chat_template: str | None = field(
        default=None,
        metadata={"help": "instead of the tokenizer's: Jinja, or 'plain' for none"},
    )
    streaming: bool = field(
        default=False, metadata={"help": "read train_data while training"}
    )
    boundaries: bool = field(
        default=False, metadata={"help": "keep the texts of a row apart in the model"}
    )
    on_bad_record: str = field(
        default="raise", metadata={"help": "or skip", "choices": ["raise", "skip"]}
    )
    max_length: int = field(default=256, metadata={"help": "tokens per row"})
    calibration_rows: int = field(
        default=16, metadata={"help": "rows that fit the thresholds"}
    )
    eval_rows: int = field(default=256, metadata={"help": "held-out rows at most"})
    energy_rows: int = field(
        default=8, metadata={"help": "held-out rows whose operations are counted"}
    )
    time_steps: int = field(default=4, metadata={"help": "micro-steps T per token"})
    tau: float = field(default=0.5, metadata={"help": "membrane time constant"})
    readout: str = field(default="geometric", metadata={"help": "geometric or sum"})
    fire_ratio: float = field(
        default=2 / 3, metadata={"help": "fire at this share of the threshold"}
    )
    gradient: str = field(
        default="straight_through", metadata={"help": "straight_through or surrogate"}
    )
    sites: list[str] = field(
        default_factory=lambda: list(SITES),
        metadata={"help": f"any of {', '.join(SITES)}"},
    )

    def __post_init__(self) -> None:
        command.at_least(
            2, self, "max_length"
        )  # the first token has nothing to be told from
        command.at_least(1, self, "calibration_rows", "eval_rows", "energy_rows")
        self.spiking()

    def spiking(self) -> SpikingConfig:
        """The coders that these arguments describe."""
        return SpikingConfig(
            time_steps=self.time_steps,
            tau=self.tau,
            readout=self.readout,
            fire_ratio=self.fire_ratio,
            gradient=self.gradient,
            sites=tuple(self.sites),
        )


@dataclass
class TrainingArguments(SBDSConfig):
    """SBDSConfig with the defaults of this example."""

    output_dir: str = field(default="outputs/distill_llamba")
    max_steps: int = field(default=200)
    per_device_train_batch_size: int = field(default=8)
    per_device_eval_batch_size: int = field(default=8)
    learning_rate: float = field(default=2e-4)
    lr_scheduler_type: str = field(default="cosine")
    warmup_steps: float = field(default=10)
    logging_steps: float = field(default=1)
    save_steps: float = field(default=100)
    save_total_limit: int = field(default=2)
    report_to: str = field(default="none")
    seed: int = field(default=0)
    # the checkpoint's would be bfloat16; the student's weights are float32
    teacher_dtype: str | None = field(default="float32")

    def __post_init__(self) -> None:
        command.check_ranges(self)
        super().__post_init__()


@command.ended("before there was anything to resume from")
def main() -> int:
    """Distil; 0 when done."""
    torch.set_flush_denormal(True)  # long decays would crawl through denormals
    with command.given_to_libraries():
        options, args = parse_arguments()
        command.output_folder(args.output_dir)
    first = args.process_index == 0
    with only_run_in(args.output_dir) if first else nullcontext():
        distil(options, args)
    return 0


def distil(options: DistillArguments, args: TrainingArguments) -> None:
    """Train, measure, and write all of it into the output folder."""
    start, output = time.monotonic(), Path(args.output_dir)
    with command.given_to_libraries():
        resume = checkpoint_to_resume(args)
        teacher, tokenizer = load_teacher(options, args.teacher_dtype)
        set_seed(args.seed)
        workers = args.dataloader_num_workers
        with args.main_process_first(desc="reading the text"):
            rows = load_rows(options, tokenizer, args.seed, workers)
        student = spikify(copy.deepcopy(teacher).float(), options.spiking())
        console.quiet = not args.should_log
        trainer = SBDSTrainer(
            student,
            teacher,
            args,
            train_dataset=rows["train"],
            eval_dataset=rows["heldout"],
            data_collator=collate,
            processing_class=tokenizer,
        )
    (output / "metrics.json").unlink(missing_ok=True)
    console.print(memory_table(trainer, options.max_length))
    # all processes run both models, whose weights they may share; one of them writes
    fit_thresholds(student, rows, options.calibration_rows)

    def measure(model: Any, name: str) -> float:
        return perplexity(
            model,
            rows["heldout"],
            batch_size=args.per_device_eval_batch_size,
            desc=f"Perplexity, {name}" if args.should_log else None,
        )

    perplexities = {
        "teacher": measure(trainer.teacher_model, "teacher"),
        "calibrated": measure(student, "calibrated student"),
    }
    with command.checkpoints_named(args.output_dir):
        trainer.train(resume_from_checkpoint=resume)
        perplexities["distilled"] = measure(student, "distilled student")
        report = count_energy(student, rows, options)
    metrics = {
        "perplexity": perplexities,
        "perplexity_ratio": perplexities["distilled"] / perplexities["teacher"],
        "firing_rate": report.firing_rate,
        "sign_balance": report.sign_balance,
        "synops_per_token": report.total.sop_unit / report.units,
        "energy_ratio": report.ratio,
        "energy_ratio_without_lm_head": report.ratio_without("lm_head"),
        "energy_ratios": report.ratios,
        "steps": trainer.state.global_step,
        "seconds": time.monotonic() - start,
        "seed": args.seed,
        "arguments": vars(options),
        "machine": machine(),
        "versions": versions(),
    }
    write_results(output, trainer, rows["heldout"][0]["input_ids"], report, metrics)
    console.print(result_table(metrics, report, output))
    if not math.isfinite(perplexities["distilled"]):
        sentence = "Training diverged: give a lower --learning_rate or --max_grad_norm"
        print(sentence, file=sys.stderr)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def parse_arguments() -> tuple[DistillArguments, TrainingArguments]:
    """The options of the example and of the training; a ValueError for bad ones."""
    parser = HfArgumentParser(
        (DistillArguments, TrainingArguments),
        description=__doc__,
        usage="%(prog)s [--teacher NAME] [--train_data NAME] ... (--help lists all)",
    )
    return parser.parse_args_into_dataclasses()


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """The checkpoint that --resume_from_checkpoint names; "last" is the newest.

    Raises:
        ValueError: where there is none.
    """
    found = args.resume_from_checkpoint
    if found == "last":
        found = last_checkpoint(args.output_dir)
    if args.resume_from_checkpoint is None:
        return None
    if found is None or not is_complete(Path(found)):
        raise ValueError(
            f"--resume_from_checkpoint {args.resume_from_checkpoint}: no checkpoint "
            f"there or in {args.output_dir}"
        )
    return str(found)


def load_teacher(options: DistillArguments, dtype: str | None) -> tuple[Any, Any]:
    """The dense teacher and its tokenizer.

    Raises:
        ValueError: for a model that is no dense causal LM, or a tokenizer that has
            tokens the model does not know.
        OSError: where the files cannot be found.
    """
    try:
        teacher = AutoModelForCausalLM.from_pretrained(
            options.teacher, dtype=dtype or "auto"
        )
    except ValueError as error:
        raise ValueError(
            f"--teacher {options.teacher} is not a causal language model that "
            f"transformers can load: {str(error).splitlines()[0]}"
        ) from error
    if getattr(teacher.config, "spiking", None) is not None:
        raise ValueError(
            f"--teacher {options.teacher} spikes already: give a dense one"
        )
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.teacher)
    if len(tokenizer) > teacher.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the teacher knows "
            f"{teacher.config.vocab_size}: name the teacher's own with --tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token)")
    return teacher, tokenizer


def load_rows(
    options: DistillArguments, tokenizer: Any, seed: int, workers: int = 0
) -> dict[str, Any]:
    """Packed rows to train on and held-out rows, in an order drawn from the seed.

    Raises:
        ValueError: where there is too little text, or it cannot be read.
    """
    if options.train_data is None:
        if options.streaming:
            raise ValueError("--streaming is for --train_data, which is not given")
        texts = standard_library_text()
    else:
        columns = (options.text_column, options.completion_column)
        chat = partial(
            apply_chat_template, tokenizer=tokenizer, template=options.chat_template
        )
        reading = Reading(
            options.streaming, max(workers, 1), options.on_bad_record, chat
        )
        sources = parse_sources(options.train_data, *columns)
        texts = load_text(sources, seed=seed, reading=reading)
    packing = {"length": options.max_length, "boundaries": options.boundaries}
    if options.streaming:
        heldout = PackedStream(texts["heldout"], tokenizer, epochs=1, **packing)
        return {
            "train": PackedStream(texts["train"], tokenizer, **packing),
            "heldout": heldout.take(options.eval_rows),
        }
    rows = {split: pack(docs, tokenizer, **packing) for split, docs in texts.items()}
    # spread over all held-out texts, the same rows whatever the seed
    held_out = rows["heldout"].shuffle(seed=0)
    return {
        "train": rows["train"].shuffle(seed=seed),
        "heldout": held_out.select(range(min(options.eval_rows, len(held_out)))),
    }


def memory_table(trainer: SBDSTrainer, length: int) -> Table | str:
    """The estimate, or why there is none: that is no reason not to train."""
    try:
        return estimate_memory(trainer.objective, length).table()
    except command.ERRORS as error:
        return f"Memory cannot be estimated: {type(error).__name__}: {error}"


def fit_thresholds(student: Any, rows: dict[str, Any], count: int) -> None:
    """Calibrate on the first `count` rows of the training text."""
    chosen = list(islice(rows["train"], count))
    with console.status("Fitting thresholds"):
        calibrate(student, inputs_of(chosen, 8, student.device))


def inputs_of(rows: Any, size: int, device: torch.device) -> list[dict[str, Any]]:
    """What a model takes for `rows`, `size` of them at once."""
    batches = DataLoader(rows, batch_size=size, collate_fn=collate)
    return [
        {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        for batch in batches
    ]


@torch.no_grad()
def count_energy(
    student: Any, rows: dict[str, Any], options: DistillArguments
) -> EnergyReport:
    """The energy report over held-out rows."""
    student.eval()
    counter = SpikeOpCounter(student)
    counted = list(islice(rows["heldout"], options.energy_rows))
    for inputs in inputs_of(counted, 1, student.device):
        with counter:
            student(**inputs, use_cache=False)
    return counter.report(profile="horowitz-45nm-fp32", baseline="dense")


if __name__ == "__main__":
    sys.exit(main())
