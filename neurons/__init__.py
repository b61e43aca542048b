"""ATMN, the adaptive ternary multi-step neuron, as a SpikingJelly plug-in."""
