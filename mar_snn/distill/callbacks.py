"""What the trainer does beside training: show the loss, and stop cleanly at Ctrl-C."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ProgressCallback

__all__ = ["InterruptCallback", "TermsOnTheBar"]

_SHOWN = ("loss", "forward_kl", "reverse_kl", "features", "firing_rate")


class TermsOnTheBar(ProgressCallback):
    """transformers' progress bar, with the newest log entry behind it."""

    def on_log(
        self, *_: object, logs: dict[str, float] | None = None, **__: object
    ) -> None:
        if self.training_bar is not None and logs is not None:
            terms = {name: f"{logs[name]:.3g}" for name in _SHOWN if name in logs}
            self.training_bar.set_postfix(terms)


class InterruptCallback(TrainerCallback):
    """While entered, the first Ctrl-C asks for a checkpoint and an end of training.

    So does SIGTERM, with which launchers and batch systems announce the end. Several
    processes stop behind the same step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        self.requested = False
        # Python allows signal handlers in the main thread only
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: object,
    ) -> None:
        if args.world_size > 1:
            # the signal may have reached another process within another step
            wish = torch.tensor(self.requested, dtype=torch.int32, device=args.device)
            dist.all_reduce(wish, dist.ReduceOp.MAX)
            self.requested = bool(wish)
        if self.requested:
            control.should_save = control.should_training_stop = True

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # a second Ctrl-C does what it always does
            signal.signal(number, self._previous[number])
        self.requested = True
