"""SBDSTrainer: distils a spiking student from its dense teacher (arXiv 2601.21503)."""

import copy
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback

from mar_snn.distill.callbacks import InterruptCallback, TermsOnTheBar
from mar_snn.distill.features import FEATURE_POINTS, norms, record_features
from mar_snn.distill.losses import DISTANCES, bidirectional_kl, feature_alignment
from mar_snn.neurons.spikes import SpikeEvent, listen_to_spikes

__all__ = ["SBDSConfig", "SBDSTrainer", "TrainingInterrupted"]


@dataclass
class SBDSConfig(TrainingArguments):
    """transformers' TrainingArguments and the weights of the SBDS loss.

    Raises:
        ValueError: for a weight below zero, an unknown feature point or distance, or
            reentrant gradient checkpointing, under which hooks see the wrong graph.
    """

    alpha: float = field(
        default=0.2, metadata={"help": "weight of KL(teacher || student)"}
    )
    beta: float = field(
        default=0.7, metadata={"help": "weight of KL(student || teacher)"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "divides both models' logits"}
    )
    feature_weight: float = field(
        default=0.25, metadata={"help": "weight of the feature alignment; 0: off"}
    )
    feature_points: str = field(
        default="pre_norm",
        metadata={"help": f"features at the norms: {', '.join(FEATURE_POINTS)}"},
    )
    feature_distance: str = field(
        default="rms",
        metadata={"help": f"distance of two features: {', '.join(DISTANCES)}"},
    )
    spike_logging_steps: int = field(
        default=10,
        metadata={"help": "log firing rates every so many steps; 0: never"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # pinned memory is for an accelerator; without one PyTorch warns of it
        self.dataloader_pin_memory &= self.device.type != "cpu"
        for name in ("alpha", "beta", "feature_weight", "spike_logging_steps"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must not be negative, got {getattr(self, name)}"
                )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above zero, got {self.temperature}")
        if self.feature_points not in FEATURE_POINTS:
            raise ValueError(
                f"feature_points must be one of {', '.join(FEATURE_POINTS)}, got "
                f"{self.feature_points!r}"
            )
        if self.feature_distance not in DISTANCES:
            raise ValueError(
                f"feature_distance must be one of {', '.join(DISTANCES)}, got "
                f"{self.feature_distance!r}"
            )
        # its name up to transformers 5.22 and after
        checkpointing = self.gradient_checkpointing_kwargs or getattr(
            self, "activation_checkpointing_kwargs", None
        )
        if (checkpointing or {}).get("use_reentrant"):
            raise ValueError(
                "reentrant gradient checkpointing gives wrong gradients for features "
                "taken by hooks: set activation_checkpointing_kwargs="
                "{'use_reentrant': False}"
            )


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped at Ctrl-C after it wrote a complete checkpoint."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__(f"training was interrupted; checkpoint: {checkpoint}")
        self.checkpoint = checkpoint


class SBDSTrainer(Trainer):
    """A transformers.Trainer whose loss is SBDS between a student and its teacher.

    Every log entry has the terms of the loss beside it: `forward_kl`, `reverse_kl`,
    `features` (means over the tokens since the last entry), and, every
    `args.spike_logging_steps` steps, `firing_rate` and `firing_rate/<site>`. Labels of
    -100 do not count. Thresholds have no weight decay. The first Ctrl-C ends
    training after the step with a checkpoint and TrainingInterrupted; the second at
    once.

    Args:
        model: the student.
        teacher_model: the teacher, or the name or folder of one; evaluated without
            gradients, moved to the student's device, never saved. Where it is the
            student itself it is copied.
        args: the training arguments and the weights of the loss.
        kwargs: what transformers.Trainer takes.

    Raises:
        ValueError: where the vocabularies or the norms of the two models differ.
    """

    # the loss is a sum over tokens divided by the count of the accumulated batch
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        teacher_model: PreTrainedModel | str,
        args: SBDSConfig,
        **kwargs: Any,
    ) -> None:
        if isinstance(teacher_model, str):
            teacher_model = AutoModelForCausalLM.from_pretrained(teacher_model)
        elif teacher_model is model:
            teacher_model = copy.deepcopy(teacher_model)
        _check_pair(model, teacher_model, args)
        super().__init__(model=model, args=args, **kwargs)
        # the terms of the loss stand for a token each, whatever the model's own loss
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        self.teacher_model = teacher_model.to(args.device).eval().requires_grad_(False)
        self._terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
        self._interrupt = InterruptCallback()
        self.add_callback(self._interrupt)
        # one bar with the terms of the loss behind it, instead of a line for each entry
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TermsOnTheBar)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """What Trainer.train returns.

        Raises:
            TrainingInterrupted: after Ctrl-C, when the checkpoint is written.
        """
        with self._interrupt:
            result = super().train(*args, **kwargs)
        if self._interrupt.requested and self.state.global_step < self.state.max_steps:
            raise TrainingInterrupted(
                f"{self.args.output_dir}/checkpoint-{self.state.global_step}"
            )
        return result

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The SBDS loss, divided by the tokens that count in the accumulated batch."""
        args = self.args
        inputs = dict(inputs)
        labels = F.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:]
        mask = labels != -100
        if num_items_in_batch is None:
            num_items = mask.sum().clamp(min=1)
        else:
            num_items = torch.as_tensor(num_items_in_batch, device=labels.device)
            num_items = num_items.clamp(min=1)
        with torch.no_grad():
            wanted, wanted_features = self._run(self.teacher_model, inputs)
        outputs, features = self._run(model, inputs)
        terms = bidirectional_kl(
            outputs.logits,
            wanted.logits,
            labels,
            alpha=args.alpha,
            beta=args.beta,
            temperature=args.temperature,
            num_items=num_items,
        )._asdict()
        loss = terms.pop("loss")
        if args.feature_weight > 0:
            terms["features"] = feature_alignment(
                features,
                wanted_features,
                mask,
                distance=args.feature_distance,
                num_items=num_items,
            )
            loss = loss + args.feature_weight * terms["features"]
        if model.training:
            for name, term in terms.items():
                self._add_term(name, term.detach() * num_items, mask.sum())
        if num_items_in_batch is not None and args.average_tokens_across_devices:
            # every process divides by the tokens of all, and DDP takes the mean
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _run(
        self, model: nn.Module, inputs: dict[str, Tensor]
    ) -> tuple[Any, list[Tensor]]:
        """The outputs of a model and its features, of which there may be none."""
        features: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if self.args.feature_weight > 0:
                recorded = record_features(model, self.args.feature_points)
                features = stack.enter_context(recorded)
            if model.training and self._logs_spikes():
                stack.enter_context(listen_to_spikes(self._count_spikes))
            outputs = model(**inputs, use_cache=False)
        return outputs, list(features.values())

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """What transformers decays, without the thresholds."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.endswith("neuron.a")]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of the loss terms since the last training entry."""
        if "loss" in logs:
            for name, sums in self._terms.items():
                total, count = self.accelerator.reduce(sums, "sum").tolist()
                logs[name] = total / max(count, 1)
            self._terms.clear()
        super().log(logs, start_time)

    def _logs_spikes(self) -> bool:
        every = self.args.spike_logging_steps
        return every > 0 and self.state.global_step % every == 0

    def _count_spikes(self, event: SpikeEvent) -> None:
        """Add one coder's events and possible events to the firing rate of its site."""
        fired = event.spike_seq.count_nonzero()
        possible = torch.tensor(event.spike_seq.numel(), device=fired.device)
        self._add_term("firing_rate", fired, possible)
        site = self._sites().get(event.neuron)
        if site is not None:
            self._add_term(f"firing_rate/{site}", fired, possible)

    def _sites(self) -> dict[nn.Module, str]:
        """Each coder's site, such as "mixer.in", from its name in the model."""
        if not hasattr(self, "_site_of"):
            self._site_of = {
                module: ".".join(name.removesuffix("_neuron").split(".")[-2:])
                for name, module in self.accelerator.unwrap_model(
                    self.model
                ).named_modules()
                if name.endswith("_neuron")
            }
        return self._site_of

    def _add_term(self, name: str, total: Tensor, count: Tensor) -> None:
        """Add to a running mean, on the device: nothing waits for a number here."""
        pair = torch.stack([total.double(), count.double()])
        self._terms[name] = self._terms[name].to(pair) + pair


def _check_pair(
    model: PreTrainedModel, teacher: PreTrainedModel, args: SBDSConfig
) -> None:
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (model, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the student scores {sizes[0]} tokens and the teacher {sizes[1]}: both "
            "need the same tokenizer and vocabulary"
        )
    if args.feature_weight > 0 and list(norms(model)) != list(norms(teacher)):
        raise ValueError(
            "the norms of student and teacher have different names, so their features "
            "cannot be aligned; set feature_weight=0 or use a teacher of the same "
            f"architecture, got {type(model).__name__} and {type(teacher).__name__}"
        )
