import importlib
import inspect
import re

import pytest
from torch import nn

from mar_snn.hosts import Plan, plans, register_plan
from mar_snn.hosts.plans import plan_of


@pytest.fixture(autouse=True)
def _same_plans(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(plans, "_plans", dict(plans._plans))


class FeedForward(nn.Module):
    pass


class Wider(FeedForward):
    pass


PLAN = Plan(sites={"mlp.in": ("up",), "mlp.out": ("down",)})


def test_a_plan_is_found_by_class_or_by_its_dotted_path():
    register_plan(FeedForward, PLAN)
    assert plan_of(FeedForward) is PLAN
    register_plan("elsewhere.modules.FeedForward", other := Plan(sites=PLAN.sites))
    found = type("FeedForward", (nn.Module,), {"__module__": "elsewhere.modules"})
    assert plan_of(found) is other


def test_a_subclass_follows_the_nearest_plan():
    register_plan(FeedForward, PLAN)
    assert plan_of(Wider) is PLAN
    register_plan(Wider, own := Plan(sites={"mlp.in": ("up",)}))
    assert plan_of(Wider) is own
    assert plan_of(FeedForward) is PLAN


def test_a_class_without_a_plan_has_none():
    assert plan_of(FeedForward) is None
    assert plan_of(nn.Linear) is None


def test_a_second_plan_for_a_class_is_refused():
    register_plan(FeedForward, PLAN)
    with pytest.raises(ValueError, match=r"test_plans\.FeedForward has a plan already"):
        register_plan(FeedForward, PLAN)


@pytest.mark.parametrize(
    "sites",
    [
        {},
        {"ffn.in": ("up",)},
        {"mlp.in": ()},
        {"mlp.in": ("up",), "mixer.out": ("out_proj",)},
    ],
)
def test_a_plan_with_sites_that_cannot_be_is_refused(sites):
    with pytest.raises(ValueError, match=r"sites must be of mixer.in, mixer.out or of"):
        Plan(sites=sites)


def test_each_site_has_a_slot():
    slots = [Plan.slot(site) for site in plans.SITE_NAMES]
    assert slots == ["in_neuron", "out_neuron"] * 2


IMPORTABLE = [path for path in plans._plans if not path.startswith("mamba_ssm")]


@pytest.mark.parametrize("path", IMPORTABLE)
def test_the_plans_are_those_of_classes_that_exist_and_hold_the_projections(path):
    module, _, name = path.rpartition(".")
    source = inspect.getsource(getattr(importlib.import_module(module), name))
    for fed in plans._plans[path].sites.values():
        for projection in fed:
            assert f"self.{projection} = nn.Linear(" in source


@pytest.mark.parametrize("path", IMPORTABLE)
def test_a_module_that_asks_whether_it_trains_asks_for_its_fused_kernel_only(path):
    """Otherwise the plan's override would change more than it means to."""
    module, _, name = path.rpartition(".")
    source = inspect.getsource(getattr(importlib.import_module(module), name))
    overridden = "training" in plans._plans[path].overrides
    assert source.count("self.training") == overridden
    fused = re.findall(r"if self\.training and cache(?:_params)? is None:\n", source)
    assert len(fused) == overridden
