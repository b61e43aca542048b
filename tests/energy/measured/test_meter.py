"""EnergyMeter around a block on the machine whose time and power are numbers."""

import math

import pytest

from mar_snn.energy.measured.measure import EnergyMeter, TrialPlan


def test_a_block_is_measured_gross_and_net(machine, board):
    with machine.meter(idle_s=5.0, tokens=100) as meter:
        machine.run(8.0, 70.0)
    result = meter.result
    assert result.joules_gross == (560.0,)  # 8 s at 70 W
    assert result.joules_by_device == {"nvml device": (560.0,)}
    assert result.idle_w == 20.0
    assert result.joules_net == (400.0,)  # 560 - 20 W · 8 s
    assert result.j_per_token.mean == 5.6
    assert result.j_per_token_net.mean == 4.0
    assert (result.source, result.device, result.seconds) == (
        "nvml",
        ("nvml device",),
        (8.0,),
    )
    assert (result.driver, result.power_limit_w) == ("580.65", (72.0,))
    assert (result.clock_mhz, result.temp_c) == ((2040.0,), (52.0,))
    assert result.window_s is None
    assert result.order == ("workload",)
    assert result.warnings == ("trials: 1, where 5 or more are needed", "nvml remark")
    assert machine.log == ["idle", "work"]
    assert board.closed == 1


def test_tokens_may_be_told_inside_the_block_and_conditions_are_kept(machine, board):
    with machine.meter(conditions={"batch": 4, "phase": "decode"}) as meter:
        machine.run(8.0, 70.0)
        meter.tokens = 7
    assert meter.result.tokens == (7,)
    assert meter.result.conditions == {"batch": 4, "phase": "decode"}


def test_without_an_idle_window_there_is_no_net(machine, board):
    with machine.meter(idle_s=0.0) as meter:
        machine.run(8.0, 70.0)
    assert machine.log == ["work"]
    assert meter.result.joules_gross == (560.0,)
    assert meter.result.joules_net is None
    assert (
        "idle power was not measured: there are no net figures" in meter.result.warnings
    )


def test_a_short_block_is_named_with_what_its_ends_may_miss(machine, board):
    with machine.meter() as meter:
        machine.run(0.5, 70.0)
    assert meter.result.joules_gross == (35.0,)
    # 0.1 s of 0.5 s
    assert meter.result.warnings[1] == (
        "the shortest window lasted 0.5 s where 5 s are needed: a counter that moves "
        "every 0.1 s may have missed 20% of it"
    )


def test_a_counter_that_stands_gives_a_sentence_and_no_zero(machine, board):
    board.share = 0.0
    with machine.meter(tokens=1) as meter:
        machine.run(0.001, 70.0)
    result = meter.result
    assert result.source == "nvml"
    assert result.joules_gross is result.joules_net is result.idle_w is None
    assert result.j_per_token is None
    assert result.joules_by_device == {}
    assert (
        "the counter of nvml device did not move in every window: no joules are given; "
        "measure longer windows"
    ) in result.warnings


@pytest.mark.parametrize(("idle_s", "work_s"), [(5.0, 70.0), (70.0, 5.0)])
def test_a_wrap_that_may_have_gone_unseen_is_named(machine, board, idle_s, work_s):
    board.max_gap_s = 65.5
    with machine.meter(idle_s=idle_s) as meter:
        machine.run(work_s, 70.0)
    assert meter.result.warnings[1].startswith(
        "70 s passed between two readings; after 65.5 s a counter may have wrapped"
    )


def test_a_block_that_fails_keeps_what_it_took(machine, board):
    def work_and_stop():
        machine.run(6.0, 70.0)
        raise KeyboardInterrupt

    meter = machine.meter()
    with pytest.raises(KeyboardInterrupt), meter:
        work_and_stop()
    assert meter.result.joules_gross == (420.0,)
    assert (
        meter.result.warnings[0] == "KeyboardInterrupt ended the block before its time"
    )
    assert board.closed == 1


def test_a_meter_stopped_while_idling_lets_its_sensors_go(machine, board, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "rest", interrupt)
    meter = machine.meter()
    with pytest.raises(KeyboardInterrupt), meter:
        pytest.fail("the block must not run")
    assert board.closed == 1
    with pytest.raises(RuntimeError, match="nothing is measured yet"):
        _ = meter.result


def test_a_meter_may_be_used_again(machine, board):
    meter = machine.meter()
    for watts in (70.0, 90.0):
        with meter:
            with pytest.raises(RuntimeError, match="after the with block"):
                _ = meter.result
            machine.run(10.0, watts)
        assert meter.result.joules_gross == (10.0 * watts,)
    assert board.closed == 2


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (EnergyMeter, {"idle_s": -1.0}, "idle_s must not be below zero, got -1.0"),
        (EnergyMeter, {"idle_s": math.nan}, "idle_s must not be below zero, got nan"),
        (TrialPlan, {"trials": 0}, "trials must be one or more, got 0"),
        (TrialPlan, {"window_s": 0.0}, "window_s must be above zero, got 0.0"),
        (TrialPlan, {"warm_up_s": -1.0}, "warm_up_s must not be below zero, got -1.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_an_unknown_source_is_refused_before_the_block_runs():
    with pytest.raises(ValueError, match="got 'wall'"), EnergyMeter(source="wall"):
        pytest.fail("the block must not run")


def test_a_block_without_a_sensor_has_a_time_and_no_idle_window(machine):
    with machine.meter(source="none") as meter:
        machine.run(3.0, 70.0)
    assert meter.result.seconds == (3.0,)
    assert meter.result.joules_gross is meter.result.idle_w is None
    assert machine.log == ["work"]


def test_auto_on_this_machine_measures_joules_or_says_why_not():
    """No fake: whatever this machine has, the result is honest."""
    with EnergyMeter(idle_s=0.0, tokens=3) as meter:
        sum(range(1000))
    result = meter.result
    assert result.seconds[0] > 0
    assert result.warnings
    if result.source == "none":
        assert result.joules_gross is result.j_per_token is None
        reasons = "\n".join(result.warnings)
        for sensor in ("NVML: ", "RAPL: ", "zeus: "):
            assert f"not measured: {sensor}" in reasons
    else:
        assert result.joules_gross is None or result.joules_gross[0] > 0
