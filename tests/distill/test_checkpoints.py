"""A run that is killed while it saves goes on from the last whole checkpoint."""

import copy
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Trainer, TrainerState

from mar_snn.distill import SBDSTrainer, last_checkpoint
from mar_snn.distill.checkpoints import only_run_in
from mar_snn.distill.data import collate


def checkpoint(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_last_checkpoint_is_the_newest_that_was_written_to_its_end(
    tmp_path, caplog
):
    assert last_checkpoint(str(tmp_path)) is None
    assert last_checkpoint(str(tmp_path / "missing")) is None
    checkpoint(tmp_path, 9)
    whole = checkpoint(tmp_path, 10)
    torn = checkpoint(tmp_path, 11, '{"global_st')
    empty = checkpoint(tmp_path, 12, None)
    (tmp_path / "checkpoint-best").mkdir()
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(str(tmp_path)) == str(whole)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was not written to its end: passed over" for path in (empty, torn)
    ]


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def die(*_: object, **__: object) -> None:
    raise Killed


def die_half_way(state: TrainerState, path: str) -> None:
    Path(path).write_text('{"best_metric": nu')
    raise Killed


#: What is being written when the run is killed.
MOMENTS = {
    "model": (Trainer, "save_model", die),
    "optimizer": (Trainer, "_save_optimizer_and_scheduler", die),
    "random numbers": (Trainer, "_save_rng_state", die),
    "state": (TrainerState, "save_to_json", die_half_way),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_while_it_saves_resumes_to_the_same_run(
    student, teacher, config, rows, monkeypatch, moment
):
    def run(steps: int, resume: bool) -> list[float]:
        args = config(max_steps=6, save_strategy="steps", save_steps=2.0)
        sbds = SBDSTrainer(
            copy.deepcopy(student),
            teacher,
            args,
            train_dataset=rows,
            data_collator=collate,
        )
        if steps < 6:
            owner, name, death = MOMENTS[moment]
            original = getattr(owner, name)

            def killed_at_last(self, *given, **named):
                if sbds.state.global_step == steps:
                    return death(self, *given, **named)
                return original(self, *given, **named)

            monkeypatch.setattr(owner, name, killed_at_last)
        try:
            sbds.train(resume_from_checkpoint=resume)
        finally:
            monkeypatch.undo()
        return [e["loss"] for e in sbds.state.log_history if "loss" in e]

    whole = run(6, resume=False)
    # the folder of step 4 is whole from this run: the next one writes into it again
    with pytest.raises(Killed):
        run(4, resume=False)
    folder = Path(config().output_dir)
    shutil.rmtree(folder / "checkpoint-6")  # of the first run
    assert last_checkpoint(str(folder)) == str(folder / "checkpoint-2")
    assert run(6, resume=True) == whole


def test_nothing_to_resume_from_is_an_error(student, teacher, config, rows):
    sbds = SBDSTrainer(
        student, teacher, config(), train_dataset=rows, data_collator=collate
    )
    with pytest.raises(ValueError, match="no whole checkpoint in"):
        sbds.train(resume_from_checkpoint=True)


#: Another process that writes into the folder until it is killed.
OTHER_RUN = """
import sys
from mar_snn.distill.checkpoints import only_run_in
with only_run_in(sys.argv[1]):
    print("running", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_kept_out_of_a_folder_until_the_first_has_died(
    student, teacher, config, rows, tmp_path
):
    def train() -> None:
        SBDSTrainer(student, teacher, config(max_steps=1), train_dataset=rows).train()

    command = [sys.executable, "-c", OTHER_RUN, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "running\n"
        with pytest.raises(ValueError, match=f"another run writes into {tmp_path}: w"):
            train()
        other.kill()
    train()
    # whoever writes results beside the trainer's holds the folder for longer
    with only_run_in(str(tmp_path)):
        train()
        train()
    assert not list(tmp_path.glob("_*"))


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    with only_run_in(str(tmp_path / "file" / "folder")):
        pass
    assert "cannot be locked against a second run" in caplog.text
