"""Quantizers of a network that is loaded from a packed file: nothing is left to be chosen or observed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_balq.export.description import QuantizedInput, QuantizedWeight
from lightning_balq.nn.activation import ActivationQuantizer
from lightning_balq.nn.learned_activation import LEARNED_RANGES
from lightning_balq.nn.quantizer import WeightQuantizer


@dataclass(frozen=True, eq=False)
class StoredWeight(WeightQuantizer):
    """A weight that lies on its levels already.

    Attributes:
        stored: the codes that it was made from.
    """

    stored: QuantizedWeight = field(repr=False)

    def levels(self, weight: Tensor) -> Tensor:
        """Return ``weight``."""
        return weight.detach()

    def scales(self, channels: int) -> int:
        """Return how many scales the weight has."""
        return self.stored.scale.numel()

    def codes(self, weight: Tensor) -> Tensor:
        """Return the codes of the weight as it was stored."""
        return self.stored.codes.to(weight.device)


class StoredActivation(ActivationQuantizer):
    """Quantizes an input at a range that is known.

    Args:
        stored: what is known of it.
    """

    def __init__(self, stored: QuantizedInput) -> None:
        super().__init__(stored.bits, "unit", "signed" if stored.signed else "unsigned")
        with torch.inference_mode(False):
            self.range = torch.tensor(stored.range, dtype=torch.float32)
        self.stored = stored


def input_quantizer(stored: QuantizedInput) -> ActivationQuantizer:
    """Build the quantizer of an input: at its range, or at that of each batch where none is known."""
    if stored.known:
        return StoredActivation(stored)
    mode = "observed" if stored.mode in LEARNED_RANGES else stored.mode
    return ActivationQuantizer(stored.bits, mode, stored.sign)  # type: ignore[arg-type]  # checked at run time
