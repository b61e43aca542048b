"""The protocol of measure on the machine whose time and power are numbers."""

import contextlib
import io
import random
import sys
import threading

import pytest

from mar_snn.energy.measured.measure import MeasuringInterrupted, TrialPlan, measure
from mar_snn.energy.measured.measurement import Measurement


def test_measure_repeats_the_work_in_five_windows_of_five_seconds(machine, board):
    result = measure(
        lambda: machine.run(1.0, 70.0),
        units=10,
        meter=machine.meter(idle_s=5.0),
        progress=False,
    )
    assert result.trials == 5
    assert result.seconds == (5.0,) * 5
    assert result.joules_gross == (350.0,) * 5
    assert result.joules_net == (250.0,) * 5  # 350 - 20 W · 5 s
    assert result.tokens == (50,) * 5
    assert result.j_per_token.mean == 7.0
    assert result.j_per_token.std == 0.0
    assert result.j_per_token.ci95 == (7.0, 7.0)
    assert result.j_per_token_net.mean == 5.0
    assert result.window_s == 5.0
    assert result.temp_c == (53.0, 54.0, 55.0, 56.0, 57.0)
    assert result.warnings == ("nvml remark",)
    # five seconds of warm-up, idle, five windows, idle
    assert machine.log == [*["work"] * 5, "idle", *["work"] * 25, "idle"]
    assert board.closed == 1


def test_the_spread_is_that_of_the_trials(machine, board):
    watts = iter([50.0, 10.0, 20.0, 30.0])  # the first is the warm-up
    result = measure(
        lambda: machine.run(5.0, next(watts)),
        units=50,
        meter=machine.meter(),
        plan=TrialPlan(trials=3),
        progress=False,
    )
    # 1, 2 and 3 joules a token
    assert result.j_per_token.mean == 2.0
    assert result.j_per_token.std == 1.0
    assert result.warnings[0] == "trials: 3, where 5 or more are needed"


def test_workload_and_baseline_take_turns_in_a_seeded_order(machine, board):
    def run(seed):
        return measure(
            lambda: machine.run(5.0, 70.0, "spiking"),
            units=1,
            baseline=lambda: machine.run(5.0, 40.0, "dense"),
            meter=machine.meter(idle_s=0.0),
            plan=TrialPlan(trials=8, seed=seed),
            progress=False,
        )

    both = run(seed=0)
    assert set(both) == {"workload", "baseline"}
    assert both["workload"].joules_gross == (350.0,) * 8
    assert both["baseline"].joules_gross == (200.0,) * 8
    order = both["workload"].order
    assert both["baseline"].order == order
    # every trial has both: the drift of the machine meets them alike
    pairs = list(zip(order[::2], order[1::2], strict=True))
    assert len(pairs) == 8
    assert set(pairs) == {("workload", "baseline"), ("baseline", "workload")}
    names = {"spiking": "workload", "dense": "baseline"}
    assert tuple(names[name] for name in machine.log[2:]) == order
    random.seed(5)  # the order has a generator of its own
    assert run(seed=0)["workload"].order == order
    assert run(seed=1)["workload"].order != order


def test_a_slow_counter_makes_windows_longer(machine, board):
    board.period_s = 0.4
    result = measure(
        lambda: machine.run(1.0, 70.0),
        units=1,
        meter=machine.meter(),
        plan=TrialPlan(trials=5, warm_up_s=0.0),
        progress=False,
    )
    assert min(result.seconds) >= 20.0  # 50 · 0.4 s
    assert result.window_s == 5.0


def test_windows_shorter_than_five_seconds_are_named(machine, board):
    board.period_s = 0.01
    result = measure(
        lambda: machine.run(1.0, 70.0),
        units=1,
        meter=machine.meter(),
        plan=TrialPlan(window_s=2.0),
        progress=False,
    )
    assert result.seconds == (2.0,) * 5
    assert result.warnings[0].startswith("the shortest window lasted 2 s where 5 s are")


def test_idle_power_is_the_mean_of_before_and_after_and_a_drift_is_named(
    machine, board
):
    watts = iter([20.0, 30.0])
    machine.rest = lambda seconds: machine.run(seconds, next(watts))
    result = measure(
        lambda: machine.run(5.0, 70.0), units=1, meter=machine.meter(), progress=False
    )
    assert result.idle_w == 25.0
    assert result.joules_net == (225.0,) * 5  # 350 - 25 W · 5 s
    assert result.warnings[0].startswith("idle power went from 20 W to 30 W")


def test_work_that_takes_no_more_than_idling_is_named(machine, board):
    result = measure(
        lambda: machine.run(5.0, 20.0), units=1, meter=machine.meter(), progress=False
    )
    assert result.joules_net == (0.0,) * 5
    assert "a trial took no more power than the idle machine" in result.warnings[0]


