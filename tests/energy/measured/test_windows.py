"""Which sensors are read, and windows of the machine whose time is a number."""

import math

import pytest
import torch

from mar_snn.energy.measured.sensors import BoardState, SensorUnavailableError
from mar_snn.energy.measured.windows import Clock, Instruments, Window, open_sensors


def test_auto_takes_nvml_and_rapl_and_leaves_zeus_alone(provide, counter):
    nvml, rapl = counter(), counter("rapl")
    asked = provide(nvml=nvml, rapl=rapl, zeus=counter("zeus"))
    assert open_sensors("auto") == ([nvml, rapl], [])
    assert asked == {"nvml": {}, "rapl": {}}


@pytest.mark.parametrize(
    ("readable", "left"),
    [
        ("rapl", {"gpus": True, "cpus": False}),
        ("nvml", {"gpus": False, "cpus": True}),
        (None, {"gpus": True, "cpus": True}),
    ],
)
def test_auto_leaves_to_zeus_what_the_others_do_not_read(
    provide, readable, left, counter
):
    zeus = counter("zeus")
    first = {} if readable is None else {readable: counter(readable)}
    asked = provide(**first, zeus=zeus)
    sensors, unread = open_sensors("auto")
    assert sensors == [*first.values(), zeus]
    assert asked["zeus"] == left
    assert unread == [
        f"{name}: there is none" for name in ("nvml", "rapl") if name != readable
    ]


def test_auto_with_nothing_to_read_says_why_for_each(provide):
    provide()
    assert open_sensors("auto") == (
        [],
        ["nvml: there is none", "rapl: there is none", "zeus: there is none"],
    )


@pytest.mark.parametrize("source", ["nvml", "rapl", "zeus"])
def test_a_sensor_asked_for_by_name_is_the_only_one_or_an_error(
    provide, source, counter
):
    sensor = counter(source)
    asked = provide(**{source: sensor})
    assert open_sensors(source) == ([sensor], [])
    assert asked == {source: {}}
    provide()
    with pytest.raises(SensorUnavailableError, match=f"{source}: there is none"):
        open_sensors(source)


def test_none_reads_nothing_and_an_unknown_source_is_refused():
    assert open_sensors("none") == ([], ["source='none': no sensor was asked for"])
    with pytest.raises(ValueError, match="auto, nvml, rapl, zeus, none, got 'wall'"):
        open_sensors("wall")


def test_several_sensors_are_one_set_of_instruments(machine, provide, counter):
    nvml, rapl = counter("nvml", 0.75), counter("rapl", 0.25)
    nvml.max_gap_s, rapl.max_gap_s, rapl.period_s = 300.0, 65.0, 0.001
    provide(nvml=nvml, rapl=rapl)
    with Instruments("auto", machine.clock) as instruments:
        assert instruments.source == "nvml+rapl"
        assert instruments.devices == ("nvml device", "rapl device")
        assert instruments.remarks == ("nvml remark", "rapl remark")
        assert (instruments.period_s, instruments.max_gap_s) == (0.1, 65.0)
        # 4 s at 20 W, three quarters and one quarter
        assert instruments.rest(4.0).joules == {
            "nvml device": 60.0,
            "rapl device": 20.0,
        }
    assert (nvml.closed, rapl.closed) == (1, 1)


def test_without_a_sensor_there_is_a_time_and_nothing_else(machine, provide):
    provide()
    with Instruments("auto", machine.clock) as instruments:
        assert instruments.source == "none"
        assert instruments.devices == ()
        assert instruments.remarks[0] == "not measured: nvml: there is none"
        assert (instruments.period_s, instruments.max_gap_s) == (0.0, math.inf)
        assert instruments.rest(2.0) == Window(seconds=2.0, joules={}, gap_s=2.0)


def test_sensors_are_closed_when_the_work_fails(machine, provide, counter):
    sensor = counter()
    provide(nvml=sensor)
    with pytest.raises(KeyError), Instruments("nvml", machine.clock):
        raise KeyError
    assert sensor.closed == 1


def test_a_window_lasts_fifty_updates_of_the_slowest_counter(machine, board):
    board.period_s = 0.3
    instruments = Instruments("nvml", machine.clock)
    assert instruments.enough_s(5.0) == 15.0
    assert instruments.enough_s(20.0) == 20.0


def test_work_repeats_until_the_window_is_full_with_few_readings(
    machine, provide, counter
):
    sensor = counter()
    provide(nvml=sensor)
    instruments = Instruments("nvml", machine.clock)
    window = instruments.repeat(lambda: machine.run(0.25, 80.0), 5.0)
    # 1, 1, 2, 4, 8 and the 4 that are left of 20 runs of a quarter of a second
    assert window.runs == 20
    assert window.seconds == 5.0
    assert window.joules == {"nvml device": 400.0}
    assert sensor.polls == 6
    assert window.gap_s == 2.0  # the 8 runs


def test_work_longer_than_the_window_runs_once(machine, board):
    instruments = Instruments("nvml", machine.clock)
    window = instruments.repeat(lambda: machine.run(7.0, 80.0), 5.0)
    assert (window.runs, window.seconds) == (1, 7.0)


def test_work_too_short_for_the_clock_still_fills_the_window(machine, board):
    seconds = iter([0.0, 0.0, 0.0, 0.0, 6.0, 6.0])
    clock = Clock(now=lambda: next(seconds))
    window = Instruments("nvml", clock).repeat(lambda: machine.run(1.0, 1.0), 5.0)
    assert window.runs == 8  # 1, then doubled while no time had passed: 2, 4, 8


def test_a_window_starts_after_what_came_before(machine, board):
    instruments = Instruments("nvml", machine.clock)
    instruments.rest(100.0)
    machine.run(50.0, 300.0)
    window = instruments.rest(1.0)
    assert (window.seconds, window.gap_s) == (1.0, 1.0)
    assert window.joules == {"nvml device": 20.0}


def test_the_state_of_the_boards_is_that_of_the_sensor_that_knows_it(
    machine, provide, counter
):
    provide(rapl=counter("rapl"), nvml=counter())
    state = Instruments("auto", machine.clock).rest(1.0).state
    assert state == BoardState(
        driver="580.65", power_limit_w=(72.0,), clock_mhz=2040.0, temp_c=51.0
    )
    provide(rapl=counter("rapl"))
    assert Instruments("auto", machine.clock).rest(1.0).state is None


def test_a_clock_tells_real_seconds_by_default():
    clock = Clock()
    before = clock.now()
    clock.sleep(0.002)
    assert clock.now() - before >= 0.002


def test_both_ends_of_a_window_wait_for_every_accelerator_in_use(
    machine, board, monkeypatch
):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    instruments = Instruments("nvml", machine.clock)
    instruments.start()
    assert waited == [0, 1, "mps"]
    instruments.stop()
    assert waited == 2 * [0, 1, "mps"]


def test_a_gpu_that_is_not_in_use_is_not_woken(machine, board, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    Instruments("nvml", machine.clock).rest(1.0)
    assert waited == []
