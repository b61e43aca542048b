"""A run that stops, however it is stopped, goes on as if it had not."""

import copy
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from transformers import (
    TrainerCallback,
)

from mar_snn.distill import (
    TrainingInterrupted,
)
from tests.distill.training import RATES, TERMS, losses, trainer


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    student, teacher, config, rows, tmp_path
):
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4.0}
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        sbds = trainer(copy.deepcopy(student), teacher, config(**options), rows)
        sbds.train(resume_from_checkpoint=resume)
        runs.append(sbds)
    entries = [
        [{k: e.get(k) for k in ("loss", *TERMS, *RATES)} for e in run.state.log_history]
        for run in runs
    ]
    assert len(entries[0]) == 10
    assert entries[0][:-1] == entries[1][:-1]
    for one, two in zip(
        runs[0].model.parameters(), runs[1].model.parameters(), strict=True
    ):
        assert one.equal(two)


@pytest.fixture
def _ctrl_c_raises() -> Iterator[None]:
    """As in a shell; a worker of pytest-xdist ignores Ctrl-C."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class CtrlC(TrainerCallback):
    """Presses Ctrl-C while step 3 is under way, `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for _ in range(self.times):
                handler = signal.getsignal(signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                # two signals at once would be handled as one
                while signal.getsignal(signal.SIGINT) is handler:
                    time.sleep(0.01)


def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_run(
    student, teacher, config, rows, tmp_path
):
    handler = signal.getsignal(signal.SIGINT)
    whole = trainer(copy.deepcopy(student), teacher, config(max_steps=5), rows)
    whole.train()
    first = trainer(
        copy.deepcopy(student),
        teacher,
        config(max_steps=5),
        rows,
        callbacks=[CtrlC(1)],
    )
    with pytest.raises(TrainingInterrupted) as stopped:
        first.train()
    assert stopped.value.checkpoint == f"{tmp_path}/checkpoint-3"
    assert signal.getsignal(signal.SIGINT) is handler
    second = trainer(copy.deepcopy(student), teacher, config(max_steps=5), rows)
    second.train(resume_from_checkpoint=stopped.value.checkpoint)
    assert losses(second) == losses(whole)


@pytest.mark.usefixtures("_ctrl_c_raises")
def test_the_second_ctrl_c_stops_at_once(student, teacher, config, rows, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    sbds = trainer(student, teacher, config(), rows, callbacks=[CtrlC(2)])
    with pytest.raises(KeyboardInterrupt) as stopped:
        sbds.train()
    assert not isinstance(stopped.value, TrainingInterrupted)
    assert not (tmp_path / "checkpoint-3").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_launcher_that_ends_the_run_gets_a_checkpoint(
    student, teacher, config, rows, tmp_path
):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    sbds = trainer(student, teacher, config(), rows, callbacks=[Terminate()])
    with pytest.raises(TrainingInterrupted, match="checkpoint-2"):
        sbds.train()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_training_in_another_thread_leaves_signals_alone(
    student, teacher, config, rows
):
    sbds = trainer(student, teacher, config(max_steps=1), rows)
    thread = threading.Thread(target=sbds.train)
    thread.start()
    thread.join()
    assert len(losses(sbds)) == 1
