"""What the study of the Penn Treebank runs: settings, and the cells of its table."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Literal

from benchmarks.records import Record

FLOAT = "float"
METHODS: dict[str, dict[str, str | None]] = {
    "balanced_mean": {"quantizer": "balanced", "center": "mean", "scale": "mean"},
    "uniform_mean": {"quantizer": "uniform", "center": None, "scale": "mean"},
    "uniform_max": {"quantizer": "uniform", "center": None, "scale": "max"},
    "balanced_median": {"quantizer": "balanced", "center": "median", "scale": "mean"},
    FLOAT: {"quantizer": FLOAT, "center": None, "scale": None},
}
WIDTHS: dict[str, tuple[int | None, int | None]] = {
    FLOAT: (None, None), "W2": (2, None), "W2A2": (2, 2),
}  # fmt: skip
"""Bits of weights and of activations."""


@dataclass(frozen=True)
class Setting:
    """How every network is trained.

    Attributes:
        name: of the setting.
        networks: kinds of network, the more important first.
        widths: widths of the quantized networks, the more important first.
        seeds: seeds of each row.
        train_share: share of the training text.
        epochs: of each run.
        batch_size: columns of the text that are read side by side.
        steps: how far gradients go back.
        eval_batch_size: columns of the validation and the test text, which are always whole.
        units: size of the embedding and of the recurrent layer.
        dropout: share dropped.
        optimizer: `sgd` or `adam`.
        learning_rate: at the beginning.
        decay: what the learning rate is divided by.
        milestones: epochs after which it is divided; `None` for each validation that does not improve.
        gradient_clip: largest norm of the gradient.
        weight_clip: largest magnitude of a weight, of quantized networks.
        granularity: `per_channel` gives every row of a weight its own partition and scale.
        activation_range: `unit` clips activations to [-1, 1], `observed` to what training batches show.
        from_float: whether quantized networks start from the best float network of the same kind and seed.
        blend_epochs: share of the first epoch in which those are blended in. Less than 1, so that a network that is
            still partly float is not validated and cannot be the best.
    """

    name: str
    networks: tuple[str, ...]
    widths: tuple[str, ...]
    seeds: tuple[int, ...]
    train_share: float
    epochs: int
    batch_size: int
    steps: int
    eval_batch_size: int
    units: int
    dropout: float
    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    decay: float
    milestones: tuple[int, ...] | None
    gradient_clip: float
    weight_clip: float
    granularity: Literal["per_tensor", "per_channel"]
    activation_range: Literal["unit", "observed"]
    from_float: bool
    blend_epochs: float

    def numbers(self) -> Record:
        """What a record says about how its network was trained."""
        skipped = ("name", "networks", "widths", "seeds")
        values = {key: value for key, value in asdict(self).items() if key not in skipped}
        return values | {"milestones": None if self.milestones is None else list(self.milestones)}  # as JSON has it


SETTINGS = {
    "beginning": Setting(
        "beginning", networks=("lstm",), widths=("W2A2", "W2"), seeds=(0, 1), train_share=0.15, epochs=1, batch_size=20,
        steps=20, eval_batch_size=50, units=300, dropout=0.0, optimizer="adam", learning_rate=5e-4, decay=10.0,
        milestones=None, gradient_clip=1.0, weight_clip=1.0, granularity="per_channel", activation_range="unit",
        from_float=False, blend_epochs=0.0,
    ),
    "reduced": Setting(
        "reduced", networks=("lstm",), widths=("W2A2", "W2"), seeds=(0, 1), train_share=0.3, epochs=2, batch_size=20,
        steps=20, eval_batch_size=50, units=300, dropout=0.25, optimizer="adam", learning_rate=5e-4, decay=10.0,
        milestones=None, gradient_clip=1.0, weight_clip=1.0, granularity="per_channel", activation_range="unit",
        from_float=True, blend_epochs=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training run."""

    network: str
    width: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell, such as `lstm-W2A2-balanced_mean-0`."""
        return f"{self.network}-{self.width}-{self.method}-{self.seed}"

    @property
    def reference(self) -> "Cell":
        """The float run of the same network and seed."""
        return Cell(self.network, FLOAT, FLOAT, self.seed)

    def options(self) -> Record:
        """Everything that describes the run."""
        weight_bits, activation_bits = WIDTHS[self.width]
        return asdict(self) | {"weight_bits": weight_bits, "activation_bits": activation_bits} | METHODS[self.method]


def all_cells(setting: Setting) -> Iterator[Cell]:
    """Every run of a setting; the first seed of all rows before the second of any, float networks before others."""
    for seed in setting.seeds:
        for network in setting.networks:
            yield Cell(network, FLOAT, FLOAT, seed)
            for width in setting.widths:
                for method in METHODS:
                    if method != FLOAT:
                        yield Cell(network, width, method, seed)


def select(cells: Iterable[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Keep the cells whose name matches one of the globs; all if there are none.

    Raises:
        ValueError: if nothing matches.
    """
    named = list(cells)
    kept = [cell for cell in named if not patterns or any(fnmatch(cell.name, pattern) for pattern in patterns)]
    if not kept:
        raise ValueError(
            f"`cells` must match the name of a cell, got {list(patterns)}, which match none of {len(named)}: "
            f"{', '.join(cell.name for cell in named[:3])}, .."
        )
    return kept
