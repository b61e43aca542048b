"""What each operation and module costs. Importing this package fills the registries."""

from mar_snn.energy.rules import (
    attention,
    convolution,
    loss,
    mamba,
    neuron,
    norm,
    operation,
    pool,
    product,
    scan,
)

__all__ = [
    "attention",
    "convolution",
    "loss",
    "mamba",
    "neuron",
    "norm",
    "operation",
    "pool",
    "product",
    "scan",
]
