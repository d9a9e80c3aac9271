"""Weight quantizers as small value objects: a method, its options and a width."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_balq.functional import dorefa_codes, straight_through
from lightning_balq.functional._checks import (
    CENTERS,
    GRANULARITIES,
    SCALES,
    Center,
    Granularity,
    Scale,
    check_bits,
    check_choice,
)
from lightning_balq.functional.uniform import dorefa_levels, dorefa_straight_through
from lightning_balq.kernels.weights import (
    balanced_codes,
    balanced_levels,
    balanced_levels_of_all,
    uniform_codes,
    uniform_levels,
    uniform_levels_of_all,
)


@dataclass(frozen=True)
class WeightQuantizer(ABC):
    """What every weight quantizer offers: call it for levels with a gradient, ask it for codes.

    Two quantizers are equal if they do the same. ``dataclasses.replace(quantizer, bits=8)`` changes the width.

    Attributes:
        bits: width of a code in bits, 1 to 8.
    """

    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits, "weight_bits")

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``weight`` (dim 0 is the output channel), with a straight-through gradient."""
        return self.attach_gradient(weight, self.levels(weight))

    @abstractmethod
    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels that stand for ``weight``, without gradient."""

    def levels_of_all(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return :meth:`levels` of several weights on one device, which can be faster together."""
        return [self.levels(weight) for weight in weights]

    def attach_gradient(self, weight: Tensor, levels: Tensor) -> Tensor:
        """Return ``levels`` with the gradient that ``weight`` gets through the quantizer."""
        return straight_through(weight, levels)

    def scales(self, channels: int) -> int:
        """Return how many scales a weight with this many output channels has."""
        return channels if getattr(self, "granularity", "per_tensor") == "per_channel" else 1

    @abstractmethod
    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""


@dataclass(frozen=True)
class BalancedQuantizer(WeightQuantizer):
    """Bins of equal population; see :func:`lightning_balq.functional.balanced_fake_quantize`.

    Example:
        >>> import torch
        >>> BalancedQuantizer(bits=1, scale="max")(torch.tensor([-2.0, 1.0]))
        tensor([-2.,  2.])
    """

    center: Center = "mean"
    scale: Scale = "max"
    granularity: Granularity = "per_tensor"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TypeError: if ``bits`` is not an int.
            ValueError: if a field is out of range.
        """
        super().__post_init__()
        check_choice(self.center, "center", CENTERS)
        check_choice(self.scale, "scale", SCALES)
        check_choice(self.granularity, "granularity", GRANULARITIES)

    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels of ``weight``."""
        return balanced_levels(weight, self.bits, center=self.center, scale=self.scale, granularity=self.granularity)

    def levels_of_all(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels of several weights."""
        return balanced_levels_of_all(
            weights, self.bits, center=self.center, scale=self.scale, granularity=self.granularity
        )

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return balanced_codes(weight, self.bits, center=self.center, granularity=self.granularity)


@dataclass(frozen=True)
class UniformQuantizer(WeightQuantizer):
    """Nearest level of a uniform grid; see :func:`lightning_balq.functional.uniform_fake_quantize`.

    Example:
        >>> import torch
        >>> UniformQuantizer(bits=1)(torch.tensor([-2.0, 1.0]))
        tensor([-2.,  2.])
    """

    scale: Scale = "max"
    granularity: Granularity = "per_tensor"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TypeError: if ``bits`` is not an int.
            ValueError: if a field is out of range.
        """
        super().__post_init__()
        check_choice(self.scale, "scale", SCALES)
        check_choice(self.granularity, "granularity", GRANULARITIES)

    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels of ``weight``."""
        return uniform_levels(weight, self.bits, scale=self.scale, granularity=self.granularity)

    def levels_of_all(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels of several weights."""
        return uniform_levels_of_all(weights, self.bits, scale=self.scale, granularity=self.granularity)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return uniform_codes(weight, self.bits, scale=self.scale, granularity=self.granularity)


@dataclass(frozen=True)
class DoReFaQuantizer(WeightQuantizer):
    """The tanh form of DoReFa-Net; see :func:`lightning_balq.functional.dorefa_fake_quantize`.

    Example:
        >>> import torch
        >>> DoReFaQuantizer(bits=1)(torch.tensor([-2.0, 1.0]))
        tensor([-1.5000,  1.5000])
    """

    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels of ``weight``, in float32."""
        return dorefa_levels(weight, self.bits)

    def attach_gradient(self, weight: Tensor, levels: Tensor) -> Tensor:
        """Return ``levels`` with the gradient that passes through tanh."""
        return dorefa_straight_through(weight, levels, self.bits)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return dorefa_codes(weight, self.bits)
