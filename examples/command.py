"""How an example ends: 0 when done, 2 after bad input, 130 after Ctrl-C.

Bad input and Ctrl-C are one line on stderr, as those of argparse. Who imports this
before torch answers Ctrl-C in one line while the rest is imported, too.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from mar_snn.console import show_what_can_be_shown

__all__ = [
    "at_least",
    "check_ranges",
    "checkpoints_named",
    "ended",
    "given_to_libraries",
    "output_folder",
]

#: what bad input raises in the libraries that it is given to
ERRORS = (
    AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def ended(after_ctrl_c: str) -> Callable[[Callable[[], int]], Callable[[], int]]:
    """A decorator of `main`: it returns the exit code, whatever happens inside.

    A ValueError, an OSError and a missing package are taken for bad input.

    Args:
        after_ctrl_c: what is lost or how to go on, unless the KeyboardInterrupt says.
    """

    def decorate(main: Callable[[], int]) -> Callable[[], int]:
        @wraps(main)
        def run() -> int:
            show_what_can_be_shown()
            try:
                return main()
            except (ValueError, OSError, ImportError) as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                return 2
            except KeyboardInterrupt as interrupt:
                said = str(interrupt) or after_ctrl_c
                print(f"\nInterrupted: {said}", file=sys.stderr)
                return 130

        return run

    return decorate


@contextmanager
def given_to_libraries() -> Iterator[None]:
    """Whatever a library raises inside the block is a ValueError: its input was bad."""
    try:
        yield
    except ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error


def at_least(least: int, arguments: object, *names: str) -> None:
    """Nothing, where those attributes are that large; else a ValueError."""
    for name in names:
        value = getattr(arguments, name)
        if not value >= least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")


def check_ranges(args: Any) -> None:
    """Nothing, where the numbers of transformers' TrainingArguments can be.

    It takes them as they are, and some fail much later or mean something else.

    Raises:
        ValueError: for the first that cannot.
    """
    for kind in ("train", "eval"):
        at_least(1, args, f"per_device_{kind}_batch_size")
    at_least(1, args, "gradient_accumulation_steps")
    at_least(0, args, "dataloader_num_workers")
    if args.max_steps != -1:
        at_least(1, args, "max_steps")
    elif not args.num_train_epochs > 0:
        raise ValueError(
            f"--num_train_epochs must be above zero, got {args.num_train_epochs}"
        )


def output_folder(name: str, option: str = "--output_dir") -> Path:
    """The folder of that name, made where it is not there, in which a file can be made.

    Raises:
        ValueError: where it is a file.
        OSError: where nothing can be written.
    """
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {name} is a file, not a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{error}; give {option} a folder that can be written to"
        ) from error
    return folder


@contextmanager
def checkpoints_named(output_dir: str) -> Iterator[None]:
    """A Ctrl-C inside the block says from which checkpoint the run can go on."""
    from mar_snn.distill import last_checkpoint  # takes seconds

    try:
        yield
    except KeyboardInterrupt as interrupt:
        checkpoint = getattr(interrupt, "checkpoint", None)
        checkpoint = checkpoint or last_checkpoint(output_dir)
        if checkpoint is None:
            raise
        way_on = f"--resume_from_checkpoint {shlex.quote(checkpoint)}"
        raise KeyboardInterrupt(f"go on by the same command and {way_on}") from None


def _end_of_imports(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\nInterrupted while starting", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _end_of_imports
