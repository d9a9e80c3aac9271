"""What the runs return: plain values, written to ``results.json`` as they are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """The weights of one layer after training, as a histogram for each code.

    Attributes:
        layer: name of the layer.
        edges: borders of the histogram's bins.
        counts: number of weights by code and bin; one row for a float layer.
        levels: value of each code; empty for a float layer.
    """

    layer: str
    edges: list[float]
    counts: list[list[int]]
    levels: list[float]

    @property
    def shares(self) -> list[float]:
        """Share of the weights that each code stands for."""
        total = sum(map(sum, self.counts))
        return [sum(row) / total for row in self.counts]


@dataclass(frozen=True)
class Run:
    """One network trained from one seed.

    Attributes:
        case: name of the row it belongs to.
        seed: decides the initial weights and the order of batches.
        accuracy: on the test set after the last step, in percent.
        effective_bitwidth: training step and effective bitwidth of the quantized layers, as recorded by the callback.
        float_bytes: bytes of all parameters in float32.
        quantized_bytes: the same with the quantized layers as codes and scales.
        weights: the layer that is drawn, for the seed that is drawn.
    """

    case: str
    seed: int
    accuracy: float
    effective_bitwidth: list[tuple[int, float]]
    float_bytes: int
    quantized_bytes: int
    weights: Weights | None


@dataclass(frozen=True)
class Layer:
    """One layer of the network.

    Attributes:
        name: name in the network.
        type: its class.
        weights: their number.
        reason: why it stays float; empty if it is quantized.
    """

    name: str
    type: str
    weights: int
    reason: str


@dataclass(frozen=True)
class Setup:
    """What was run, where.

    Attributes:
        seeds: one run of every row for each.
        epochs: passes over the training set, the same for every row.
        steps: optimizer steps in a run.
        batch_size: images in a batch.
        learning_rate: where Adam's cosine schedule starts.
        train_images: size of the training set.
        test_images: size of the test set.
        layers: every layer of a type that can be quantized.
        calls: how each quantized row's callback was made, with the defaults that matter written out.
        versions: of Python and packages.
        processor: what the machine calls it.
        workers: processes that trained at once, with one thread each.
    """

    seeds: list[int]
    epochs: int
    steps: int
    batch_size: int
    learning_rate: float
    train_images: int
    test_images: int
    layers: list[Layer]
    calls: dict[str, str]
    versions: dict[str, str]
    processor: str
    workers: int

    @property
    def float_layers(self) -> str:
        """The layers that stay float, and why."""
        return ", ".join(f"{layer.name} ({layer.type}, {layer.reason})" for layer in self.layers if layer.reason)


@dataclass(frozen=True)
class Results:
    """Every number measured.

    Attributes:
        setup: what was run.
        runs: in the order of the rows, then of the seeds.
        step_time: of each quantized row, relative to float's in the same round of interleaved steps, for each round.
    """

    setup: Setup
    runs: list[Run]
    step_time: dict[str, list[float]]
