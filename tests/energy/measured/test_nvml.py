"""NvmlSensor on a driver with boards made of numbers."""
# ruff: noqa: N802  the driver has NVML's names

import math
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mar_snn.energy.measured.nvml import NvmlSensor
from mar_snn.energy.measured.sensors import SensorUnavailableError


@dataclass
class Board:
    name: str = "NVIDIA L4"
    uuid: str = "GPU-0"
    mj: int = 0
    limit_mw: int | None = 72_000
    clock_mhz: int | None = 2040
    temp_c: int | None = 50
    processes: list = field(default_factory=list)
    mig: bool | None = None


class Driver(ModuleType):
    """pynvml with some boards; what a board has as None it does not support."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, *boards, broken=""):
        super().__init__("pynvml")
        self.boards, self.broken, self.shut_down = boards, broken, 0

    def has(self, value):
        if value is None:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):
        if self.broken:
            raise self.NVMLError(self.broken)

    def nvmlShutdown(self):
        self.shut_down += 1

    def nvmlSystemGetDriverVersion(self):
        return "580.65"

    def nvmlDeviceGetCount(self):
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.boards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for board in self.boards:
            if board.uuid == uuid:
                return board
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetName(self, board):
        return board.name

    def nvmlDeviceGetUUID(self, board):
        return board.uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, board):
        return self.has(board.mj)

    def nvmlDeviceGetEnforcedPowerLimit(self, board):
        return self.has(board.limit_mw)

    def nvmlDeviceGetClockInfo(self, board, kind):
        assert kind == self.NVML_CLOCK_SM
        return self.has(board.clock_mhz)

    def nvmlDeviceGetTemperature(self, board, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self.has(board.temp_c)

    def nvmlDeviceGetComputeRunningProcesses(self, board):
        return self.has(board.processes)

    def nvmlDeviceGetMigMode(self, board):
        return [int(self.has(board.mig)), 0]


@pytest.fixture
def install(monkeypatch):
    """Put a driver where `import pynvml` finds it; None hides one that is there."""

    def put(driver):
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return driver

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return put


def test_a_window_of_nvml_is_the_difference_of_its_counters_in_joules(install):
    one, two = Board(uuid="GPU-1", mj=1_000), Board(uuid="GPU-2", mj=9_999_999)
    driver = install(Driver(one, two))
    sensor = NvmlSensor()
    assert sensor.devices == ("NVIDIA L4 GPU-1", "NVIDIA L4 GPU-2")
    sensor.start()
    one.mj += 2_500
    sensor.poll()
    one.mj += 1
    two.mj += 70_000
    assert sensor.stop() == {"NVIDIA L4 GPU-1": 2.501, "NVIDIA L4 GPU-2": 70.0}
    sensor.start()
    assert sensor.stop() == {"NVIDIA L4 GPU-1": 0.0, "NVIDIA L4 GPU-2": 0.0}
    assert (sensor.period_s, sensor.max_gap_s) == (0.1, math.inf)
    sensor.close()
    assert driver.shut_down == 1


def test_nvml_tells_the_slowest_clock_the_hottest_board_and_every_limit(install):
    cool = Board(uuid="GPU-1", clock_mhz=1980, temp_c=40)
    hot = Board(uuid="GPU-2", clock_mhz=1410, temp_c=83, limit_mw=350_500)
    install(Driver(cool, hot))
    state = NvmlSensor().state()
    assert state.driver == "580.65"
    assert state.power_limit_w == (72.0, 350.5)
    assert (state.clock_mhz, state.temp_c) == (1410.0, 83.0)


def test_what_a_board_does_not_tell_is_left_out(install):
    mute = Board(limit_mw=None, clock_mhz=None, temp_c=None, processes=None)
    install(Driver(mute))
    sensor = NvmlSensor()
    state = sensor.state()
    assert state.power_limit_w == ()
    assert state.clock_mhz is state.temp_c is None
    assert sensor.remarks == (
        "NVML counts whole boards: memory, regulators and whoever else uses them",
    )


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe"])
def test_a_part_time_sensor_mig_and_neighbours_are_named(install, name):
    install(Driver(Board(name=name, mig=True, processes=[1, 2, 3])))
    remarks = "\n".join(NvmlSensor().remarks)
    assert f"3 processes share {name}" in remarks
    assert f"{name} GPU-0 is split by MIG" in remarks
    assert "samples 25 % of the run time (arXiv:2312.02741)" in remarks


def test_a_board_of_ones_own_without_mig_has_nothing_to_remark(install):
    install(Driver(Board(mig=False, processes=[1])))
    assert len(NvmlSensor().remarks) == 1


def test_nvml_without_its_package_names_the_extra(install):
    install(None)
    with pytest.raises(SensorUnavailableError, match=r"pip install 'mar-snn\[nvml\]'"):
        NvmlSensor()


def test_nvml_without_a_driver_says_so(install):
    install(Driver(broken="NVML Shared Library Not Found"))
    with pytest.raises(
        SensorUnavailableError, match=r"Library Not Found.*nvidia-smi must run"
    ):
        NvmlSensor()


def test_boards_without_a_counter_cannot_be_metered(install):
    driver = install(Driver(Board(mj=None)))
    with pytest.raises(SensorUnavailableError, match=r"\(Not Supported\).*Volta"):
        NvmlSensor()
    assert driver.shut_down == 1


@pytest.mark.parametrize(("boards", "visible"), [((), None), ((Board(),), "")])
def test_nvml_without_a_visible_board_says_so(install, monkeypatch, boards, visible):
    driver = install(Driver(*boards))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SensorUnavailableError, match="no board is visible"):
        NvmlSensor()
    assert driver.shut_down == 1


def show_to_torch(monkeypatch, visible, *uuids):
    """CUDA_VISIBLE_DEVICES, and what torch makes of it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=uuids[i])
    )


def test_only_visible_boards_are_metered_whatever_their_order(install, monkeypatch):
    boards = [Board(uuid=f"GPU-{letter}") for letter in "abc"]
    install(Driver(*boards))
    show_to_torch(monkeypatch, "2,0", "c", "a")
    sensor = NvmlSensor()
    assert sensor.devices == ("NVIDIA L4 GPU-c", "NVIDIA L4 GPU-a")
    assert len(sensor.remarks) == 1


@pytest.mark.parametrize("uuids", [(), ("a slice",)])
def test_visible_devices_that_are_no_board_meter_all_and_say_so(
    install, monkeypatch, uuids
):
    install(Driver(Board(uuid="GPU-a"), Board(uuid="GPU-b")))
    show_to_torch(monkeypatch, "MIG-1", *uuids)
    sensor = NvmlSensor()
    assert len(sensor.devices) == 2
    assert sensor.remarks[-1] == (
        "CUDA_VISIBLE_DEVICES=MIG-1 names no whole board that torch sees: every board "
        "of the machine is metered"
    )
