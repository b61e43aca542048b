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
from mar_snn.distill.memory import estimate_memory
from mar_snn.distill.objective import Objective
from mar_snn.provenance import versions

ROOT = Path(__file__).parent.parent
#: width, blocks, width of the feed-forward
SIZES = {
    "Llamba-1B": (2048, 16, 8192),
    "Llamba-3B": (3072, 28, 8192),
    "Llamba-8B": (4096, 32, 14336),
}
#: processes that share student and teacher
SHARDS = {"ddp": (1, 1), "fsdp2, 8 processes": (8, 8)}
ROWS, LENGTH = 2, 2048


def estimate(name: str, shards: tuple[int, int]) -> dict[str, int]:
    """Bytes of each part for one size of model."""
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
        gradient_checkpointing=True,
    )
    with FakeTensorMode():
        teacher = LlambaForCausalLM._from_config(LlambaConfig(**sizes), dtype=bfloat16)
        student = LlambaForCausalLM(LlambaConfig(**sizes, spiking=SpikingConfig()))
        objective = Objective(student, teacher.eval().requires_grad_(False), args)
    found = estimate_memory(
        objective, LENGTH, student_shards=shards[0], teacher_shards=shards[1]
    )
    return found._asdict() | {"total": found.total}


def main() -> None:
    """Estimate every size in every setting."""
    results = {
        "script": "benchmarks/memory.py",
        "versions": versions(),
        "rows": ROWS,
        "length": LENGTH,
        "spiking": asdict(SpikingConfig()),
        "bytes": {
            name: {how: estimate(name, shards) for how, shards in SHARDS.items()}
            for name in SIZES
        },
    }
    path = ROOT / "benchmarks" / "results" / "memory.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, settings in results["bytes"].items():
        for how, parts in settings.items():
            cells = " | ".join(f"{size / 2**30:.1f}" for size in parts.values())
            print(f"| {name} | {how} | {cells} |")


if __name__ == "__main__":
    main()
