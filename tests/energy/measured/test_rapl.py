"""RaplSensor on a sysfs tree made of files."""

from pathlib import Path

import pytest

from mar_snn.energy.measured.rapl import RaplSensor
from mar_snn.energy.measured.sensors import SensorUnavailableError


def write_zone(root, folder, name, energy_uj, range_uj=1_000_000):
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def test_rapl_sums_what_each_package_spent(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 100)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 7_000)
    sensor = RaplSensor(tmp_path)
    assert sensor.devices == ("package-0", "package-1")
    sensor.start()
    write_zone(tmp_path, "intel-rapl:0", "package-0", 500_100)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 9_000)
    assert sensor.stop() == {"package-0": 0.5, "package-1": 0.002}
    assert sensor.period_s == 0.001
    assert sensor.state() is None
    sensor.close()


def test_a_counter_that_wraps_goes_on_counting(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    sensor = RaplSensor(tmp_path)
    sensor.start()
    # 100 000 to the end of the range and 50 000 after it: 0.15 J
    write_zone(tmp_path, "intel-rapl:0", "package-0", 50_000)
    assert sensor.stop() == {"package-0": 0.15}


def test_polling_sees_every_wrap_of_a_long_window(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    sensor = RaplSensor(tmp_path)
    sensor.start()
    for energy_uj in (200_000, 800_000, 100_000):  # + 0.3, + 0.6, + 0.3 J
        write_zone(tmp_path, "intel-rapl:0", "package-0", energy_uj)
        sensor.poll()
    assert sensor.stop() == {"package-0": pytest.approx(1.2)}


def test_what_was_spent_before_a_window_is_not_in_it(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    sensor = RaplSensor(tmp_path)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 400_000)
    sensor.start()
    write_zone(tmp_path, "intel-rapl:0", "package-0", 600_000)
    assert sensor.stop() == {"package-0": 0.2}


def test_readings_have_to_be_as_close_as_the_smallest_range_asks_for(tmp_path):
    # 65 532 J at 1 kW, more than any package draws: 65.532 s
    write_zone(tmp_path, "intel-rapl:0", "package-0", 0, 262_143_328_850)
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 1, 65_532_000_000)
    assert RaplSensor(tmp_path).max_gap_s == pytest.approx(65.532)


def test_dram_is_metered_and_what_repeats_the_package_is_not(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 1)
    write_zone(tmp_path, "intel-rapl:0:1", "dram", 1)
    write_zone(tmp_path, "intel-rapl:1", "psys", 1)
    write_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    sensor = RaplSensor(tmp_path)
    assert sensor.devices == ("package-0", "package-0 dram")
    assert sensor.remarks == (
        "RAPL counts package-0, package-0 dram and whoever else uses them, without "
        "board, fans and power supply",
    )


def test_a_dram_counter_that_never_counted_is_left_out(tmp_path):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    write_zone(tmp_path, "intel-rapl:0:0", "dram", 0)
    assert RaplSensor(tmp_path).devices == ("package-0",)


def test_rapl_without_a_package_says_where_to_find_one(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SensorUnavailableError, match=r"no processor package.*host"):
            RaplSensor(root)


def test_rapl_names_the_file_that_may_not_be_read_and_the_way_out(
    tmp_path, monkeypatch
):
    zone = write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def guarded(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(SensorUnavailableError) as error:
        RaplSensor(tmp_path)
    assert str(error.value) == (
        f"RAPL: no permission to read {zone}/energy_uj: run as root, or let everyone "
        f"read it: sudo chmod a+r {tmp_path}/intel-rapl:*/energy_uj"
    )


@pytest.mark.parametrize("content", ["", "many"])
def test_a_counter_that_is_no_number_is_no_sensor(tmp_path, content):
    (write_zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").write_text(
        content
    )
    with pytest.raises(SensorUnavailableError, match=r"invalid literal.*is whole"):
        RaplSensor(tmp_path)


def test_a_zone_without_its_counter_is_no_sensor(tmp_path):
    (write_zone(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").unlink()
    with pytest.raises(SensorUnavailableError, match=r"No such file.*is whole"):
        RaplSensor(tmp_path)
