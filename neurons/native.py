"""C kernels for the CPU: compiled at first use, kept in the user's cache.

They are optional. Whatever asks for them has a PyTorch twin that runs without, and asks
before it changes anything.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["coder", "load", "obstacle"]

_FLAGS = ("-O3", "-march=native", "-std=c11", "-shared", "-fPIC")
#: where the headers are
_HERE = Path(__file__).parent
#: a compiler that has not ended by then never will; ours take a second or two
_PATIENCE_S = 60.0
#: of what a compiler says, the end
_MOST_WORDS = 2000


def obstacle() -> str:
    """Why no C kernel can run here; "" if one can, and the coder's is loaded."""
    if why := _no_compiler():
        return why
    try:
        coder()
    except RuntimeError as why_not:
        return str(why_not)
    return ""


def coder() -> ctypes.CDLL:
    """The library of code.c; see `load`."""
    return load(
        _HERE / "code.c",
        "-ffp-contract=off",
        symbols=("code_f32", "code_f64", "code_bf16"),
    )


def load(source: Path, *flags: str, symbols: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library that `source` compiles to, with these functions.

    It is compiled once for each machine. A process tries once: it remembers why there
    is none, too, until the environment names another compiler or cache.

    Raises:
        RuntimeError: says why there is no library that can be loaded.
    """
    if why := _no_compiler():
        raise RuntimeError(f"{source.name} cannot be compiled: {why}")
    outcome = _outcome(source, flags, symbols, tuple(_compiler()), _cache())
    if isinstance(outcome, str):
        raise RuntimeError(outcome)
    return outcome


@functools.cache
def _outcome(
    source: Path,
    flags: tuple[str, ...],
    symbols: tuple[str, ...],
    compiler: tuple[str, ...],
    folder: Path,
) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    # Apple's clang has no OpenMP: there the loops run on one thread
    openmp = () if sys.platform == "darwin" else ("-fopenmp",)
    command = [*compiler, *_FLAGS, *openmp, *flags]
    texts = [path.read_bytes() for path in (source, *sorted(_HERE.glob("*.h")))]
    known = b"".join([*texts, repr((command, _machine())).encode()])
    stem = f"{source.stem}-{hashlib.sha256(known).hexdigest()[:16]}"
    for kept in folder.glob(f"{stem}-*.so"):
        try:
            # part of a library may load, and end the process where the rest should be
            if kept.name == _name(stem, kept):
                return _open(kept, symbols)
        except OSError:
            continue  # compiled anew, and in its place where it can be
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "made.so"
            command += [f"-I{_HERE}", str(source), "-o", str(made)]
            library = _compile(command, source, made, symbols)
            # whole or not at all, whoever else compiles it
            made.replace(folder / _name(stem, made))
    except OSError as error:
        return (
            f"the library of {source.name} cannot be kept ({error}): set "
            "XDG_CACHE_HOME to a folder that can be written"
        )
    except RuntimeError as error:
        return str(error)
    return library


def _compile(
    command: list[str], source: Path, made: Path, symbols: tuple[str, ...]
) -> ctypes.CDLL:
    """Run a compiler that may be anything, and load what it says it made."""
    called, name = shlex.join(command), source.name
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE_S,
            check=False,
        )
    except OSError as error:
        raise RuntimeError(
            f"{command[0]} cannot be run to compile {name} ({error}): set CC to a C "
            "compiler"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{called} cannot compile {name}: it has not ended after {_PATIENCE_S:g} "
            "s; set CC to another compiler"
        ) from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-_MOST_WORDS:]
        raise RuntimeError(
            f"{called} cannot compile {name}: it ended with {done.returncode}\n{words}"
            "\nset CC to another compiler"
        )
    try:
        return _open(made, symbols)
    except OSError as error:
        raise RuntimeError(
            f"{called} made of {name} no library that can be loaded ({error}): set CC "
            "to another compiler, or XDG_CACHE_HOME to a folder that programs may be "
            "run from"
        ) from error


def _open(path: Path, symbols: tuple[str, ...]) -> ctypes.CDLL:
    """The library at `path`; an OSError where it is none, or lacks a function."""
    library = ctypes.CDLL(str(path))
    if missing := [symbol for symbol in symbols if not hasattr(library, symbol)]:
        raise OSError(f"it has no function {', '.join(missing)}")
    return library


def _name(stem: str, path: Path) -> str:
    """What a library is called in the cache: by its source and by its contents."""
    return f"{stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _no_compiler() -> str:
    """Why there is none to try; "" where there is a program of that name."""
    if os.name != "posix":
        return "C kernels are compiled on Linux and macOS only"
    try:
        (compiler, *_) = _compiler()
    except ValueError as error:
        return f"CC is no command, {error}: {os.environ['CC']!r}"
    if shutil.which(compiler) is None:
        return f"there is no C compiler {compiler!r}: install gcc or clang, or set CC"
    return ""


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():  # the XDG specification has such a one ignored
        try:
            home = Path.home() / ".cache"
        except RuntimeError as error:
            raise RuntimeError(
                "there is no home folder to keep C kernels in: set XDG_CACHE_HOME"
            ) from error
    return home / "mar_snn"


def _machine() -> tuple[str, str]:
    """What -march=native depends on: a home folder may be that of several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = [
        line for line in lines if line.lower().startswith(("flags", "features"))
    ]
    return platform.machine(), features[0] if features else platform.processor()
