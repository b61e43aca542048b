"""Makes models of other packages spike: plans, and what carries them out.

`mar_snn.spikify` looks up a plan for every module of a model, by its class. The module
then runs its own forward as ever, but each projection that the plan names is a coder
followed by the projection. Names, weights and keys stay what they are; the coders are
the module's `in_neuron` and `out_neuron`.
"""

from mar_snn.hosts.plans import Plan, register_plan
from mar_snn.hosts.slots import skipped

__all__ = ["Plan", "register_plan", "skipped"]
