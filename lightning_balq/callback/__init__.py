"""Lightning callbacks that train a model with quantized weights and activations.

They decide *when*: everything they do to a model is done by :mod:`lightning_balq.nn`, which also works alone.
``methods`` has the callbacks, ``base`` what they share, ``reuse`` the hooks in which a weight need not be quantized
again, ``best`` which checkpoints may be the best, ``neighbours`` what several callbacks may not do to one model,
``saved_state`` what a state must look like, ``finite`` what follows when something is NaN, ``float_reads`` the search
for weights that are read as float, ``strategies`` what no strategy or plugin may do, ``records`` what is recorded and
``outlets`` where that goes, ``module_hooks`` what is put in front of the hooks of a module.
"""

from lightning_balq.callback.base import QuantizationCallback
from lightning_balq.callback.methods import (
    BalancedQuantization,
    DoReFaQuantization,
    LSQQuantization,
    UniformQuantization,
)

__all__ = [
    "BalancedQuantization",
    "DoReFaQuantization",
    "LSQQuantization",
    "QuantizationCallback",
    "UniformQuantization",
]
