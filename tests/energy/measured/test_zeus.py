"""ZeusSensor on a monitor that always reads the same."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from mar_snn.energy.measured.sensors import SensorUnavailableError
from mar_snn.energy.measured.zeus import ZeusSensor


class Monitor:
    """ZeusMonitor that ends every window with the same energies."""

    def __init__(self, gpus=(), cpus=(), **window):
        self.gpus, self.cpus, self.window, self.open = gpus, cpus, window, set()
        self.soc_is_present = "soc_energy" in window

    def __call__(self, *, gpu_indices, cpu_indices):
        self.gpu_indices = list(self.gpus) if gpu_indices is None else gpu_indices
        self.cpu_indices = list(self.cpus) if cpu_indices is None else cpu_indices
        return self

    def begin_window(self, key, sync_execution=True):
        assert not sync_execution
        assert key not in self.open
        self.open.add(key)

    def end_window(self, key, sync_execution=True):
        assert not sync_execution
        self.open.remove(key)
        empty = {"gpu_energy": {}, "cpu_energy": None, "dram_energy": None}
        return SimpleNamespace(**{"soc_energy": None} | empty | self.window)


@pytest.fixture
def zeus(monkeypatch):
    """Put a zeus with such a ZeusMonitor where `import` finds it."""

    class ZeusBaseError(Exception):
        pass

    def put(monitor):
        package, errors = ModuleType("zeus.monitor"), ModuleType("zeus.exception")
        package.ZeusMonitor, errors.ZeusBaseError = monitor, ZeusBaseError
        monkeypatch.setitem(sys.modules, "zeus.monitor", package)
        monkeypatch.setitem(sys.modules, "zeus.exception", errors)
        return ZeusBaseError

    return put


def test_zeus_gives_boards_and_processors_with_their_dram(zeus):
    zeus(
        Monitor(
            gpus=(0, 2),
            cpus=(0, 1),
            gpu_energy={0: 10.0, 2: 20.0},
            cpu_energy={0: 3.0, 1: 4.0},
            dram_energy={1: 0.5},
        )
    )
    sensor = ZeusSensor()
    assert sensor.devices == ("gpu-0", "gpu-2", "cpu-0", "cpu-1")
    for _ in range(2):
        sensor.start()
        sensor.poll()
        assert sensor.stop() == {
            "gpu-0": 10.0,
            "gpu-2": 20.0,
            "cpu-0": 3.0,
            "cpu-1": 4.5,
        }
    assert sensor.state() is None
    sensor.close()


def test_zeus_leaves_to_others_what_they_read(zeus):
    zeus(Monitor(gpus=(0,), cpus=(0,)))
    assert ZeusSensor(gpus=False).devices == ("cpu-0",)
    assert ZeusSensor(cpus=False).devices == ("gpu-0",)


@pytest.mark.parametrize(
    ("chip", "joules"),
    [
        # Jetson: the total holds its parts
        ({"cpu_energy_mj": 1e3, "gpu_energy_mj": 2e3, "total_energy_mj": 5e3}, 5.0),
        # Jetson without a total: the parts there are
        ({"cpu_energy_mj": 1e3, "gpu_energy_mj": 2e3, "total_energy_mj": None}, 3.0),
        # Apple: 4 + 2 + 1 J; clusters are in cpu_total, the rest it does not tell
        (
            {
                "cpu_total_mj": 4000,
                "performance_cluster_mj": [3000],
                "gpu_mj": 2000,
                "gpu_sram_mj": None,
                "dram_mj": 1000,
                "ane_mj": None,
            },
            7.0,
        ),
        ({}, 0.0),
    ],
)
def test_a_system_on_a_chip_is_counted_once(zeus, chip, joules):
    zeus(Monitor(gpus=(0,), gpu_energy={0: 9.0}, soc_energy=SimpleNamespace(**chip)))
    sensor = ZeusSensor()
    assert sensor.devices == ("chip",)
    sensor.start()
    assert sensor.stop() == {"chip": joules}


def test_zeus_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    with pytest.raises(SensorUnavailableError, match="pip install zeus"):
        ZeusSensor()


def test_zeus_that_finds_nothing_says_how_to_learn_why(zeus):
    zeus(Monitor())
    with pytest.raises(SensorUnavailableError, match=r"python -m zeus\.show_env"):
        ZeusSensor()


def test_what_zeus_complains_of_is_passed_on(zeus):
    def refuse(**indices):
        raise error("zeusd is not running")

    error = zeus(refuse)
    with pytest.raises(SensorUnavailableError, match="zeus: zeusd is not running"):
        ZeusSensor()
