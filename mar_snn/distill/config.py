"""SBDSConfig: transformers' TrainingArguments and what SBDS adds to them."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from mar_snn.devices import usable_device
from mar_snn.distill.features import FEATURE_POINTS
from mar_snn.distill.losses import DISTANCES, DIVERGENCES

__all__ = ["SBDSConfig"]

_CHOICES = {
    "divergence": tuple(DIVERGENCES),
    "feature_points": FEATURE_POINTS,
    "feature_distance": DISTANCES,
    "teacher_sharding": ("replicate", "fsdp"),
    "teacher_dtype": (None, "float32", "bfloat16", "float16"),
    "logit_loss": ("auto", "chunked", "dense"),
}
#: What transformers' trainer could do and SBDS would pass over in silence, and why.
_NOT_OBEYED = {
    "label_smoothing_factor": "the teacher's scores stand where labels would be smooth",
    "use_cache": "rows are read at once",
    "use_liger_kernel": "its modules go around the coders",
}
_NOT_NEGATIVE = (
    "alpha",
    "beta",
    "feature_weight",
    "firing_rate_weight",
    "spike_logging_steps",
    "spiking_warmup_steps",
    "teacher_forcing_steps",
)
#: Kinds of parallelism that cut rows: context and sequence.
_PARTS = ("cp", "sp")
_POSITIVE = ("temperature", "threshold_learning_rate", "firing_rate_target")


@dataclass
class SBDSConfig(TrainingArguments):
    """transformers' TrainingArguments and the weights of the SBDS loss.

    Raises:
        ValueError: for a number out of range, an unknown choice, reentrant gradient
            checkpointing, under which hooks see the wrong graph, or an option of
            transformers that SBDS cannot obey.
    """

    # transformers reads these from the command line as JSON
    _VALID_DICT_FIELDS = [  # noqa: RUF012
        *TrainingArguments._VALID_DICT_FIELDS,
        "feature_layers",
    ]

    alpha: float = field(
        default=0.2, metadata={"help": "weight of KL(teacher || student)"}
    )
    beta: float = field(
        default=0.7, metadata={"help": "weight of KL(student || teacher)"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "divides both models' logits"}
    )
    divergence: str = field(
        default="sbds",
        metadata={
            "help": "sbds, or skew or jsd, whose distributions are mixed before they "
            "are compared"
        },
    )
    mixture: float | None = field(
        default=None,
        metadata={"help": "how much the divergence mixes; default: its own"},
    )
    vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "words that exist, where the heads are padded; default: those of "
            "the tokenizer, where the heads differ"
        },
    )
    logit_loss: str = field(
        default="auto",
        metadata={
            "help": "chunked: never the whole logits; dense: all of them at once; "
            "auto: chunked where they would be large"
        },
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
    feature_layers: dict[int, int] | str | None = field(
        default=None,
        metadata={
            "help": "JSON: the teacher's block for each block of the student that is "
            'aligned, such as {"0": 1, "1": 3}; default: each with its own'
        },
    )
    teacher_forcing_steps: int = field(
        default=0,
        metadata={
            "help": "first steps in which each block reads the teacher's features "
            "instead of the student's"
        },
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={"help": "dtype of a teacher loaded by name; default: its own"},
    )
    teacher_device: str | None = field(
        default=None,
        metadata={"help": "where the teacher runs; default: with the student"},
    )
    teacher_sharding: str = field(
        default="replicate",
        metadata={"help": "replicate: a copy for each process; fsdp: sharded by FSDP2"},
    )
    threshold_learning_rate: float | None = field(
        default=None,
        metadata={"help": "learning rate of the thresholds; default: learning_rate"},
    )
    firing_rate_target: float | None = field(
        default=None,
        metadata={
            "help": "spikes per neuron and micro-step that every site is drawn to; "
            "default: none"
        },
    )
    firing_rate_weight: float = field(
        default=1.0,
        metadata={"help": "weight of the squared distance from firing_rate_target"},
    )
    spiking_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "steps over which the sites start to spike, one after the other; "
            "0: all from the start"
        },
    )
    spike_logging_steps: int = field(
        default=10,
        metadata={"help": "log spikes and thresholds every so many steps; 0: never"},
    )

    # the search starts from what forward returns, and some terms of the loss arise
    # beside it; every parameter has its gradient
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "whether DistributedDataParallel looks for unused parameters"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # pinned memory is for an accelerator; without one PyTorch warns of it
        self.dataloader_pin_memory &= self.device.type != "cpu"
        for name in _NOT_NEGATIVE:
            self._require(name, lambda value: value >= 0, "must not be negative")
        for name in _POSITIVE:
            self._require(name, lambda value: value > 0, "must be above zero")
        for name, reason in _NOT_OBEYED.items():
            if value := getattr(self, name, None):
                raise ValueError(
                    f"{name} has no part in SBDS, since {reason}: leave it out, got "
                    f"{value!r}"
                )
        if "labels" not in (self.label_names or ["labels"]):
            raise ValueError(
                f"label_names must have 'labels', which say what counts, got "
                f"{self.label_names!r}"
            )
        sizes = [getattr(self.parallelism_config, f"{kind}_size", 1) for kind in _PARTS]
        if max(sizes) > 1:
            raise ValueError(
                "parallelism_config shares a row among processes, and a scan reads it "
                f"from its start: set cp_size and sp_size to 1, got {sizes}"
            )
        for name, choices in _CHOICES.items():
            known = ", ".join(str(choice) for choice in choices)
            self._require(name, choices.__contains__, f"must be one of {known}")
        if self.teacher_forcing_steps and self.feature_points != "pre_norm":
            raise ValueError(
                "teacher_forcing_steps compares what enters the norms: set "
                f"feature_points='pre_norm', got {self.feature_points!r}"
            )
        if self.feature_layers is not None:
            self.feature_layers = _as_layers(self.feature_layers)
        if self.teacher_device is not None:
            usable_device(self.teacher_device)
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

    def _require(self, name: str, holds: Any, sentence: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} {sentence}, got {value!r}")


def _as_layers(found: Any) -> dict[int, int]:
    try:  # JSON has words for keys
        return {int(str(own)): int(str(other)) for own, other in found.items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(
            "feature_layers must give a block of the teacher for blocks of the "
            f'student, such as {{"0": 1, "1": 3}}, got {found!r}'
        ) from error
