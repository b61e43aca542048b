"""The energy counters of processor packages (RAPL), read from Linux' sysfs."""

import re
from dataclasses import dataclass
from pathlib import Path

from mar_snn.energy.measured.sensors import SensorUnavailableError

__all__ = ["RaplSensor"]

#: Where Linux shows the counters (Documentation/power/powercap/powercap.rst).
POWERCAP = Path("/sys/class/powercap")

#: More watts than a processor package draws: bounds how soon a counter wraps twice.
MAX_PACKAGE_W = 1000.0


@dataclass(slots=True)
class _Zone:
    """One RAPL counter."""

    path: Path
    range_uj: int
    last_uj: int
    spent_uj: int = 0

    def restart(self) -> None:
        self.advance()
        self.spent_uj = 0

    def advance(self) -> None:
        now_uj = _read_int(self.path / "energy_uj")
        # a counter that went back has wrapped at its range
        self.spent_uj += (now_uj - self.last_uj) % self.range_uj
        self.last_uj = now_uj


class RaplSensor:
    """The energy counters of processor packages and, where there is one, of their DRAM.

    Several packages are all metered. `psys` and the mmio interface are left out: they
    count the packages a second time.

    Args:
        root: the folder of the powercap class.

    Raises:
        SensorUnavailableError: without a package, or without permission to read it.
    """

    name = "rapl"
    #: Counters are updated about every millisecond (Intel SDM, vol. 3B, RAPL).
    period_s = 0.001

    def __init__(self, root: Path | None = None) -> None:
        root = POWERCAP if root is None else root
        try:
            self._zones = _find_zones(root)
        except PermissionError as error:
            raise SensorUnavailableError(
                f"RAPL: no permission to read {error.filename}: run as root, or let "
                f"everyone read it: sudo chmod a+r {root}/intel-rapl:*/energy_uj"
            ) from None
        except (OSError, ValueError) as error:
            raise SensorUnavailableError(
                f"RAPL: {error}; run on a machine whose {root} is whole"
            ) from None
        if not self._zones:
            raise SensorUnavailableError(
                f"RAPL: {root} shows no processor package; virtual machines and "
                "containers seldom do: run on the host, after modprobe intel_rapl_msr"
            )
        self.devices = tuple(self._zones)
        shortest_j = min(zone.range_uj for zone in self._zones.values()) / 1e6
        self.max_gap_s = shortest_j / MAX_PACKAGE_W
        self.remarks: tuple[str, ...] = (
            f"RAPL counts {', '.join(self._zones)} and whoever else uses them, without "
            "board, fans and power supply",
        )

    def start(self) -> None:
        for zone in self._zones.values():
            zone.restart()

    def poll(self) -> None:
        for zone in self._zones.values():
            zone.advance()

    def stop(self) -> dict[str, float]:
        self.poll()
        return {name: zone.spent_uj / 1e6 for name, zone in self._zones.items()}

    def state(self) -> None:
        """None: RAPL knows of no clocks."""

    def close(self) -> None:
        """Nothing: files are open only while they are read."""


def _find_zones(root: Path) -> dict[str, _Zone]:
    zones: dict[str, _Zone] = {}
    for path in sorted(root.glob("intel-rapl:*")):
        if re.fullmatch(r"intel-rapl:\d+", path.name):
            name = _read(path / "name")
            if name.startswith("package"):
                zones[name] = _zone(path)
                zones |= _find_dram(root, path, name)
    return zones


def _find_dram(root: Path, package: Path, name: str) -> dict[str, _Zone]:
    """The DRAM counter of a package; one that stands at zero has never counted."""
    parts = [path for path in root.glob(f"{package.name}:*") if path.is_dir()]
    memory = [_zone(path) for path in parts if _read(path / "name") == "dram"]
    return {f"{name} dram": zone for zone in memory if zone.last_uj}


def _zone(path: Path) -> _Zone:
    range_uj = _read_int(path / "max_energy_range_uj")
    return _Zone(path, range_uj, _read_int(path / "energy_uj"))


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _read_int(path: Path) -> int:
    return int(_read(path))
