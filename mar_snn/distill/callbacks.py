"""What the trainer does beside training: show the loss, and stop cleanly at Ctrl-C."""

import signal
import threading
from types import FrameType
from typing import Any

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
    """While entered, the first Ctrl-C asks for a checkpoint and an end of training."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> None:
        self.requested = False
        # Python allows signal handlers in the main thread only
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._request)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        **_: object,
    ) -> None:
        if self.requested:
            control.should_save = control.should_training_stop = True

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        # a second Ctrl-C does what it always does
        signal.signal(signal.SIGINT, self._previous)
        self.requested = True
