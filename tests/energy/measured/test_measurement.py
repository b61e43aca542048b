"""Measurement: figures worked by hand, and JSON and back."""

import json
import math

import pytest

from mar_snn.energy.measured.measurement import Measurement

THREE = {
    "source": "nvml+rapl",
    "device": ("GPU", "package-0"),
    "joules_gross": (60.0, 66.0, 72.0),
    "joules_by_device": {"GPU": (40.0, 45.0, 50.0), "package-0": (20.0, 21.0, 22.0)},
    "idle_w": 2.0,
    "seconds": (5.0, 6.0, 6.0),
    "tokens": (20, 20, 20),
}


def test_net_is_gross_less_idle_power_times_duration():
    measurement = Measurement(**THREE)
    # 60 - 2 · 5, 66 - 2 · 6, 72 - 2 · 6
    assert measurement.joules_net == (50.0, 54.0, 60.0)
    assert measurement.trials == 3


def test_joules_per_token_have_a_mean_a_deviation_and_an_interval():
    statistic = Measurement(**THREE).j_per_token
    # 3.0, 3.3, 3.6: s² = (0.09 + 0 + 0.09) / 2; t(0.975, 2) = 4.302653
    assert statistic.mean == pytest.approx(3.3)
    assert statistic.std == pytest.approx(0.3)
    half = 4.302653 * 0.3 / math.sqrt(3)
    assert statistic.ci95 == pytest.approx((3.3 - half, 3.3 + half), abs=1e-6)


def test_net_joules_per_token_are_those_of_each_trial():
    statistic = Measurement(**THREE | {"tokens": (10, 27, 20)}).j_per_token_net
    assert statistic.mean == pytest.approx(10 / 3)  # 5, 2 and 3


def test_without_a_sensor_nothing_is_a_number():
    nothing = Measurement(source="none", seconds=(5.0,), tokens=(20,))
    assert nothing.joules_gross is nothing.joules_net is None
    assert nothing.idle_w is nothing.j_per_token is nothing.j_per_token_net is None


def test_without_an_idle_window_there_is_no_net():
    measurement = Measurement(**THREE | {"idle_w": None})
    assert measurement.joules_net is measurement.j_per_token_net is None
    assert measurement.j_per_token.mean == pytest.approx(3.3)


def test_without_tokens_there_are_joules_only():
    measurement = Measurement(**THREE | {"tokens": None})
    assert measurement.j_per_token is measurement.j_per_token_net is None
    assert measurement.joules_net == (50.0, 54.0, 60.0)


@pytest.mark.parametrize("joules", [0.0, -1.0, math.nan, math.inf])
def test_a_joule_that_no_sensor_counts_is_refused(joules):
    with pytest.raises(
        ValueError, match=r"above zero joules, got .* joules_gross is None"
    ):
        Measurement(**THREE | {"joules_gross": (60.0, joules, 72.0)})


@pytest.mark.parametrize(
    "field", [{"joules_gross": (1.0, 2.0)}, {"tokens": (1, 2)}, {"joules_gross": ()}]
)
def test_every_trial_has_its_joules_and_tokens(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name} needs one entry for each of the 3"):
        Measurement(**THREE | field)


def test_a_measurement_goes_to_json_and_back():
    measurement = Measurement(
        **THREE,
        window_s=5.0,
        power_limit_w=(72.0,),
        clock_mhz=(2040.0, 2040.0, 2010.0),
        temp_c=(50.0, 51.0, 52.0),
        driver="580.65",
        conditions={"batch": 1, "phase": "decode"},
        order=("workload", "baseline"),
        warnings=("NVML counts whole boards",),
    )
    document = json.loads(json.dumps(measurement.as_dict(), allow_nan=False))
    assert document["joules_net"] == [50.0, 54.0, 60.0]
    assert document["trials"] == 3
    assert document["j_per_token"]["mean"] == pytest.approx(3.3)
    assert document["j_per_token_net"]["std"] > 0
    assert document["joules_by_device"]["GPU"] == [40.0, 45.0, 50.0]
    assert Measurement.from_dict(document) == measurement


def test_the_keys_are_those_of_the_report_and_carry_units():
    keys = set(Measurement(source="none").as_dict())
    assert keys >= {
        "source", "device", "joules_gross", "joules_net", "idle_w", "seconds",
        "trials", "window_s", "tokens", "j_per_token", "power_limit_w", "clock_mhz",
        "driver", "temp_c", "warnings",
    }  # fmt: skip


def test_a_single_trial_has_no_spread():
    one = Measurement(
        source="rapl", joules_gross=(8.0,), seconds=(5.0,), tokens=(4,)
    ).as_dict()
    assert one["j_per_token"] == {
        "mean": 2.0,
        "std": None,
        "ci95": [None, None],
        "n": 1,
    }
    assert one["j_per_token_net"] is None


def test_nothing_measured_goes_to_json_and_back():
    nothing = Measurement(source="none", warnings=("no sensor",))
    document = json.loads(json.dumps(nothing.as_dict(), allow_nan=False))
    assert document["joules_gross"] is document["j_per_token"] is None
    assert Measurement.from_dict(document) == nothing


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"seconds": [1.0]}, "with a source, got the keys seconds$"),
        ({"source": "nvml", "energy_pj": 1.0}, "unknown: energy_pj"),
    ],
)
def test_a_document_that_is_no_measurement_is_refused(document, message):
    with pytest.raises(ValueError, match=message):
        Measurement.from_dict(document)


def test_nothing_relates_a_measured_to_a_modelled_energy():
    public = {name for name in dir(Measurement) if not name.startswith("_")}
    assert not [name for name in public if "ratio" in name or name.endswith("_pj")]
    for operator in ("__truediv__", "__rtruediv__", "__float__"):
        assert not hasattr(Measurement, operator)
    assert "no method that relates it to a modelled energy" in Measurement.__doc__
