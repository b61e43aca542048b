"""The energy counters that the package zeus reads."""

import math
from importlib import import_module
from typing import Any

from mar_snn.energy.measured.sensors import SensorUnavailableError

__all__ = ["ZeusSensor"]

#: Fields of zeus' measurement of a system on a chip, in mJ. The first group that the
#: chip has is its energy: Jetson's total, Jetson's parts, the parts of Apple silicon.
_CHIP_FIELDS = (
    ("total_energy_mj",),
    ("cpu_energy_mj", "gpu_energy_mj"),
    ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj"),
)


class ZeusSensor:
    """What zeus (`pip install zeus`) reads: AMD boards, Jetson, Apple silicon, zeusd.

    Args:
        gpus: meter boards.
        cpus: meter processor packages.

    Raises:
        SensorUnavailableError: where zeus is missing or finds nothing to read.
    """

    name = "zeus"
    #: As NVML's; that of other vendors is not documented.
    period_s = 0.1
    max_gap_s = math.inf
    remarks: tuple[str, ...] = (
        "zeus read the counters (a processor with its DRAM): what they cover is in its "
        "documentation",
    )

    def __init__(self, *, gpus: bool = True, cpus: bool = True) -> None:
        try:
            monitors = import_module("zeus.monitor")
            base_error = import_module("zeus.exception").ZeusBaseError
        except ImportError:
            raise SensorUnavailableError(
                "zeus: the package is not installed: pip install zeus"
            ) from None
        try:
            self._monitor = monitors.ZeusMonitor(
                gpu_indices=None if gpus else [], cpu_indices=None if cpus else []
            )
        except (base_error, RuntimeError, OSError) as error:
            raise SensorUnavailableError(f"zeus: {error}") from None
        monitor = self._monitor
        self.devices: tuple[str, ...] = (
            *(f"gpu-{i}" for i in monitor.gpu_indices),
            *(f"cpu-{i}" for i in monitor.cpu_indices),
        )
        if monitor.soc_is_present:
            # boards and processors are parts of the chip: counted once
            self.devices = ("chip",)
        if not self.devices:
            raise SensorUnavailableError(
                "zeus: it finds no further sensor here; `python -m zeus.show_env` says "
                "why, and its daemon zeusd reads RAPL without root"
            )

    def start(self) -> None:
        self._monitor.begin_window("mar_snn", sync_execution=False)

    def poll(self) -> None:
        """Nothing: zeus follows the wraps itself."""

    def stop(self) -> dict[str, float]:
        window = self._monitor.end_window("mar_snn", sync_execution=False)
        if self._monitor.soc_is_present:
            return {"chip": _chip_joules(window.soc_energy)}
        energies = {f"gpu-{i}": joules for i, joules in window.gpu_energy.items()}
        memory = window.dram_energy or {}
        for i, joules in (window.cpu_energy or {}).items():
            energies[f"cpu-{i}"] = joules + memory.get(i, 0.0)
        return energies

    def state(self) -> None:
        """None: zeus' windows hold no clocks."""

    def close(self) -> None:
        """Nothing: a monitor lets go when it is collected."""


def _chip_joules(window: Any) -> float:
    for fields in _CHIP_FIELDS:
        parts = [getattr(window, field, None) for field in fields]
        if any(part is not None for part in parts):
            return sum(part for part in parts if part is not None) / 1000
    return 0.0
