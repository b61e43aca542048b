"""What a trainer is given, checked before it starts."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from mar_snn.distill.config import SBDSConfig
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.spiking import coders

__all__ = [
    "check_boundaries",
    "check_causal",
    "check_given",
    "first_row",
    "forward_takes",
]

#: Arguments of transformers.Trainer that SBDS cannot obey, and why.
_REFUSED = {
    "model_init": "the teacher is compared with a student that exists: pass model",
    "compute_loss_func": "the loss is that of SBDS: see SBDSConfig for its terms",
}
#: Options of SBDSConfig that are about spikes.
_OF_SPIKES = (
    "firing_rate_target",
    "spiking_warmup_steps",
    "threshold_learning_rate",
)


def check_given(model: Any, args: Any, **kwargs: Any) -> SBDSConfig:
    """`args`, where SBDSTrainer can obey all that it is given.

    Args:
        model: the student.
        args: an SBDSConfig.
        kwargs: what transformers.Trainer takes.

    Raises:
        ValueError: says what is wrong and what to give instead.
    """
    for name, reason in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} cannot be used with SBDSTrainer: {reason}")
    if not isinstance(args, SBDSConfig):
        raise ValueError(f"args must be an SBDSConfig, got {type(args).__name__}")
    check_causal(model, "student")
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs, and the hooks of SBDS do not follow "
            "the copies that DataParallel makes of the student: start with accelerate "
            "launch, or show the process one GPU (CUDA_VISIBLE_DEVICES)"
        )
    asked = [name for name in _OF_SPIKES if getattr(args, name)]
    if asked and not any(coders(model)):
        raise ValueError(
            f"{' and '.join(asked)} of a student without coders: call spikify first"
        )
    if args.threshold_learning_rate is not None:
        if not any(isinstance(coder, ATMNCoder) for _, coder in coders(model)):
            raise ValueError(
                "threshold_learning_rate is for thresholds that learn, and those of "
                "the student's coders are fixed: leave it out"
            )
        if any(kwargs.get("optimizers") or ()):
            raise ValueError(
                "threshold_learning_rate is for the optimizer that the trainer makes: "
                "leave it out, or give the thresholds a group in your own"
            )
    return args


def check_causal(model: Any, role: str) -> None:
    """Refuse a model without a head, or inside a wrapper that hides it."""
    get_head = getattr(model, "get_output_embeddings", None)
    if get_head is None or get_head() is None:
        inner = type(getattr(model, "module", None)).__name__
        wrapped = f" around a {inner}: pass its .module" if inner != "NoneType" else ""
        raise ValueError(
            f"the {role} must be a causal language model of transformers, which has "
            f"output embeddings, got {type(model).__name__}{wrapped}"
        )


def check_boundaries(batch: Mapping[str, Any], **models: nn.Module) -> None:
    """Refuse a batch whose texts are kept apart where a model would read on.

    A batch says where a text begins by `seq_idx`, or by `position_ids` that start anew.

    Args:
        batch: a batch, or one row of it.
        models: by what they are called in the sentence.

    Raises:
        ValueError: names the first model that heeds nothing of what the batch says.
    """
    said = [name for name in ("seq_idx", "position_ids") if name in batch]
    for role, model in models.items():
        if any(_heeds(model, name) for name in said):
            continue
        # positions that only count on say nothing
        if "seq_idx" in said or (said and _starts_anew(batch["position_ids"])):
            raise ValueError(
                f"the rows keep their texts apart by {said[0]}, and the {role}, a "
                f"{type(model).__name__}, would read on from one to the next: pack "
                "them without boundaries"
            )


def _heeds(model: nn.Module, name: str) -> bool:
    # a position moves the attention of a hybrid and leaves its convolutions alone
    recurrent = any(isinstance(module, nn.Conv1d) for module in model.modules())
    return forward_takes(model, name) and (name == "seq_idx" or not recurrent)


def _starts_anew(position_ids: Any) -> bool:
    return bool((torch.as_tensor(position_ids).diff(dim=-1) <= 0).any())


def forward_takes(model: Any, name: str) -> bool:
    """Whether a model's forward has an argument of that name, adapters looked through.

    `**kwargs` do not count: they swallow what nobody reads.
    """
    if hasattr(model, "get_base_model"):  # peft's, which hides the arguments
        model = model.get_base_model()
    return name in inspect.signature(model.forward).parameters


def first_row(rows: Any) -> Mapping[str, Any]:
    """The first row of a data set, or nothing where reading it would lose it."""
    row: Any = None
    if hasattr(rows, "__getitem__") and hasattr(rows, "__len__"):
        row = rows[0] if len(rows) else None
    elif isinstance(rows, Iterable):
        one, other = iter(rows), iter(rows)
        row = None if one is other else next(one, None)
    return row if isinstance(row, Mapping) else {}
