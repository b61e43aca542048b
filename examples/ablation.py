r"""Train every row of an ablation study over several seeds: table, plot, result file.

    python examples/ablation.py                   # every part of the method
    python examples/ablation.py --study coder     # which coder trains best

A finished run is a file under --output_dir: after Ctrl-C, or when another process took
other --seeds in the same folder, the same command goes on with what is missing.
"""

import copy
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ablation_studies import STUDIES, Row
from ablation_tables import as_csv, collect, draw, markdown
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    set_seed,
)

import mar_snn.llamba  # noqa: F401  AutoModelForCausalLM learns of Llamba by it
from mar_snn.assets import TINY_LLAMBA
from mar_snn.console import show_what_can_be_shown
from mar_snn.distill import SBDSConfig, SBDSTrainer
from mar_snn.distill.data import collate, load_text, pack, standard_library_text
from mar_snn.distill.evaluation import alignment_error, perplexity
from mar_snn.energy import EnergyReport, SpikeOpCounter
from mar_snn.provenance import machine, versions
from mar_snn.spiking import SpikingConfig, calibrate, coders, spikify


@dataclass
class AblationArguments:
    """Which study, on which teacher and text, under which budget."""

    study: str = field(
        default="referee",
        metadata={"help": "which rows", "choices": list(STUDIES)},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"help": "of the order of the text; each trains every row"},
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "name or folder of a dense Llamba; default: the tiny one"},
    )
    train_data: str | None = field(
        default=None,
        metadata={
            "help": "data set name, folder, or .jsonl/.txt file; default: the text of "
            "Python's own library"
        },
    )
    text_column: str = field(
        default="text", metadata={"help": "column of train_data that holds the text"}
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "training steps; default: the study's own"}
    )
    batch_size: int = field(default=4, metadata={"help": "rows of a training step"})
    max_length: int = field(default=128, metadata={"help": "tokens per row"})
    learning_rate: float = field(
        default=2e-4,
        metadata={
            "help": "at its peak, of rows that name none; a tenth of the steps warms up"
        },
    )
    calibration_rows: int = field(
        default=8, metadata={"help": "rows that fit the thresholds"}
    )
    eval_rows: int = field(default=64, metadata={"help": "held-out rows, perplexity"})
    probe_rows: int = field(
        default=8, metadata={"help": "held-out rows, alignment and operations"}
    )
    threads: int = field(default=1, metadata={"help": "CPU threads of a run"})
    output_dir: str | None = field(
        default=None, metadata={"help": "default: outputs/ablation_<study>"}
    )
    results: str | None = field(
        default=None, metadata={"help": "default: results.json in output_dir"}
    )

    def __post_init__(self) -> None:
        if self.max_steps is None:
            self.max_steps = STUDIES[self.study].max_steps
        self.output_dir = self.output_dir or f"outputs/ablation_{self.study}"
        self.results = self.results or f"{self.output_dir}/results.json"
        names = ("max_steps", "batch_size", "max_length", "calibration_rows")
        for name in (*names, "eval_rows", "probe_rows", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, got {getattr(self, name)}"
                )
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ValueError(f"--seeds must be distinct numbers, got {self.seeds}")
        if Path(self.output_dir).is_file():
            raise ValueError(f"--output_dir {self.output_dir} is a file, not a folder")

    def budget(self) -> dict[str, Any]:
        """What decides a run beside its row and seed."""
        elsewhere = ("study", "seeds", "threads", "output_dir", "results")
        return {k: v for k, v in vars(self).items() if k not in elsewhere}


def main() -> int:
    """Run; 0 when done, 2 after bad input, 130 after Ctrl-C."""
    torch.set_flush_denormal(True)  # long decays would crawl through denormals
    try:
        try:
            (options,) = HfArgumentParser(
                AblationArguments, description=__doc__
            ).parse_args_into_dataclasses()
            torch.set_num_threads(options.threads)
            runs, bench = Runs(options), Bench(options)
        except (ValueError, OSError) as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        train_missing(options, runs, bench)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here", file=sys.stderr)
        return 130
    write_results(options, runs)
    return 0


