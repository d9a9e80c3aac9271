"""Weight quantizers as small value objects: a method, its options and a width."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_balq.functional import (
    dorefa_codes,
    least_squares_scale,
    lsq_codes,
    lsq_fake_quantize,
    lsq_initial_scale,
    scaled_fake_quantize,
    straight_through,
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
from lightning_balq.functional.lsq import Grid, lsq_bounds
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

    def prepare(self, weight: Tensor) -> Tensor:
        """Return what the weight alone decides, to be kept as long as it stays: its levels, if nothing is learned."""
        return self.levels(weight)

    def prepare_all(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return :meth:`prepare` of several weights on one device, which can be faster together."""
        return self.levels_of_all(weights)

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

    granularity: Granularity = "per_tensor"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TypeError: if ``bits`` is not an int.
            ValueError: if a field is out of range.
        """
        super().__post_init__()
        check_choice(self.granularity, "granularity", GRANULARITIES)

    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels of ``weight``, in float32."""
        return dorefa_levels(weight, self.bits, granularity=self.granularity)

    def attach_gradient(self, weight: Tensor, levels: Tensor) -> Tensor:
        """Return ``levels`` with the gradient that passes through tanh."""
        return dorefa_straight_through(weight, levels, self.bits, granularity=self.granularity)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return dorefa_codes(weight, self.bits, granularity=self.granularity)


@dataclass(frozen=True)
class LearnedScaleQuantizer(WeightQuantizer):
    """Weight quantizer whose scale, the distance between two levels, is trained with the weight, as its logarithm.

    Attributes:
        granularity: one scale for the whole weight, or one per output channel.
    """

    granularity: Granularity = "per_tensor"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TypeError: if ``bits`` is not an int.
            ValueError: if a field is out of range.
        """
        super().__post_init__()
        check_choice(self.granularity, "granularity", GRANULARITIES)

    @abstractmethod
    def initial_scale(self, weight: Tensor) -> Tensor:
        """Return the scale to begin with, shape ``(1,)`` or ``(C,)``."""

    def begin(self, weight: Tensor) -> Tensor:
        """Return the value that the parameter begins with, the logarithm of the initial scale.

        Where all weights are zero, any scale fits them, and none could be trained from zero on: there it is the bound
        of PyTorch's own initial values, one over the root of the number of inputs.
        """
        scale = self.initial_scale(weight)
        inputs = max(weight.numel() // max(len(weight), 1), 1) if weight.dim() else 1
        return torch.where(scale > 0, scale, 1 / math.sqrt(inputs)).log()

    @abstractmethod
    def scaled(self, weight: Tensor, prepared: Tensor, scale: Tensor) -> Tensor:
        """Fake-quantize ``weight``, for which :meth:`prepare` returned ``prepared``, with gradients for both."""

    def __call__(self, weight: Tensor) -> Tensor:
        """Fake-quantize ``weight`` at its initial scale."""
        return self.scaled(weight, self.prepare(weight), self.initial_scale(weight))

    def levels(self, weight: Tensor) -> Tensor:
        """Return the levels of ``weight`` at its initial scale, without gradient."""
        return self(weight.detach())

    def prepare_all(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return :meth:`prepare` of several weights."""
        return [self.prepare(weight) for weight in weights]

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight`` at its initial scale."""
        return self.codes_at(weight, self.initial_scale(weight))

    @abstractmethod
    def codes_at(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight`` at a scale."""


@dataclass(frozen=True)
class LearnedBalancedQuantizer(LearnedScaleQuantizer):
    """Codes of balanced quantization at a learned scale, at first the one that fits the weight best.

    See :func:`lightning_balq.functional.scaled_fake_quantize`.

    Example:
        >>> import torch
        >>> LearnedBalancedQuantizer(bits=1)(torch.tensor([-2.0, 1.0]))
        tensor([-1.5000,  1.5000])
    """

    center: Center = "mean"

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_choice(self.center, "center", CENTERS)

    def initial_scale(self, weight: Tensor) -> Tensor:
        """Return the least-squares scale."""
        return 2 * least_squares_scale(weight, self.codes(weight), self.bits, granularity=self.granularity)

    def prepare(self, weight: Tensor) -> Tensor:
        """Return the odd integers that the codes stand for."""
        return balanced_levels(weight, self.bits, center=self.center, scale="unit", granularity=self.granularity)

    def prepare_all(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return :meth:`prepare` of several weights."""
        return balanced_levels_of_all(
            weights, self.bits, center=self.center, scale="unit", granularity=self.granularity
        )

    def scaled(self, weight: Tensor, prepared: Tensor, scale: Tensor) -> Tensor:
        """Fake-quantize ``weight``."""
        return scaled_fake_quantize(weight, prepared, scale, self.bits)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``, which do not depend on the scale."""
        return balanced_codes(weight, self.bits, center=self.center, granularity=self.granularity)

    def codes_at(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight``."""
        return self.codes(weight)


@dataclass(frozen=True)
class LSQQuantizer(LearnedScaleQuantizer):
    """Learned step size quantization; see :func:`lightning_balq.functional.lsq_fake_quantize`.

    Attributes:
        grid: ``"integer"``, the paper's, with a level at zero, or ``"symmetric"``, that of all other quantizers here.

    Example:
        >>> import torch
        >>> LSQQuantizer(bits=2)(torch.tensor([-2.0, 0.5, 1.0, 4.0]))
        tensor([-3.7500,  0.0000,  0.0000,  3.7500])
    """

    grid: Grid = "integer"

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        lsq_bounds(self.bits, self.grid)

    def initial_scale(self, weight: Tensor) -> Tensor:
        """Return the scale of :func:`lightning_balq.functional.lsq_initial_scale`."""
        return lsq_initial_scale(weight, self.bits, grid=self.grid, granularity=self.granularity)

    def prepare(self, weight: Tensor) -> Tensor:
        """Return the weight: codes depend on the scale, so that nothing can be computed beforehand."""
        return weight.detach()

    def scaled(self, weight: Tensor, prepared: Tensor, scale: Tensor) -> Tensor:
        """Fake-quantize ``weight``."""
        return lsq_fake_quantize(weight, scale, self.bits, grid=self.grid)

    def codes_at(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the uint8 codes of ``weight`` at a scale."""
        return lsq_codes(weight, scale, self.bits, grid=self.grid)
