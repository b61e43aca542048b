"""Which checkpoint of a run is whole: a run may be killed while it writes one."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

__all__ = ["is_complete", "last_checkpoint", "mark_incomplete", "only_run_in"]

logger = logging.getLogger(__name__)

#: Held by the run that writes into its folder; what starts with "_" goes to no hub.
_LOCK = "_run.lock"


@contextmanager
def only_run_in(output_dir: str) -> Iterator[None]:
    """No other run writes into a folder inside the block; a block in a block is free.

    The lock is the process's own: it ends with it, however that ends. Of several
    processes of one run, one should enter.

    Raises:
        ValueError: where another run writes into the folder.
    """
    folder = Path(output_dir)
    lock = FileLock(folder / _LOCK, timeout=0, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another run writes into {output_dir}: wait for its end, or give this one "
            "another output_dir"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning("%s cannot be locked against a second run: %s", folder, error)
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # who waits for the file sees that it is gone
            with suppress(OSError):
                (folder / _LOCK).unlink()
        lock.release()


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written: the trainer's state, its last file, is.

    The trainer takes that file away before it writes into the folder again.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def mark_incomplete(checkpoint: Path) -> None:
    """Make `is_complete` deny it until the trainer's state is written again."""
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint in a folder; None where there is none.

    Names the newer ones that are not whole in the log.
    """
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    folder = Path(output_dir)
    steps = [path.name.removeprefix(prefix) for path in folder.glob(f"{prefix}*")]
    for step in sorted((int(s) for s in steps if s.isdigit()), reverse=True):
        path = folder / f"{prefix}{step}"
        if is_complete(path):
            return str(path)
        logger.warning("%s was not written to its end: passed over", path)
    return None