def train_missing(options: AblationArguments, runs: "Runs", bench: "Bench") -> None:
    """Train every row with every seed, but what is finished."""
    wanted: dict[Path, tuple[Row, int]] = {}
    for seed, row in product(options.seeds, STUDIES[options.study].rows):
        wanted.setdefault(runs.path(row, seed), (row, seed))
    with tqdm(total=len(wanted) * options.max_steps, unit="step") as bar:
        for index, (path, (row, seed)) in enumerate(wanted.items()):
            bar.set_description_str(f"seed {seed}, {row.section}: {row.name}")
            if not path.exists():
                runs.write(row, seed, bench.run(row, seed, bar))
            bar.update((index + 1) * options.max_steps - bar.n)


def write_results(options: AblationArguments, runs: "Runs") -> None:
    """Tables and picture into the output folder, the figures where --results says."""
    study = STUDIES[options.study]
    results = {
        "script": "examples/ablation.py",
        "study": options.study,
        "arguments": options.budget(),
        "seeds": options.seeds,
        "machine": machine(),
        "versions": versions(),
        **collect(
            study,
            {
                (row.section, row.name): [runs.read(row, s) for s in options.seeds]
                for row in study.rows
            },
        ),
    }
    output, path = Path(options.output_dir), Path(options.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    tables = "\n".join(markdown(results))
    (output / "table.md").write_text(tables, encoding="utf-8")
    (output / "table.csv").write_text(as_csv(results), encoding="utf-8")
    draw(results).savefig(output / "perplexity.png", dpi=120)
    print(f"{tables}\nwrote {path} and {output}/table.md, .csv, .png")


class Runs:
    """The finished runs, a file each, named by everything that decides the run."""

    def __init__(self, options: AblationArguments) -> None:
        self._budget = options.budget()
        self._folder = Path(options.output_dir) / "runs"
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, row: Row, seed: int) -> Path:
        """Where the run is; rows of the same settings share one."""
        text = json.dumps(self._settings(row, seed), sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def read(self, row: Row, seed: int) -> dict[str, float]:
        """The figures of a finished run."""
        text = self.path(row, seed).read_text(encoding="utf-8")
        return json.loads(text)["figures"]

    def write(self, row: Row, seed: int, figures: dict[str, float]) -> None:
        """Write the figures beside their place, then move them there."""
        path = self.path(row, seed)
        run = {"settings": self._settings(row, seed), "figures": figures}
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def _settings(self, row: Row, seed: int) -> dict[str, Any]:
        budget = self._budget
        return budget | {
            "seed": seed,
            "spiking": row.spiking and asdict(row.spiking),
            # what the budget says too is one setting, named or not
            "training": {k: v for k, v in row.training.items() if budget.get(k) != v},
        }


class Bench:
    """The teacher, the text and the calibrated thresholds that runs share."""

    def __init__(self, options: AblationArguments) -> None:
        self._options = options
        self._teacher = AutoModelForCausalLM.from_pretrained(
            options.teacher or TINY_LLAMBA, dtype=torch.float32
        ).eval()
        self._teacher.to("cuda" if torch.cuda.is_available() else "cpu")
        if getattr(self._teacher.config, "spiking", None) is not None:
            raise ValueError(
                f"--teacher {options.teacher} spikes already: give a dense one"
            )
        rows = self._load_rows()
        self._train, held_out = rows["train"], rows["heldout"].shuffle(seed=0)
        self._held_out = held_out.select(range(min(options.eval_rows, len(held_out))))
        self._probe = held_out.select(range(min(options.probe_rows, len(held_out))))
        #: coders without their gradient, seed -> thresholds, perplexity
        self._calibrated: dict[Any, tuple[list[Tensor], float]] = {}

    def _load_rows(self) -> dict[str, Dataset]:
        options = self._options
        tokenizer = AutoTokenizer.from_pretrained(options.teacher or TINY_LLAMBA)
        texts = standard_library_text()
        if options.train_data is not None:
            texts = load_text(options.train_data, options.text_column)
        return {
            split: pack(docs, tokenizer, options.max_length)
            for split, docs in texts.items()
        }

    def run(self, row: Row, seed: int, bar: tqdm) -> dict[str, float]:
        """The figures of one row: calibrate, distil, measure."""
        start = time.monotonic()
        set_seed(seed)
        student = copy.deepcopy(self._teacher).requires_grad_()
        figures = {}
        if row.spiking is not None:
            spikify(student, row.spiking)
            figures["calibrated"] = self._calibrate(student, row.spiking, seed)
            self._distil(student, row, seed, bar)
        figures |= self._measure(student)
        return figures | {"seconds": time.monotonic() - start}

    def _calibrate(self, student: Any, spiking: SpikingConfig, seed: int) -> float:
        """Fit the thresholds, which no gradient changes; returns the perplexity."""
        key = replace(spiking, **_ANY_GRADIENT), seed
        if key not in self._calibrated:
            rows = self._train.shuffle(seed=seed)
            rows = rows.select(range(min(self._options.calibration_rows, len(rows))))
            ids = torch.tensor(rows["input_ids"], device=student.device)
            calibrate(student, [{"input_ids": ids}])
            thresholds = [c.v_threshold.detach().clone() for _, c in coders(student)]
            self._calibrated[key] = thresholds, self._perplexity(student)
        thresholds, calibrated = self._calibrated[key]
        for (_, coder), v_threshold in zip(coders(student), thresholds, strict=True):
            coder.v_threshold = v_threshold.clone()
        return calibrated

    def _distil(self, student: Any, row: Row, seed: int, bar: tqdm) -> None:
        options = self._options
        settings = {"learning_rate": options.learning_rate, **row.training}
        with tempfile.TemporaryDirectory() as folder:
            trainer = SBDSTrainer(
                student,
                self._teacher,
                SBDSConfig(
                    output_dir=folder,
                    max_steps=options.max_steps,
                    per_device_train_batch_size=options.batch_size,
                    lr_scheduler_type="cosine",
                    warmup_steps=float(options.max_steps // 10),
                    seed=seed,
                    save_strategy="no",
                    logging_strategy="no",
                    spike_logging_steps=0,
                    report_to="none",
                    disable_tqdm=True,
                    **settings,
                ),
                train_dataset=self._train,
                data_collator=collate,
            )
            trainer.add_callback(_StepOnTheBar(bar))
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    def _measure(self, student: Any) -> dict[str, float]:
        error = alignment_error(student, self._teacher, self._probe, desc=None)
        report, found = self._count(student), self._perplexity(student)
        figures = {
            "perplexity": found,
            "perplexity_ratio": found / self._perplexity_of_teacher,
            "sparsity": 1 - report.firing_rate,
            "alignment_error": fmean(error.values()),
            **{f"alignment_error.{site}": value for site, value in error.items()},
            "synops_per_token": report.total.sop_unit / report.units,
            "energy_ratio": report.ratio,
            "energy_ratio_without_lm_head": report.ratio_without("lm_head"),
        }
        # a dense model has no sparsity
        return {key: value for key, value in figures.items() if not math.isnan(value)}

    def _perplexity(self, model: Any) -> float:
        return perplexity(model, self._held_out, desc=None)

    @cached_property
    def _perplexity_of_teacher(self) -> float:
        return self._perplexity(self._teacher)

    @torch.no_grad()
    def _count(self, student: Any) -> EnergyReport:
        student.eval()
        counter = SpikeOpCounter(student)
        ids = torch.tensor(self._probe["input_ids"], device=student.device)
        with counter:
            student(input_ids=ids, use_cache=False)
        return counter.report(profile="horowitz-45nm-fp32", baseline="dense")


#: What calibration does not look at, set to one value.
_ANY_GRADIENT = {"gradient": "surrogate", "surrogate": "ATan", "detach_reset": False}


class _StepOnTheBar(TrainerCallback):
    """Stands behind the trainer's own callback for Ctrl-C."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def on_step_end(
        self, _args: object, _state: object, control: TrainerControl, **_: object
    ) -> None:
        self._bar.update()
        if control.should_save:  # nothing asks for a checkpoint here but Ctrl-C
            raise KeyboardInterrupt


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main())