def test_a_clock_that_wanders_is_named(machine, board):
    # warm-up, idle, five trials, idle
    board.clocks_mhz = iter([1.0, 1.0, 2000.0, 2000.0, 1900.0, 1500.0, 2000.0, 1.0])
    result = measure(
        lambda: machine.run(5.0, 70.0), units=1, meter=machine.meter(), progress=False
    )
    assert result.clock_mhz == (2000.0, 2000.0, 1900.0, 1500.0, 2000.0)
    assert result.warnings[0].startswith("the clock was between 1500 and 2000 MHz")


def test_a_steady_clock_is_not_worth_a_word(machine, board):
    board.clocks_mhz = iter([1.0, 1.0, 2000.0, 1980.0, 1990.0, 2000.0, 1950.0, 1.0])
    result = measure(
        lambda: machine.run(5.0, 70.0), units=1, meter=machine.meter(), progress=False
    )
    assert result.warnings == ("nvml remark",)


def test_an_interruption_keeps_the_trials_that_were_finished(machine, board):
    def stop_at_trial_three():
        if machine.log.count("spiking") == 3:  # one of them was the warm-up
            raise KeyboardInterrupt
        machine.run(5.0, 70.0, "spiking")

    with pytest.raises(MeasuringInterrupted) as stop:
        measure(
            stop_at_trial_three,
            units=10,
            baseline=lambda: machine.run(5.0, 40.0, "dense"),
            meter=machine.meter(idle_s=5.0),
            progress=False,
        )
    assert isinstance(stop.value, KeyboardInterrupt)
    measured = stop.value.measured
    assert measured["workload"].joules_gross == (350.0, 350.0)
    assert measured["workload"].joules_net == (250.0, 250.0)
    assert measured["workload"].j_per_token.mean == 35.0
    assert set(measured["baseline"].joules_gross) == {200.0}
    assert measured["workload"].warnings[0] == (
        "measuring was interrupted before its last trial"
    )
    assert board.closed == 1


def test_an_interruption_of_the_warm_up_has_nothing_measured(machine, board):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(MeasuringInterrupted) as stop:
        measure(interrupt, units=1, meter=machine.meter(), progress=False)
    nothing = stop.value.measured["workload"]
    assert (nothing.trials, nothing.joules_gross) == (0, None)
    assert nothing.j_per_token is nothing.idle_w is None
    assert Measurement.from_dict(nothing.as_dict()) == nothing


def test_an_error_of_the_workload_is_passed_on_and_the_sensors_are_closed(
    machine, board
):
    def fail():
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        measure(fail, units=1, meter=machine.meter(), progress=False)
    assert board.closed == 1


def test_the_progress_bar_draws_between_the_windows_only(machine, board, monkeypatch):
    screen = io.StringIO()
    drawn, threads = [], [threading.active_count()]

    def work():
        drawn.append(screen.tell())
        threads.append(threading.active_count())
        machine.run(1.0, 70.0)

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", screen)
    measure(work, units=1, meter=machine.meter(), plan=TrialPlan(trials=2))
    text = screen.getvalue()
    for part in ("warm-up of the workload", "idle", "trial 1 of 2", "measured", "5/5"):
        assert part in text
    # one warm-up and two trials: five runs each, and not a letter while they ran
    assert len(drawn) == 15
    assert len(set(drawn)) == 3
    # and nobody is there to draw
    assert len(set(threads)) == 1


def test_without_a_progress_bar_nothing_is_drawn(machine, board):
    screen = io.StringIO()
    with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
        measure(
            lambda: machine.run(5.0, 70.0),
            units=1,
            meter=machine.meter(),
            progress=False,
        )
    assert screen.getvalue() == ""


def test_less_than_one_unit_of_work_is_refused(machine):
    with pytest.raises(ValueError, match="units must be one or more, got 0"):
        measure(machine.rest, units=0)


def test_a_sensor_asked_for_by_name_has_to_be_there(machine, board):
    with pytest.raises(RuntimeError, match="rapl: there is none"):
        measure(
            lambda: machine.run(5.0, 70.0),
            units=1,
            meter=machine.meter(source="rapl"),
            progress=False,
        )
    assert machine.log == []


@pytest.mark.parametrize("baseline", [False, True])
def test_without_a_sensor_measure_runs_nothing_and_says_why(machine, baseline):
    work = {"baseline": lambda: machine.run(5.0, 1.0)} if baseline else {}
    result = measure(
        lambda: machine.run(5.0, 70.0),
        units=1,
        meter=machine.meter(source="none"),
        **work,
    )
    for nothing in result.values() if baseline else [result]:
        assert nothing.source == "none"
        assert nothing.joules_gross is nothing.j_per_token is None
        assert nothing.warnings == (
            "not measured: source='none': no sensor was asked for",
        )
    assert machine.log == []
