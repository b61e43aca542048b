"""What distilling each Llamba needs on a device, estimated before anything is bought.

    python benchmarks/memory.py

A step of training runs on tensors that have shapes and no memory, so this needs neither
a GPU nor the checkpoints. Writes benchmarks/results/memory.json, from which the table
of docs/distillation.md is taken.
"""

import json
from dataclasses import asdict
from pathlib import Path

from torch import bfloat16
from torch._subclasses.fake_tensor import FakeTensorMode

from mar_snn import LlambaConfig, LlambaForCausalLM, SBDSConfig, SpikingConfig
from mar_snn.console import show_what_can_be_shown
from mar_snn.distill.memory import MemoryEstimate, estimate_memory
from mar_snn.distill.objective import Objective
from mar_snn.provenance import versions

ROOT = Path(__file__).parent.parent
#: width, blocks, width of the feed-forward
SIZES = {
    "Llamba-1B": (2048, 16, 8192),
    "Llamba-3B": (3072, 28, 8192),
    "Llamba-8B": (4096, 32, 14336),
}
#: examples/configs/ -> processes that share the student, its gradients, the teacher
SHARDS = {
    "ddp.yaml": (1, 1, 1),
    "deepspeed_zero2.yaml": (1, 8, 1),
    "fsdp2.yaml, --teacher_sharding fsdp": (8, 8, 8),
}
ROWS, LENGTH = 2, 2048


def estimate(name: str) -> MemoryEstimate:
    """What one size of model needs on one device."""
    width, depth, inner = SIZES[name]
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "mlp_cfg": {"intermediate_size": inner},
    }
    args = SBDSConfig(
        output_dir="outputs/memory",
        per_device_train_batch_size=ROWS,
        bf16=True,
        use_cpu=True,
        report_to="none",
        activation_checkpointing=True,
    )
    with FakeTensorMode():
        teacher = LlambaForCausalLM._from_config(LlambaConfig(**sizes), dtype=bfloat16)
        student = LlambaForCausalLM(LlambaConfig(**sizes, spiking=SpikingConfig()))
        objective = Objective(student, teacher.eval().requires_grad_(False), args)
    return estimate_memory(objective, LENGTH)


def main() -> None:
    """Estimate every size in every setting."""
    results = {
        "script": "benchmarks/memory.py",
        "versions": versions(),
        "rows": ROWS,
        "length": LENGTH,
        "spiking": asdict(SpikingConfig()),
        "bytes": {name: estimate(name)._asdict() for name in SIZES},
    }
    path = ROOT / "benchmarks" / "results" / "memory.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(results["bytes"])))


def table(estimates: dict[str, dict[str, int]]) -> list[str]:
    """The lines of docs/distillation.md: GiB of a process, for each way to share."""
    lines = []
    for name, parts in estimates.items():
        for how, shards in SHARDS.items():
            found = MemoryEstimate(**parts).shared(*shards)
            cells = [f"{size / 2**30:.1f}" for size in (*found, found.total)]
            lines.append(f"| {name} | {how} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
