"""What a document has to keep to."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.schema import SCHEMA, check_document
from mar_snn.energy.reporting.serialise import to_json
from tests.energy.energy_runs import LM_HEAD, RUN
from tests.energy.test_profiles import own_profile

DOCUMENT = to_json(EnergyReport.of(RUN, "horowitz-45nm-fp32"))


def changed(path, value):
    document = deepcopy(DOCUMENT)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def test_every_kind_of_report_keeps_to_the_schema():
    dense = replace(RUN, rows=(LM_HEAD,), firing={}, batches=())
    teacher = EnergyReport.of(RUN, "horowitz-45nm-fp32", per="run")
    for report in (
        EnergyReport.of(RUN, "jouppi-7nm-bf16", measured={"source": "none"}),
        EnergyReport.of(dense, "horowitz-45nm-int8", units=10),
        EnergyReport.of(RUN, own_profile()),
        EnergyReport.of(replace(RUN, rows=()), "horowitz-45nm-fp32"),
        EnergyReport.of(RUN, "horowitz-45nm-fp32", per="run", baseline=teacher),
    ):
        document = json.loads(json.dumps(to_json(report), allow_nan=False))
        assert document["schema"] == SCHEMA
        check_document(document)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("totals", "units"), 1.5, r"report\.totals\.units must be int, got 1\.5"),
        (("totals", "units"), True, r"report\.totals\.units must be int, got True"),
        (("totals", "per"), None, r"report\.totals\.per must be str, got None"),
        (("modules", 1, "ops", "mac"), "3", r"modules\.1\.ops\.mac must be int, got"),
        (("modules", 0, "spiking"), 0, r"modules\.0\.spiking must be bool, got 0"),
        (("groups",), [], r"report\.groups must be dict, got \[\]"),
        (
            ("groups", "ffn", "share"),
            None,
            r"share must be int or float, got None",
        ),
        (("firing", "layers.0.mlp.in_neuron", "pos"), 3, r"\.pos must be list, got 3"),
        (("profiles", 0, "voltage_v"), "x", r"must be int or float or null, got 'x'"),
        (("break_even", "matched_bit"), 2.0, r"matched_bit must be list, got 2\.0"),
        (("measured",), [], r"report\.measured must be dict, got \[\]"),
    ],
)
def test_a_value_of_another_kind_is_named(path, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_document(changed(path, value))


def test_what_may_be_missing_may_be_null():
    check_document(changed(("break_even", "matched_bit"), None))
    check_document(changed(("baselines", 1, "ratio"), None))
    check_document(changed(("totals", "firing_rate"), None))


def test_a_missing_key_is_named_with_its_place():
    document = deepcopy(DOCUMENT)
    del document["modules"][2]["moved"]
    with pytest.raises(ValueError, match=r"report\.modules\.2 has no 'moved', which"):
        check_document(document)


def test_version_1_is_refused_with_what_to_do():
    with pytest.raises(
        ValueError,
        match=r"report/1', without bytes and batches; .* the run again",
    ):
        check_document({"schema": "mar-snn/energy-report/1"})


@pytest.mark.parametrize("document", [{}, {"schema": "other/2"}, [], None])
def test_another_document_is_refused(document):
    with pytest.raises(ValueError, match="expected a report of schema 'mar-snn/"):
        check_document(document)
