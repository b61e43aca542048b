"""Spiking neurons for SpikingJelly and spiking Mamba-2 language models."""

__version__ = "0.1.0"
