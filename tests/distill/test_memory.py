import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mar_snn.distill.memory import MemoryEstimate, _LiveBytes, estimate_memory
from mar_snn.distill.objective import Objective
from mar_snn.llamba import LlambaForCausalLM


def test_live_bytes_are_counted_while_they_live():
    with _LiveBytes() as live:
        a = torch.ones(256)  # 1 KiB
        b = a.view(16, 16).t()
        assert live.now == 1024
        c = b + 1
        assert live.now == 2048
        del a, b
        assert live.now == 1024
        c.add_(1)
    assert (live.now, live.peak) == (1024, 2048)


def test_what_was_there_before_is_not_counted():
    before = torch.ones(256)
    with _LiveBytes() as live:
        before.add_(1)
        _ = before.view(16, 16)
    assert live.peak == 0


def measured(objective: Objective, rows: int, length: int) -> int:
    """The peak of two real steps beyond the weights."""
    student, args = objective.student.train(), objective.args
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate)
    ids = torch.zeros(rows, length, dtype=torch.long)
    with _LiveBytes() as live, objective.attached():
        for _ in range(2):
            inputs = {"input_ids": ids}
            loss = objective(student, inputs, ids, torch.tensor(24.0)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return live.peak


@pytest.mark.parametrize("logit_loss", ["dense", "chunked"])
def test_the_estimate_is_what_a_real_step_takes(student, teacher, config, logit_loss):
    args = config(logit_loss=logit_loss, per_device_train_batch_size=3)
    objective = Objective(student, teacher, args)
    estimate = estimate_memory(objective, 8)
    weights = sum(p.nbytes for p in student.parameters())
    assert estimate.student == estimate.gradients == weights
    assert estimate.teacher == sum(p.nbytes for p in teacher.parameters())
    # two moments, and a count of steps for each parameter
    assert estimate.optimizer == 2 * weights + 4 * len([*student.parameters()])
    beyond = estimate.total - estimate.student - estimate.teacher
    assert beyond == pytest.approx(measured(objective, 3, 8), rel=0.02)


def test_processes_share_what_they_are_said_to_share():
    whole = MemoryEstimate(8, 40, 16, 32, 7)
    assert whole.shared(gradients=4) == (8, 40, 4, 8, 7)
    assert whole.shared(2, 2, teacher=4) == (4, 10, 8, 16, 7)
    assert whole.total == 103


def test_checkpointing_and_longer_rows_are_seen(
    student, teacher, config, checkpointing
):
    def estimate(length: int, **options) -> MemoryEstimate:
        objective = Objective(copy.deepcopy(student), teacher, config(**options))
        return estimate_memory(objective, length)

    plain = estimate(128)
    assert estimate(256).activations > 1.5 * plain.activations
    checkpointed = estimate(128, **{checkpointing: True})
    assert checkpointed.activations < 0.8 * plain.activations


def test_models_without_memory_can_be_estimated(student, teacher, config):
    expected = estimate_memory(Objective(student, teacher, config()), 8)
    with FakeTensorMode():
        models = [LlambaForCausalLM(m.config) for m in (student, teacher)]
        models[1].requires_grad_(False)
        objective = Objective(*models, config())
    assert estimate_memory(objective, 8) == expected


def test_the_table_has_a_line_for_each_part():
    table = MemoryEstimate(2**30, 2**29, 2**30, 2**31, 2**30).table()
    parts, sizes = (list(column.cells) for column in table.columns)
    assert parts == [*MemoryEstimate._fields, "total"]
    assert sizes[0] == "1.0 GiB"
    assert sizes[-1] == "5.5 GiB"
    small = MemoryEstimate(*[2**20] * 5).table()
    assert list(small.columns[1].cells) == ["1.0 MiB"] * 5 + ["5.0 MiB"]
