"""What each operation and module costs. Importing this package fills the registries."""

from mar_snn.energy.rules import (
    attention,
    convolution,
    event_driven,
    fla,
    loss,
    mamba,
    neuron,
    norm,
    operation,
    pool,
    prenorm,
    product,
    scan,
)

__all__ = [
    "attention",
    "convolution",
    "event_driven",
    "fla",
    "loss",
    "mamba",
    "neuron",
    "norm",
    "operation",
    "pool",
    "prenorm",
    "product",
    "scan",
]
