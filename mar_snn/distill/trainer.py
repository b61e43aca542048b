"""SBDSTrainer: distils a spiking student from its dense teacher (arXiv 2601.21503)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mar_snn.distill.callbacks import InterruptCallback, TermsOnTheBar
from mar_snn.distill.checkpoints import last_checkpoint, mark_incomplete, only_run_in
from mar_snn.distill.checks import (
    check_boundaries,
    check_given,
    first_row,
    forward_takes,
)
from mar_snn.distill.objective import Objective
from mar_snn.distill.packing import collate, counted_labels
from mar_snn.distill.sites import SpikeStatistics
from mar_snn.distill.teacher import load_teacher, place_teacher
from mar_snn.neurons.spikes import listen_to_spikes

__all__ = ["SBDSTrainer", "TrainingInterrupted"]

#: The name that the projections of features have in the student while it trains.
_PROJECTIONS = "feature_projections"


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped at Ctrl-C after it wrote a complete checkpoint."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(f"training was interrupted; checkpoint: {checkpoint}")
        self.checkpoint = checkpoint


class SBDSTrainer(Trainer):
    """A transformers.Trainer whose loss is SBDS between a student and its teacher.

    Every log entry has the terms of the loss beside it: `forward_kl`, `reverse_kl`,
    `features` and `firing` (means over the tokens since the last entry), and, every
    `args.spike_logging_steps` steps, what `SpikeStatistics` reads. Labels of -100 do
    not count. Thresholds have no weight decay. The first Ctrl-C ends training after the
    step with a checkpoint and TrainingInterrupted; the second at once.

    Args:
        model: the student.
        teacher_model: the teacher, or the name or folder of one; evaluated without
            gradients, once a batch, never saved. Where it is the student itself it is
            copied.
        args: an SBDSConfig: the training arguments and the weights of the loss.
        kwargs: what transformers.Trainer takes; `data_collator` is `collate` where it
            is not given.

    Raises:
        ValueError: where the vocabularies, the blocks or the norms of the two models
            do not fit, the rows keep their texts apart and a model cannot, or what is
            given would not be obeyed.
    """

    # the loss is a sum over tokens divided by the count of the accumulated batch
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module | None,
        teacher_model: nn.Module | str,
        args: TrainingArguments | None,
        **kwargs: Any,
    ) -> None:
        args = check_given(model, args, **kwargs)
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = collate
        teacher = load_teacher(teacher_model, model, args)
        super().__init__(model=model, args=args, **kwargs)
        # the terms of the loss stand for a token each, whatever the model's own loss
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        self.teacher_model = place_teacher(teacher, args)
        self.objective = Objective(
            model, self.teacher_model, args, self.processing_class
        )
        self._check_rows()
        self._terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
        self._statistics = SpikeStatistics(self.model)
        self._needs_logits = False
        self._interrupt = InterruptCallback()
        self.add_callback(self._interrupt)
        # one bar with the terms of the loss behind it, instead of a line for each entry
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TermsOnTheBar)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """What Trainer.train returns.

        `resume_from_checkpoint=True` goes on from the newest checkpoint that was
        written to its end.

        Raises:
            TrainingInterrupted: after Ctrl-C, when the checkpoint is written.
            ValueError: where there is no checkpoint to go on from, or another run
                writes into the same folder.
        """
        folder = self.args.output_dir
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(folder)
            if resume_from_checkpoint is None:
                raise ValueError(f"no whole checkpoint in {folder}")
        # the processes of one run are one
        alone = only_run_in(folder) if self.is_world_process_zero() else nullcontext()
        attached = self.objective.attached()
        with alone, self._interrupt, attached, self._with_projections():
            result = super().train(resume_from_checkpoint, **kwargs)
        if self._interrupt.requested and self.state.global_step < self.state.max_steps:
            raise TrainingInterrupted(str(self._checkpoint()))
        return result

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], *args: Any
    ) -> tuple[list[Any], Any]:
        """What Trainer gets; labels that cannot be predicted are not counted."""
        return super().get_batch_samples(map(_counted, epoch_iterator), *args)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one batch, behind its backward pass."""
        self.objective.at(self.state.global_step)
        loss = super().training_step(*args, **kwargs)
        self.objective.clear()
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """The loss of one batch, and the logits where they are wanted."""
        self._needs_logits = not prediction_loss_only
        try:
            return super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys
            )
        finally:
            self._needs_logits = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The SBDS loss, divided by the tokens that count in the accumulated batch."""
        inputs = _counted(inputs)
        labels = F.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:]
        counted = (labels != -100).sum()
        num_items = counted if num_items_in_batch is None else num_items_in_batch
        num_items = torch.as_tensor(num_items, device=labels.device).clamp(min=1)
        with self.objective.attached(), self._listening(model, inputs):
            loss, terms, outputs = self.objective(
                model, inputs, labels, num_items, needs_logits=self._needs_logits
            )
        if model.training:
            for name, term in terms.items():
                self._add_term(name, term.detach() * num_items, counted)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # every process divides by the tokens of all, and DDP takes the mean
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _listening(
        self, model: nn.Module, inputs: dict[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Count the spikes of passes inside the block, where this step logs them."""
        every = self.args.spike_logging_steps
        if not model.training or every == 0 or self.state.global_step % every:
            return nullcontext()
        if self.args.torch_compile:
            # nothing is declared inside a compiled graph
            plain = self.accelerator.unwrap_model(model, keep_torch_compile=False)
            with torch.no_grad(), listen_to_spikes(self._statistics):
                plain(**inputs, use_cache=False)
            return nullcontext()
        return listen_to_spikes(self._statistics)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer, with the thresholds in a group of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rate = self.args.threshold_learning_rate
        if is_new and rate is not None:
            named = (self.model if model is None else model).named_parameters()
            thresholds = {id(p): p for name, p in named if _is_threshold(name)}
            for group in optimizer.param_groups:
                others = [p for p in group["params"] if id(p) not in thresholds]
                group["params"] = others
            own = {"params": [*thresholds.values()], "lr": rate, "weight_decay": 0.0}
            optimizer.add_param_group(own)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """What transformers decays, without the thresholds."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not _is_threshold(name)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the loss terms since the last training entry."""
        if "loss" in logs:
            reduce = partial(self.accelerator.reduce, reduction="sum")
            pairs = {name: reduce(pair) for name, pair in self._terms.items()}
            pairs |= self._statistics.read(reduce)
            self._terms.clear()
            # one tensor, so that the host waits for the device once
            figures = torch.stack([*pairs.values()]).tolist() if pairs else []
            for name, (total, count) in zip(pairs, figures, strict=True):
                logs[name] = total / max(count, 1)
            if self.args.spiking_warmup_steps:
                logs["spiking_sites"] = self.objective.warmup.share
        super().log(logs, start_time)

    def _check_rows(self) -> None:
        """Refuse data sets that hold no row or texts that a model would not part."""
        models = {"student": self.model, "teacher": self.teacher_model}
        all_part = all(forward_takes(model, "seq_idx") for model in models.values())
        others = self.eval_dataset
        others = others if isinstance(others, dict) else {"": others}
        for rows in (self.train_dataset, *others.values()):
            if rows is None or (all_part and not hasattr(rows, "__len__")):
                continue  # a stream is not read without need
            if hasattr(rows, "__len__") and not len(rows):
                raise ValueError("a data set to train or evaluate on holds no row")
            names = getattr(rows, "column_names", None) or ()
            row = dict.fromkeys(names) if "seq_idx" in names else first_row(rows)
            check_boundaries(row, **models)
            collator = self._get_collator_with_removed_columns(self.data_collator)
            # two, for a collator may join rows; one that wants others is asked by the
            # first batch
            with suppress(Exception), torch.random.fork_rng(devices=[]):
                row = collator([row, row]) if row else {}
            check_boundaries(row, **models)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # never taken away unread: the objective says why it cannot be
        if "seq_idx" not in self._signature_columns:
            self._signature_columns.append("seq_idx")

    def _add_term(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add to a running mean, on the device: nothing waits for a number here."""
        pair = torch.stack([total.double(), count.double()])
        self._terms[name] = self._terms[name].to(pair) + pair

    def _checkpoint(self, trial: Any = None) -> Path:
        """The folder of this step's checkpoint."""
        step = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        return Path(self._get_output_dir(trial)) / step

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            mark_incomplete(self._checkpoint(trial))
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # the trainer's state, written next by one process, says that all have written
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _with_projections(self) -> Iterator[None]:
        """The projections of features are part of the student while it trains.

        So the optimizer and every kind of parallelism know them; saved models do not.
        """
        alignment = self.objective.alignment
        if alignment is None or not alignment.projections:
            yield
            return
        projections = nn.ModuleList(alignment.projections.values())
        self.model.add_module(_PROJECTIONS, projections.to(self.args.device))
        try:
            yield
        finally:
            delattr(self.accelerator.unwrap_model(self.model), _PROJECTIONS)

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        if not hasattr(self.model, _PROJECTIONS):
            super()._save(output_dir, state_dict)
            return
        state_dict = dict(self.model.state_dict() if state_dict is None else state_dict)
        names = [name for name in state_dict if name.startswith(_PROJECTIONS)]
        projections = {name: state_dict.pop(name) for name in names}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_file(projections, folder / f"{_PROJECTIONS}.safetensors")

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / f"{_PROJECTIONS}.safetensors"
        if path.is_file():
            self.model.load_state_dict(load_file(path), strict=False)


def _counted(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch whose labels are those of `counted_labels`."""
    if "labels" not in batch:
        raise ValueError(
            f"a batch has no labels, only {', '.join(batch) or 'nothing'}: the data "
            "collator must make them, as mar_snn.distill.data.collate does"
        )
    return {**batch, "labels": counted_labels(batch)}


def _is_threshold(name: str) -> bool:
    return name.endswith("neuron.a")
