"""What became of each layer of a deploy model, as a table."""

from dataclasses import dataclass

from lightning_balq.nn.report import as_text, make_table


@dataclass(frozen=True)
class DeployedLayer:
    """What became of one layer.

    Attributes:
        name: name in ``named_modules()`` of the quantized model.
        type: class name in that model.
        weight_bits: width of its weight codes; ``None`` if they stay float.
        activation_bits: width of its input codes; ``None`` if they stay float.
        int8: whether it is made of integers now.
        norm: name of the batch norm that went into its scales and its bias; empty if none did.
        reason: why it is not made of integers; empty if it is.
    """

    name: str
    type: str
    weight_bits: int | None
    activation_bits: int | None
    int8: bool
    norm: str = ""
    reason: str = ""


@dataclass(frozen=True)
class DeployReport:
    """What became of each layer; ``print(report)`` shows a table.

    Attributes:
        layers: one entry for each layer of a quantizable type, in the order of ``named_modules()``.
        note: why no batch norm was folded; empty if they could be.
    """

    layers: tuple[DeployedLayer, ...]
    note: str = ""

    @property
    def int8(self) -> tuple[DeployedLayer, ...]:
        """The layers that are made of integers."""
        return tuple(layer for layer in self.layers if layer.int8)

    def __str__(self) -> str:
        title = f"{len(self.int8)} of {len(self.layers)} layers in int8"
        made = make_table(title, ["layer", "type", "W/A bits", "computes in", "folded", "stays float because"])
        for layer in self.layers:
            widths = "/".join("float" if b is None else str(b) for b in (layer.weight_bits, layer.activation_bits))
            made.add_row(
                layer.name or "(the model)",
                layer.type,
                "float" if layer.weight_bits is None else widths,
                "int8" if layer.int8 else "float",
                layer.norm,
                layer.reason,
                style=None if layer.int8 else "dim",
            )
        return "\n".join([as_text(made), *([self.note] if self.note else [])])
