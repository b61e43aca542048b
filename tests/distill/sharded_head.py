"""The gradients of a head that FSDP2 shards, for test_sharded_head.py.

    python sharded_head.py FILE

Processes, started by torchrun's environment variables, share eight rows of tokens.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mar_snn.distill import chunked_bidirectional_kl


def main(path: str) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(int(os.environ.get("MAR_SNN_TEST_SEED", "0")))
    # neither the words nor the rows of the head divide evenly
    head, teacher_head = nn.Linear(6, 51), nn.Linear(8, 51)
    hidden, teacher_hidden = torch.randn(8, 5, 6), torch.randn(8, 5, 8)
    labels = torch.zeros(8, 5, dtype=torch.long)
    for row, tokens in enumerate(labels):
        tokens[: row // 2] = -100
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        for part in (head, teacher_head):
            fully_shard(part, mesh=mesh)
    mine = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    loss = (
        processes
        * chunked_bidirectional_kl(
            *(hidden[mine], head, teacher_hidden[mine], teacher_head, labels[mine]),
            chunk_size=7,
            num_items=(labels != -100).sum(),
        ).loss
    )
    loss.backward()
    gradients = [
        grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        for grad in (parameter.grad for parameter in head.parameters())
    ]
    if rank == 0:
        torch.save(gradients, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
