"""Which checkpoint of a run is whole: a run may be killed while it writes one."""

import json
import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

__all__ = ["is_complete", "last_checkpoint", "mark_incomplete"]

logger = logging.getLogger(__name__)


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
