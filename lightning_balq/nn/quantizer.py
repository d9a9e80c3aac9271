"""Weight quantizers as small value objects: a method, its options and a width."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lightning_balq.functional import (
    balanced_codes,
    balanced_fake_quantize,
    dorefa_codes,
    dorefa_fake_quantize,
    uniform_codes,
    uniform_fake_quantize,
    uniform_scale,
)
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


@dataclass(frozen=True)
class WeightQuantizer(ABC):
    """What every weight quantizer offers: call it for levels, ask it for codes.

    Two quantizers are equal if they do the same. ``dataclasses.replace(quantizer, bits=8)`` changes the width.

    Attributes:
        bits: width of a code in bits, 1 to 8.
    """

    bits: int

    def __post_init__(self) -> None:
        check_bits(self.bits, "weight_bits")

    @abstractmethod
    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``weight`` (dim 0 is the output channel), with a straight-through gradient."""

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

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``weight``."""
        return balanced_fake_quantize(
            weight, self.bits, center=self.center, scale=self.scale, granularity=self.granularity
        )

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return balanced_codes(weight, self.bits, center=self.center, granularity=self.granularity)


@dataclass(frozen=True)
class UniformQuantizer(WeightQuantizer):
    """Nearest level of a uniform grid; see :func:`lightning_balq.functional.uniform_fake_quantize`.

    Example:
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

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``weight``."""
        return uniform_fake_quantize(weight, self.bits, scale=self.scale, granularity=self.granularity)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        step = uniform_scale(weight, self.bits, scale=self.scale, granularity=self.granularity)
        return uniform_codes(weight, step, self.bits)


@dataclass(frozen=True)
class DoReFaQuantizer(WeightQuantizer):
    """The tanh form of DoReFa-Net; see :func:`lightning_balq.functional.dorefa_fake_quantize`.

    Example:
        >>> DoReFaQuantizer(bits=1)(torch.tensor([-2.0, 1.0]))
        tensor([-1.5000,  1.5000])
    """

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``weight``."""
        return dorefa_fake_quantize(weight, self.bits)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return dorefa_codes(weight, self.bits)
