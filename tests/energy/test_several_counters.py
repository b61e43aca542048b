"""Several counters at once: nested, crossed, on parts of a model, in threads."""

from threading import Barrier, Thread

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.neurons.coder import ATMNCoder

X = torch.linspace(-2, 2, 12).view(3, 4)


def make():
    coder = ATMNCoder(4, time_steps=2)
    return nn.Sequential(coder, nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def alone(model, passes=1):
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        for _ in range(passes):
            model(X)
    return counter


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_two_counters_of_one_model_count_what_one_counts(mode):
    model = make()
    expected = alone(model)
    with mode(), SpikeOpCounter(model) as outer, SpikeOpCounter(model) as inner:
        model(X)
    for counter in (outer, inner):
        assert counter.rows() == expected.rows()
        assert counter.run().firing == expected.run().firing
        assert counter.run().batches == expected.run().batches
        assert counter.run().uncounted == {}


def test_a_counter_inside_another_counts_its_own_passes():
    model, other = make(), nn.Linear(4, 5)
    with torch.no_grad(), SpikeOpCounter(model) as outer:
        model(X)
        with SpikeOpCounter(other) as inner:
            model(X)
            other(X)
            # what a counter computes for a report is nobody's model
            outer.report(per="run")
        other(X)
    assert outer.rows() == alone(model, 2).rows()
    assert inner.total() == OpCounts(dense_mac=60, mac=60, bias_add=15)


def test_a_counter_of_a_part_counts_the_part():
    model = make()
    with (
        torch.no_grad(),
        SpikeOpCounter(model) as whole,
        SpikeOpCounter(model[3]) as part,
    ):
        model(X)
    assert whole.rows() == alone(model).rows()
    # 3 rows, 4 inputs, 2 outputs
    assert part.total() == OpCounts(dense_mac=24, mac=24, bias_add=6)


def test_counters_may_be_left_in_the_order_in_which_they_were_entered():
    model = make()
    first, second = SpikeOpCounter(model), SpikeOpCounter(model)
    with torch.no_grad():
        first.__enter__()
        model(X)
        second.__enter__()
        model(X)
        first.__exit__(None, None, None)
        model(X)
        second.__exit__(None, None, None)
        model(X)
    assert first.rows() == second.rows() == alone(model, 2).rows()
    assert not _get_current_dispatch_mode_stack()


def test_two_counters_see_a_fused_layer_once_each():
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    with torch.no_grad(), SpikeOpCounter(model) as a, SpikeOpCounter(model) as b:
        model(X[None])
    with torch.enable_grad(), SpikeOpCounter(model) as apart:
        model(X[None])
    counts = [counter.rows() for counter in (a, b, apart)]
    assert counts[0] == counts[1] == counts[2]


def test_counters_in_two_threads_do_not_hear_each_other():
    models = make(), make()
    counters = [SpikeOpCounter(model) for model in models]
    together = Barrier(2, timeout=60)

    def run(model, counter):
        with torch.no_grad(), counter:
            for _ in range(5):
                together.wait()
                model(X)
            together.wait()

    threads = [
        Thread(target=run, args=pair) for pair in zip(models, counters, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, counter in zip(models, counters, strict=True):
        assert counter.rows() == alone(model, 5).rows()
        assert counter.run().uncounted == {}


def test_a_pass_in_another_thread_is_listed():
    model = make()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        thread = Thread(target=model, args=(X,))
        thread.start()
        thread.join()
    assert counter.total() == OpCounts()
    assert counter.run().uncounted == {"a pass in another thread": 1}


def test_a_counter_is_left_in_its_own_thread():
    counter = SpikeOpCounter(make())
    thread = Thread(target=counter.__enter__)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="left in another thread"):
        counter.__exit__(None, None, None)
