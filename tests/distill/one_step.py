"""One training step of a tiny student: its gradients and terms, for test_processes.py.

    python one_step.py FILE BATCH_SIZE OPTIONS

Several processes, started by torchrun's environment variables, share the eight rows.
OPTIONS are those of SBDSConfig, as JSON, and "sharded_student", whether FSDP2 shards
the student.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from mar_snn.distill import SBDSConfig, SBDSTrainer
from mar_snn.distill.data import collate
from mar_snn.distill.features import blocks
from mar_snn.distill.objective import Objective
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.spiking import calibrate, spikify


def unequal_labels(rows: list[dict]) -> dict:
    """Row i loses its first i labels."""
    batch = collate(rows)
    labels = batch["labels"].clone()
    for row in labels:
        row[: int(row[0])] = -100
    return batch | {"labels": labels}


class WriteGradients(TrainerCallback):
    def __init__(self, model: torch.nn.Module, path: str) -> None:
        self.model, self.path = model, Path(path)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            named = self.model.named_parameters()
            gradients = {n: p.grad.clone() for n, p in named if p.grad is not None}
            torch.save(gradients, self.path)


def models() -> tuple[LlambaForCausalLM, LlambaForCausalLM, torch.Tensor]:
    """A student, its teacher and eight rows."""
    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    config = LlambaConfig(
        vocab_size=40,
        d_model=16,
        n_layer=2,
        mlp_cfg={"intermediate_size": 24},
        ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
        initializer_range=0.3,
    )
    teacher = LlambaForCausalLM(config)
    ids = torch.randint(1, 40, (8, 12))
    ids[:, 0] = torch.arange(8)
    student = spikify(copy.deepcopy(teacher))
    calibrate(student, [{"input_ids": ids}])
    # thresholds, too, which are made in float32
    return student.double(), teacher.double(), ids


def train(path: str, batch_size: int, options: dict) -> None:
    student, teacher, ids = models()
    trainer = SBDSTrainer(
        student,
        teacher,
        configuration(per_device_train_batch_size=batch_size, **options),
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        data_collator=unequal_labels,
        callbacks=[WriteGradients(student, path)],
    )
    trainer.train()
    if trainer.is_world_process_zero():
        entry = trainer.state.log_history[0]
        terms = {k: v for k, v in entry.items() if k != "learning_rate"}
        Path(path).with_suffix(".json").write_text(json.dumps(terms))


def configuration(**options) -> SBDSConfig:
    return SBDSConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )


def step_of_a_sharded_student(path: str, options: dict) -> None:
    """The same step without the trainer: accelerate has no FSDP on CPUs."""
    student, teacher, ids = models()
    args = configuration(**options)
    rank, processes = args.process_index, args.world_size
    objective = Objective(student, teacher.eval().requires_grad_(False), args)
    mesh = init_device_mesh("cpu", (processes,))
    for block in blocks(student).values():
        fully_shard(block, mesh=mesh)
    fully_shard(student, mesh=mesh)
    batch = unequal_labels([{"input_ids": row} for row in ids.tolist()])
    labels = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    num_items = (labels != -100).sum()
    mine = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    with objective.attached():
        inputs = {"input_ids": ids[mine]}
        loss = objective(student.train(), inputs, labels[mine], num_items).loss
        (loss * processes).backward()
    named = student.named_parameters()
    gradients = {name: p.grad.full_tensor() for name, p in named}
    if rank == 0:
        torch.save(gradients, path)


if __name__ == "__main__":
    path, batch_size, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    if options.pop("sharded_student", False):
        step_of_a_sharded_student(path, options)
    else:
        train(path, batch_size, options)
    if dist.is_initialized():
        # a process that leaves first would abort the threads of the others
        dist.barrier()
        dist.destroy_process_group()
