"""Where a figure comes from: the machine and the versions that decide it."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch

__all__ = ["machine", "versions"]


def machine() -> dict[str, Any]:
    """Device, threads, cores and system of this run."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        device = f"CPU, {platform.machine()}, {capability}"
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, this package, torch, its hosts, and other `packages`."""
    names = ("mar-snn", "transformers", "spikingjelly", "datasets", *packages)
    # torch's own string names the build too, such as 2.11.0+cu130
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in names}
