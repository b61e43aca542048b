"""The teacher: where it comes from, and where its weights lie."""

import copy
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from mar_snn.distill.checks import check_causal
from mar_snn.distill.config import SBDSConfig
from mar_snn.distill.features import blocks

__all__ = ["load_teacher", "place_teacher"]


def load_teacher(teacher: Any, student: Any, args: SBDSConfig) -> Any:
    """The teacher, loaded where it is a name.

    A copy, where it has weights of the student: where it is the student, or the model
    that the student's adapters were put into.
    """
    if isinstance(teacher, str):
        teacher = AutoModelForCausalLM.from_pretrained(
            teacher, dtype=args.teacher_dtype or "auto"
        )
    check_causal(teacher, "teacher")
    trained = {*map(id, student.parameters())}
    shared = any(id(parameter) in trained for parameter in teacher.parameters())
    return copy.deepcopy(teacher) if shared else teacher


def place_teacher(teacher: Any, args: SBDSConfig) -> Any:
    """The teacher in evaluation, without gradients, on its device or sharded by FSDP2.

    Raises:
        ValueError: where it is to be sharded and there is one process only.
    """
    teacher.eval().requires_grad_(False)
    if args.teacher_sharding == "replicate":
        return teacher.to(args.teacher_device or args.device)
    if args.world_size < 2:
        raise ValueError(
            "teacher_sharding='fsdp' shares the teacher among processes and there is "
            "one: start several with accelerate launch, or leave it at 'replicate'"
        )
    # Accelerator.prepare_model would leave an FSDP teacher on the CPU (trl#2580)
    mesh = init_device_mesh(args.device.type, (dist.get_world_size(),))
    for block in blocks(teacher).values():
        fully_shard(block, mesh=mesh)
    return fully_shard(teacher, mesh=mesh)
