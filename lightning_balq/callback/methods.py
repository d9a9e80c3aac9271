"""The callbacks that users add to a Trainer: one for each way to quantize weights."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from lightning_balq.callback.base import QuantizationCallback
from lightning_balq.functional._checks import SCALES, Center, Granularity, Scale, check_choice
from lightning_balq.functional.lsq import Grid
from lightning_balq.nn.quantizer import (
    BalancedQuantizer,
    DoReFaQuantizer,
    LearnedBalancedQuantizer,
    LSQQuantizer,
    UniformQuantizer,
    WeightQuantizer,
)


@dataclass(eq=False)
class BalancedQuantization(QuantizationCallback):
    r"""Train with balanced low-bit weights and, if asked, activations (Zhou et al. 2017, arXiv:1706.07145).

    Args:
        weight_bits: width of weight codes, 1 to 8.
        activation_bits: width of the codes of layer inputs and of the hidden states of recurrent layers, 1 to 8;
            ``None`` leaves activations float.
        center: where a bin is split: its ``"mean"`` (cheaper) or its ``"median"`` (exact quantiles).
        scale: outermost level at ``"max"`` magnitude (the paper), at 1.25 times the ``"mean"`` magnitude, where the
            levels fit the weight best (``"least_squares"``), or there at first and then ``"learned"``, as LSQ does.
        granularity: one partition and scale per weight (``"per_tensor"``) or per output channel (``"per_channel"``).
        recurrent: quantizer of the hidden-to-hidden weights of recurrent layers, with its own width, such as
            ``UniformQuantizer(bits=4)``; ``None`` for that of all weights.
        activation_range: ``"unit"`` clips activations to [0, 1] (the paper); ``"observed"`` to a running range;
            ``"pact"`` (Choi et al. 2018) and ``"lsq"`` (Esser et al. 2020) to one that is learned. Hidden states that
            tanh bounds are always in [-1, 1].
        activation_sign: whether activations can be negative: ``"auto"`` finds out from training batches.
        include: patterns of layers to quantize; see :class:`lightning_balq.QuantizationConfig`.
        exclude: patterns of layers to leave float.
        weight_bits_by_layer: pattern to weight bits, where they differ from ``weight_bits``.
        activation_bits_by_layer: pattern to activation bits, where they differ from ``activation_bits``.
        quantize_first_last: also quantize the first and the last layer.
        start_step: optimizer steps to train in float first.
        blend_steps: optimizer steps over which the quantized network is blended in after that.
        best_when_quantized: let ``ModelCheckpoint`` and ``EarlyStopping`` judge the quantized network only. While it
            is float or blended in, checkpoints are saved, and ranked among themselves, but none is the best one, and
            nothing stops early; then judging starts over. ``save_last``, and checkpoints that monitor nothing, are
            left alone. Without ``start_step`` and ``blend_steps`` it only matters where training goes on from a
            checkpoint of a float model.
        learned_lr_factor: factor of the learning rate of learned scales and ranges, > 0.
        reuse_quantized: quantize a weight once for all forwards between two of its changes. Turn it off if your code
            writes to ``parameter.data`` between batches whose gradients are accumulated: nothing shows such a change.
        non_finite: what happens when a quantized weight, or a scale or range that is learned or observed, is NaN or
            infinite: ``"error"`` stops training, ``"warn"`` warns once for each layer. It is looked for at each
            record, at both ends of training, and before a checkpoint is written, which happens in neither case.
        record_every_n_steps: optimizer steps between two records; 0 records nothing.
        verbose: 0 prints no tables.
        name: distinguishes two callbacks of one kind in one Trainer.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BalancedQuantization(weight_bits=2, activation_bits=2)], logger=False)
    """

    _: KW_ONLY
    center: Center = "mean"
    scale: Scale | Literal["learned"] = "max"
    granularity: Granularity = "per_tensor"

    def weight_quantizer(self) -> WeightQuantizer:
        """Build the weight quantizer that the arguments describe."""
        check_choice(self.scale, "scale", (*SCALES, "learned"))
        if self.scale == "learned":
            return LearnedBalancedQuantizer(self.weight_bits, self.granularity, self.center)
        return BalancedQuantizer(self.weight_bits, self.center, self.scale, self.granularity)


@dataclass(eq=False)
class UniformQuantization(QuantizationCallback):
    """Train with uniformly quantized weights, the baseline: the nearest of evenly spaced levels.

    Args:
        scale: outermost level at ``"max"`` magnitude (extremal values), at 1.25 times the ``"mean"`` magnitude, or
            where the levels fit the weight best (``"least_squares"``).
        granularity: one scale per weight (``"per_tensor"``) or per output channel (``"per_channel"``).

    All other arguments are those of :class:`BalancedQuantization`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> UniformQuantization(weight_bits=2, scale="mean").state_key
        'UniformQuantization'
    """

    _: KW_ONLY
    scale: Scale = "max"
    granularity: Granularity = "per_tensor"

    def weight_quantizer(self) -> WeightQuantizer:
        """Build the weight quantizer that the arguments describe."""
        return UniformQuantizer(self.weight_bits, self.scale, self.granularity)


@dataclass(eq=False)
class DoReFaQuantization(QuantizationCallback):
    """Train with DoReFa-Net weights, the baseline of Zhou et al. 2016 (arXiv:1606.06160).

    Args:
        granularity: one maximum per weight (``"per_tensor"``, the paper) or per output channel (``"per_channel"``).

    All other arguments are those of :class:`BalancedQuantization`, except for ``center`` and ``scale``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> DoReFaQuantization(weight_bits=1, activation_bits=2, activation_range="unit").weight_bits
        1
    """

    _: KW_ONLY
    granularity: Granularity = "per_tensor"

    def weight_quantizer(self) -> WeightQuantizer:
        """Build the weight quantizer that the arguments describe."""
        return DoReFaQuantizer(self.weight_bits, self.granularity)


@dataclass(eq=False)
class LSQQuantization(QuantizationCallback):
    """Train with learned step sizes, the baseline of Esser et al. 2020 (arXiv:1902.08153).

    Args:
        grid: ``"integer"`` (the paper's, with a level at zero, from 2 bits on) or ``"symmetric"`` (that of balanced
            quantization, from 1 bit on).
        granularity: one scale per weight (``"per_tensor"``) or per output channel (``"per_channel"``).

    All other arguments are those of :class:`BalancedQuantization`; the paper's activations are
    ``activation_range="lsq"``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> LSQQuantization(weight_bits=2, activation_bits=2, activation_range="lsq").grid
        'integer'
    """

    _: KW_ONLY
    grid: Grid = "integer"
    granularity: Granularity = "per_tensor"

    def weight_quantizer(self) -> WeightQuantizer:
        """Build the weight quantizer that the arguments describe."""
        return LSQQuantizer(self.weight_bits, self.granularity, self.grid)
