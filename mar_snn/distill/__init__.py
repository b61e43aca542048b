"""SBDS: distilling a spiking student from its dense teacher."""

from mar_snn.distill.chunked import chunked_bidirectional_kl
from mar_snn.distill.losses import bidirectional_kl, feature_alignment
from mar_snn.distill.trainer import SBDSConfig, SBDSTrainer, TrainingInterrupted

__all__ = [
    "SBDSConfig",
    "SBDSTrainer",
    "TrainingInterrupted",
    "bidirectional_kl",
    "chunked_bidirectional_kl",
    "feature_alignment",
]
