"""Decoding that reads only the weights of neurons that fired."""

from mar_snn.sparse.decoding import DecodingPlan, PlannedShape, optimize_for_decoding
from mar_snn.sparse.graph import GraphedStep
from mar_snn.sparse.kernels import dense_linear, event_linear
from mar_snn.sparse.linear import DenseLinear, EventLinear

__all__ = [
    "DecodingPlan",
    "DenseLinear",
    "EventLinear",
    "GraphedStep",
    "PlannedShape",
    "dense_linear",
    "event_linear",
    "optimize_for_decoding",
]
