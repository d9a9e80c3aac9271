"""What to quantize and how: one frozen dataclass, the only place where the options of the modules are named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_balq.functional._checks import check_bits, check_choice
from lightning_balq.nn.activation import ACTIVATION_RANGES, ACTIVATION_SIGNS, ActivationRange, ActivationSign
from lightning_balq.nn.quantizer import BalancedQuantizer, WeightQuantizer


@dataclass(frozen=True)
class QuantizationConfig:
    """Options of :func:`lightning_balq.quantize_`.

    A pattern is a glob (``*``, ``?``, ``[..]``) on names of ``named_modules()``, or ``type:`` and a glob on class
    names; a pattern that matches a container selects all layers inside. Embeddings are quantized only where their
    name or type is written out. Recurrent layers have parts, each with a name that patterns match too:
    ``<layer>.kernel`` and ``<layer>.recurrent``, the weights that multiply the input and the hidden state, and
    ``<layer>.input`` and ``<layer>.state``, what they multiply.

    Attributes:
        weight: quantizer of the weights, with their width.
        recurrent: quantizer of the recurrent weights, with their width; ``None`` for that of all weights.
        activation_bits: width of the codes of layer inputs, 1 to 8; ``None`` leaves activations float.
        activation_range: ``"unit"`` clips activations to [0, 1] (or [-1, 1]); ``"observed"`` to a running range;
            ``"pact"`` and ``"lsq"`` to one that is learned.
        activation_sign: whether activations can be negative: ``"auto"`` finds out from training batches.
        include: patterns of layers to quantize.
        exclude: patterns of layers to leave float; wins over ``include``.
        weight_bits_by_layer: pattern to weight bits, where they differ from ``weight.bits``.
        activation_bits_by_layer: pattern to activation bits, where they differ from ``activation_bits``.
        quantize_first_last: also quantize the first and the last of the layers selected; a layer whose exact name is
            in ``include`` or ``weight_bits_by_layer`` is quantized in any case.

    Raises:
        TypeError: if a field has the wrong type.
        ValueError: if a field is out of range.

    Example:
        >>> QuantizationConfig(BalancedQuantizer(bits=2), activation_bits=2, exclude=["head"]).exclude
        ('head',)
    """

    weight: WeightQuantizer = field(default_factory=lambda: BalancedQuantizer(bits=4))
    recurrent: WeightQuantizer | None = None
    activation_bits: int | None = None
    activation_range: ActivationRange = "observed"
    activation_sign: ActivationSign = "auto"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    weight_bits_by_layer: Mapping[str, int] = field(default_factory=dict)
    activation_bits_by_layer: Mapping[str, int] = field(default_factory=dict)
    quantize_first_last: bool = False

    def __post_init__(self) -> None:
        """Check every field, and make copies that nobody else can change."""
        if not isinstance(self.weight, WeightQuantizer):
            raise TypeError(f"`weight` must be a WeightQuantizer, got {self.weight!r} of {type(self.weight).__name__}")
        if self.recurrent is not None and not isinstance(self.recurrent, WeightQuantizer):
            raise TypeError(
                "`recurrent` must be a WeightQuantizer such as UniformQuantizer(bits=4), or None, got "
                f"{self.recurrent!r} of {type(self.recurrent).__name__}"
            )
        if self.activation_bits is not None:
            check_bits(self.activation_bits, "activation_bits")
        check_choice(self.activation_range, "activation_range", ACTIVATION_RANGES)
        check_choice(self.activation_sign, "activation_sign", ACTIVATION_SIGNS)
        if not isinstance(self.quantize_first_last, bool):
            raise TypeError(f"`quantize_first_last` must be a bool, got {self.quantize_first_last!r}")
        for name in ("include", "exclude"):
            object.__setattr__(self, name, _patterns(getattr(self, name), name))
        if not self.include:
            raise ValueError('`include` must hold at least one pattern, got none; ("*",) selects every layer')
        for name in ("weight_bits_by_layer", "activation_bits_by_layer"):
            object.__setattr__(self, name, _bits_by_layer(getattr(self, name), name))


def _patterns(value: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"`{name}` must be a sequence of patterns such as ['encoder.*', 'type:Conv2d'], got {value!r}")
    return tuple(value)


def _bits_by_layer(value: Mapping[str, int], name: str) -> dict[str, int]:
    if not isinstance(value, Mapping) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"`{name}` must map patterns to bits, such as {{'layer4.*': 8}}, got {value!r}")
    return {pattern: check_bits(bits, f"{name}[{pattern!r}]") for pattern, bits in value.items()}
