"""What can be run: methods, widths, and the cells that they make with a recipe and seeds.

Importing it does not import torch: the command line answers at once.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recipes.configuration import FROM_FLOAT, WIDTHS, load

FOLDER = Path(__file__).parents[1] / "methods"
FLOAT = "float"
"""The method that quantizes nothing."""

FLOAT_BITS = 32
BITS = tuple(range(1, 9))
RESERVED = ("seed_everything", "quantization.weight_bits", "quantization.activation_bits", "config", "ckpt_path")
"""Options that a cell sets itself."""


class Width(NamedTuple):
    """Bits of weights and of activations; ``None`` where they are float."""

    weight_bits: int | None
    activation_bits: int | None

    def __str__(self) -> str:
        if self.weight_bits is None:
            return FLOAT
        return f"W{self.weight_bits}" if self.activation_bits is None else f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts widths: float first, then the fewest bits."""
        weights, activations = self
        return (0, 0) if weights is None else (weights, FLOAT_BITS if activations is None else activations)


def parse_width(text: str) -> Width:
    """Read ``"2/2"``: bits of weights and of activations, 32 for float ones.

    Raises:
        ValueError: if it is something else.

    Example:
        >>> parse_width("2/4"), str(parse_width("2/32"))
        (Width(weight_bits=2, activation_bits=4), 'W2')
    """
    weights, slash, activations = text.partition("/")
    known = {str(bits) for bits in BITS}
    if not slash or weights not in known or activations not in known | {str(FLOAT_BITS)}:
        raise ValueError(
            f"a width must be bits of weights / bits of activations, 1 to 8, or {FLOAT_BITS} for float activations, "
            f"such as 2/2 or 2/{FLOAT_BITS}; got {text!r}"
        )
    return Width(int(weights), None if activations == str(FLOAT_BITS) else int(activations))


@dataclass(frozen=True)
class Method:
    """A way to quantize: a file of settings, and the widths that it is made for.

    Attributes:
        name: of its file.
        file: settings; ``None`` for the float network.
        weight_bits: widths of weights.
        activation_bits: widths of activations.
        from_float: whether its networks begin with the weights of the trained float network of the same seed.
    """

    name: str
    file: Path | None
    weight_bits: tuple[int | None, ...]
    activation_bits: tuple[int | None, ...]
    from_float: bool = False

    def admits(self, width: Width) -> bool:
        """Whether it is made for a width."""
        return width.weight_bits in self.weight_bits and width.activation_bits in self.activation_bits

    @property
    def widths(self) -> str:
        """What it is made for, in words."""
        weights, activations = (_in_words(bits) for bits in (self.weight_bits, self.activation_bits))
        return f"weights of {weights} and activations of {activations} bits"


FLOAT_METHOD = Method(FLOAT, None, (None,), (None,))


