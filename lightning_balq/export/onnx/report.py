"""What became of a model in an ONNX file."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WeightReport:
    """How one quantized weight is used.

    Attributes:
        name: its key in the ``state_dict()`` of the float model.
        bits: width of its codes.
        activation_bits: width of what it multiplies; ``None`` if that is float.
        form: ``"float"`` if its levels multiply as floats, else the integers that do: ``"int8"``, ``"uint8"`` (those of
            which int8 sums could overflow within the kernel) or ``"codes"`` (8 bits).
        reason: why it is ``"float"`` in a file of integer products; else empty.
    """

    name: str
    bits: int
    activation_bits: int | None
    form: str
    reason: str = ""

    def __str__(self) -> str:
        activations = "float" if self.activation_bits is None else f"{self.activation_bits} bits"
        text = f"{self.name}: {self.bits} bits, activations {activations}, multiplied as {self.form}"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(frozen=True)
class OnnxReport:
    """What :func:`lightning_balq.export.onnx.export_onnx` wrote.

    Attributes:
        path: the file.
        size: its bytes.
        mode: ``"portable"`` or ``"integer"``.
        weights: its quantized weights in the order of the model.
        float_bytes: bytes of the same weights as float32.
        code_bytes: bytes of their codes.
    """

    path: Path
    size: int
    mode: str
    weights: tuple[WeightReport, ...]
    float_bytes: int
    code_bytes: int

    def __str__(self) -> str:
        forms = ", ".join(f"{count} as {form}" for form, count in Counter(w.form for w in self.weights).items())
        title = f"{self.path}: {self.size} bytes, {len(self.weights)} quantized weights, {forms}"
        return "\n".join([title, *(f"  {weight}" for weight in self.weights)])
