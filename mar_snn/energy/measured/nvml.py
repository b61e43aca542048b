"""The energy counters of NVIDIA boards, read through NVML."""

import math
import os
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import torch

from mar_snn.energy.measured.sensors import BoardState, SensorUnavailableError

__all__ = ["NvmlSensor"]

_T = TypeVar("_T")


class NvmlSensor:
    """The total-energy counters of NVIDIA boards, in mJ since the driver was loaded.

    The boards are those that CUDA_VISIBLE_DEVICES leaves, all of them without it. Needs
    Volta or newer (NVML API reference, nvmlDeviceGetTotalEnergyConsumption).

    Raises:
        SensorUnavailableError: without package, driver, board or counter.
    """

    name = "nvml"
    #: Counters are updated every 20 to 100 ms (PETSc manual, PetscLogGpuEnergyMeter).
    period_s = 0.1
    max_gap_s = math.inf

    def __init__(self) -> None:
        try:
            self._nvml = import_module("pynvml")
        except ImportError:
            raise SensorUnavailableError(
                "NVML: the package nvidia-ml-py is not installed: "
                "pip install 'mar-snn[nvml]'"
            ) from None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise SensorUnavailableError(
                f"NVML: {error}; it comes with NVIDIA's driver: nvidia-smi must run"
            ) from None
        try:
            handles, remark = self._find_boards()
            self._boards = {self._name(handle): handle for handle in handles}
            self._read()
        except self._nvml.NVMLError as error:
            self.close()
            raise SensorUnavailableError(
                f"NVML: no energy counter can be read ({error}): that takes Volta "
                "or newer, and a whole board, not a MIG slice"
            ) from None
        if not self._boards:
            self.close()
            raise SensorUnavailableError(
                "NVML: no board is visible; see nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        self.devices = tuple(self._boards)
        self._before: dict[str, int] = {}
        self.remarks: tuple[str, ...] = (
            *self._remarks(),
            *([remark] if remark else []),
        )

    def start(self) -> None:
        self._before = self._read()

    def poll(self) -> None:
        """Nothing: 64 bits of millijoules do not wrap."""

    def stop(self) -> dict[str, float]:
        after = self._read()
        return {name: (after[name] - mj) / 1000 for name, mj in self._before.items()}

    def state(self) -> BoardState:
        nvml, boards = self._nvml, self._boards.values()
        limits = [self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, b) for b in boards]
        clocks = [
            self._ask(nvml.nvmlDeviceGetClockInfo, b, nvml.NVML_CLOCK_SM)
            for b in boards
        ]
        temps = [
            self._ask(nvml.nvmlDeviceGetTemperature, b, nvml.NVML_TEMPERATURE_GPU)
            for b in boards
        ]
        return BoardState(
            driver=self._ask(nvml.nvmlSystemGetDriverVersion),
            power_limit_w=tuple(mw / 1000 for mw in limits if mw is not None),
            clock_mhz=min((float(c) for c in clocks if c is not None), default=None),
            temp_c=max((float(t) for t in temps if t is not None), default=None),
        )

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _read(self) -> dict[str, int]:
        read = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        return {name: read(handle) for name, handle in self._boards.items()}

    def _find_boards(self) -> tuple[list[Any], str]:
        """The boards to meter, and a remark where these are not the visible ones."""
        nvml = self._nvml
        count = nvml.nvmlDeviceGetCount()
        everything = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return everything, ""
        if not visible.strip():
            return [], ""
        # torch numbers boards in CUDA's order, NVML in that of the bus: UUIDs agree
        numbers = range(torch.cuda.device_count())
        uuids = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in numbers]
        try:
            found = [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        except nvml.NVMLError:
            found = []
        if found:
            return found, ""
        return everything, (
            f"CUDA_VISIBLE_DEVICES={visible} names no whole board that torch sees: "
            "every board of the machine is metered"
        )

    def _name(self, handle: Any) -> str:
        name = self._nvml.nvmlDeviceGetName(handle)
        return f"{name} {self._nvml.nvmlDeviceGetUUID(handle)}"

    def _ask(self, question: Callable[..., _T], *args: Any) -> _T | None:
        """The answer, None where the board has none."""
        try:
            return question(*args)
        except self._nvml.NVMLError:
            return None

    def _remarks(self) -> list[str]:
        """What limits the figures of these boards."""
        remarks = [
            "NVML counts whole boards: memory, regulators and whoever else uses them"
        ]
        for name, board in self._boards.items():
            processes = self._ask(
                self._nvml.nvmlDeviceGetComputeRunningProcesses, board
            )
            if processes is not None and len(processes) > 1:
                remarks.append(f"{len(processes)} processes share {name}")
            mode = self._ask(self._nvml.nvmlDeviceGetMigMode, board)
            if mode is not None and mode[0]:
                remarks.append(f"{name} is split by MIG: all its slices are counted")
            if re.search(r"\b[AH]100\b", name):
                remarks.append(
                    f"the sensor of {name} samples 25 % of the run time "
                    "(arXiv:2312.02741): repeat short workloads and trials"
                )
        return remarks
