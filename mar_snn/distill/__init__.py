"""SBDS: distilling a spiking student from its dense teacher."""

from mar_snn.distill.checkpoints import last_checkpoint
from mar_snn.distill.chunked import chunked_bidirectional_kl
from mar_snn.distill.config import SBDSConfig
from mar_snn.distill.losses import (
    bidirectional_kl,
    feature_alignment,
    feature_distance,
)
from mar_snn.distill.trainer import SBDSTrainer, TrainingInterrupted

__all__ = [
    "SBDSConfig",
    "SBDSTrainer",
    "TrainingInterrupted",
    "bidirectional_kl",
    "chunked_bidirectional_kl",
    "feature_alignment",
    "feature_distance",
    "last_checkpoint",
]
