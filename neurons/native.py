"""C kernels for the CPU: compiled at first use, kept in the user's cache.

They are optional. Whatever asks for them has a PyTorch twin that runs without.
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

__all__ = ["load", "obstacle"]

_FLAGS = ("-O3", "-march=native", "-std=c11", "-shared", "-fPIC")
#: where the headers are
_HERE = Path(__file__).parent


def obstacle() -> str:
    """Why no C kernel can be compiled here; "" if one can."""
    if os.name != "posix":
        return "C kernels are compiled on Linux and macOS only"
    if shutil.which(_compiler()[0]) is None:
        compiler = repr(_compiler()[0])
        return f"there is no C compiler {compiler}: install gcc or clang, or set CC"
    return ""


@functools.cache
def load(source: Path, *flags: str) -> ctypes.CDLL:
    """The library that `source` compiles to; compiled once for each machine.

    Raises:
        RuntimeError: there is no compiler, or it refuses the source.
    """
    if why := obstacle():
        raise RuntimeError(f"{source.name} cannot be compiled: {why}")
    # Apple's clang has no OpenMP: there the loops run on one thread
    openmp = () if sys.platform == "darwin" else ("-fopenmp",)
    command = [*_compiler(), *_FLAGS, *openmp, *flags]
    texts = [path.read_bytes() for path in (source, *sorted(_HERE.glob("*.h")))]
    known = b"".join([*texts, repr((command, _machine())).encode()])
    key = hashlib.sha256(known).hexdigest()
    library = _cache() / f"{source.stem}-{key[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            done = subprocess.run(
                [*command, f"-I{_HERE}", str(source), "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(
                    f"{shlex.join(command)} cannot compile {source.name}:\n"
                    f"{done.stderr.strip()}\nset CC to another compiler"
                )
            made.replace(library)  # whole or not at all, whoever else compiles it
    return ctypes.CDLL(str(library))


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mar_snn"


def _machine() -> tuple[str, str]:
    """What -march=native depends on: a home folder may be that of several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = [
        line for line in lines if line.lower().startswith(("flags", "features"))
    ]
    return platform.machine(), features[0] if features else platform.processor()