def methods(folder: Path = FOLDER) -> dict[str, Method]:
    """Every method by name: the float network, and the files of a folder."""
    found = {FLOAT: FLOAT_METHOD}
    for file in sorted(folder.glob("*.yaml")):
        settings = load(file)
        widths = settings.get(WIDTHS, {})
        weights, activations = widths.get("weight_bits", BITS), widths.get("activation_bits", (*BITS, None))
        from_float = settings.get(FROM_FLOAT, False)
        found[file.stem] = Method(file.stem, file, tuple(weights), tuple(activations), from_float)
    return found


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        recipe: file of settings.
        method: how to quantize.
        width: to how many bits.
        seed: decides the initial weights and the order of batches.
        overrides: settings that differ from the recipe's, as ``key=value``, the same for all methods.
        where: settings that say where data are and are kept, as ``key=value``; no part of what the run is.
    """

    recipe: Path
    method: Method
    width: Width
    seed: int
    overrides: tuple[str, ...] = ()
    where: tuple[str, ...] = ()

    @property
    def setting(self) -> str:
        """Eight hexadecimal digits that stand for the recipe and the overrides: what all compared cells share."""
        return _digest([load(self.recipe), self.changes])

    @property
    def changes(self) -> dict[str, str]:
        """The overrides by name; of two for the same, the last."""
        return dict(sorted(override.split("=", 1) for override in self.overrides))

    @property
    def name(self) -> str:
        """Name that no cell with other settings has, whatever their files are called."""
        settings = [self.setting, None if self.method.file is None else load(self.method.file)]
        return f"{self.recipe.stem}--{self.method.name}--{self.width}--seed{self.seed}--{_digest(settings)}"

    @property
    def start(self) -> "Cell | None":
        """The cell of the float network that this one begins with, if it does."""
        if not self.method.from_float:
            return None
        return Cell(self.recipe, FLOAT_METHOD, Width(None, None), self.seed, self.overrides, self.where)

    @property
    def label(self) -> str:
        """What is shown while it runs."""
        parts = [self.method.name] if self.method.name == FLOAT else [self.method.name, str(self.width)]
        return f"{' '.join(parts)}, seed {self.seed}"

    def arguments(self) -> list[str]:
        """Command line of the training program."""
        files = [self.recipe] if self.method.file is None else [self.recipe, self.method.file]
        configs = [word for file in files for word in ("--config", str(file))]
        quantized = self.method.file is not None
        overrides = [f"--{key}={value}" for key, value in self.changes.items()] + [f"--{word}" for word in self.where]
        if quantized:
            bits = [json.dumps(number) for number in self.width]
            overrides += [f"--quantization.weight_bits={bits[0]}", f"--quantization.activation_bits={bits[1]}"]
        else:
            overrides = [word for word in overrides if not word.startswith("--quantization")] + ["--quantization=null"]
        return ["fit", *configs, f"--seed_everything={self.seed}", *overrides]

    def described(self) -> dict[str, Any]:
        """What a record says about which cell it is of."""
        return {
            "cell": self.name, "recipe": self.recipe.stem, "setting": self.setting, "overrides": self.changes,
            "method": self.method.name, "weight_bits": self.width.weight_bits,
            "activation_bits": self.width.activation_bits, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How to run a cell, which changes nothing of what it is.

    Args:
        threads: of torch, for work on the CPU.
        start_over: begin an interrupted run anew instead of going on from its last epoch.
        retry: run cells again that failed.
    """

    threads: int = 1
    start_over: bool = False
    retry: bool = False


def check_recipe(recipe: Path, overrides: Sequence[str]) -> None:
    """Raise an error that says what is wrong with a recipe or with overrides.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it is none, or an override cannot be one.
    """
    load(recipe)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key or key.startswith("-"):
            raise ValueError(f"`--set` takes key=value, such as trainer.max_epochs=3, got {override!r}")
        if key in RESERVED:
            raise ValueError(f"`--set` must not set {key!r}, which the comparison sets for each run itself")


def choose(known: Mapping[str, Method], names: Sequence[str]) -> list[Method]:
    """Return the methods of these names; all if there are none.

    Raises:
        ValueError: if there is no such method.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"methods must be of {', '.join(known)}; got {', '.join(unknown)}")
    return [known[name] for name in names or known]


def all_cells(
    recipe: Path,
    chosen: Sequence[Method],
    widths: Sequence[Width],
    seeds: Sequence[int],
    overrides: Sequence[str],
    where: Sequence[str] = (),
) -> Iterator[Cell]:
    """Every cell of a comparison; the first seed of all rows before the second of any."""
    for seed in seeds:
        for width in (Width(None, None), *widths):
            for method in chosen:
                if method.admits(width):
                    yield Cell(recipe, method, width, seed, tuple(overrides), tuple(where))


def left_out(chosen: Sequence[Method], widths: Sequence[Width]) -> list[str]:
    """Say which widths a method is not made for."""
    said = []
    for method in chosen:
        missing = [str(width) for width in widths if not method.admits(width)]
        if missing and method.name != FLOAT:
            said.append(f"{method.name} is made for {method.widths}: without {', '.join(missing)}")
    return said


def _in_words(bits: Sequence[int | None]) -> str:
    numbers = sorted(FLOAT_BITS if number is None else number for number in bits)
    small = [number for number in numbers if number != FLOAT_BITS]
    shown = [f"{small[0]} to {small[-1]}" if small == list(BITS)[small[0] - 1 : small[-1]] and len(small) > 1 else
             ", ".join(map(str, small))] if small else []  # fmt: skip
    return " or ".join([*shown, *([str(FLOAT_BITS)] if FLOAT_BITS in numbers else [])])


def _digest(settings: Any) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
