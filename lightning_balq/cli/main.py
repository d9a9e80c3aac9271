"""The command line of ``balq``."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_balq import __version__
from lightning_balq.cli.comparison import compare
from lightning_balq.cli.sources import (
    build_model,
    is_checkpoint,
    parse_arguments,
    quantized_model,
    random_inputs,
    read_checkpoint,
    read_inputs,
)
from lightning_balq.cli.summary import Summary, of_checkpoint, of_description
from lightning_balq.cli.tables import comparison_table, printable, summary_table
from lightning_balq.export.describe import describe
from lightning_balq.export.load import apply_
from lightning_balq.export.packed import read_packed, write_packed

FINE, FAILED, WRONG_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit status: 0, 1 if a check failed, 2 for wrong input.
    """
    options = parse(arguments)
    actions = {"inspect": run_inspect, "pack": run_pack, "verify": run_verify}
    try:
        return actions[options.action](options)
    except (OSError, ValueError, ImportError) as error:
        print(f"balq {options.action}: error: {printable(str(error))}", file=sys.stderr)
        return WRONG_INPUT


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; the program ends with status 2 if it cannot be understood."""
    parser = argparse.ArgumentParser(prog="balq", description="Low-bit networks of lightning_balq as files.")
    parser.add_argument("--version", action="version", version=f"balq {__version__}")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    inspect = actions.add_parser("inspect", help="say what a checkpoint or a packed file holds")
    inspect.add_argument("file", type=Path, help="checkpoint of Lightning, or packed file")
    _add_model(inspect, required=False)

    pack = actions.add_parser("pack", help="write a packed file from a checkpoint")
    pack.add_argument("checkpoint", type=Path, help="checkpoint of Lightning")
    pack.add_argument("output", type=Path, help="file to write, such as net.safetensors; an existing one is replaced")
    _add_model(pack, required=True)

    verify = actions.add_parser("verify", help="compare a packed file with the checkpoint it was made from")
    verify.add_argument("packed", type=Path, help="packed file")
    verify.add_argument("checkpoint", type=Path, help="checkpoint of Lightning")
    _add_model(verify, required=True)
    inputs = verify.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--inputs", type=Path, metavar="FILE", help=".pt or .npy: a tensor, or a tuple or dict of them")
    inputs.add_argument("--shape", type=_shape, metavar="N,N,..", help="shape of random inputs, such as 8,3,32,32")
    verify.add_argument("--tokens", type=_positive, metavar="N", help="random inputs are integers below N")
    verify.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs (default: %(default)s)")

    for each in (inspect, pack, verify):
        each.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def run_inspect(options: argparse.Namespace) -> int:
    """Say what a file holds."""
    _print_summary(_inspected(options), options, f"{options.file.name}: {options.file.stat().st_size:,} bytes")
    return FINE


def run_pack(options: argparse.Namespace) -> int:
    """Write a packed file."""
    with _busy("packing"):
        description = describe(quantized_model(options.model, options.arguments, options.checkpoint))
        write_packed(description, options.output)
    size = options.output.stat().st_size
    _print_summary(of_description(description, "packed"), options, f"{options.output.name}: {size:,} bytes")
    return FINE


def run_verify(options: argparse.Namespace) -> int:
    """Compare a packed file with its checkpoint."""
    if options.inputs is not None:
        if options.tokens is not None:
            raise ValueError("`--tokens` is for random inputs, of a `--shape`")
        args, kwargs = read_inputs(options.inputs)
    else:
        args, kwargs = random_inputs(options.shape, options.tokens, options.seed)
    with _busy("comparing"):
        packed = read_packed(options.packed)
        expected = quantized_model(options.model, options.arguments, options.checkpoint)
        actual = build_model(options.model, options.arguments, read_checkpoint(options.checkpoint))
        try:
            apply_(packed, actual)
        except ValueError as error:
            raise ValueError(f"{str(options.packed)!r} does not fit the model: {error}") from error
        comparison = compare(expected, actual, packed, args, kwargs)
    if options.json:
        print(json.dumps({**asdict(comparison), "exact": comparison.exact}))
    else:
        console = _console()
        console.print(comparison_table(comparison, "largest differences"))
        console.print(
            f"outputs: median difference {comparison.median:.3g}, largest {comparison.largest:.3g}, argmax agrees in "
            f"{comparison.argmax_agreement:.2%}: {'exact' if comparison.exact else 'NOT EXACT'}",
            highlight=False,
        )
    return FINE if comparison.exact else FAILED


def _inspected(options: argparse.Namespace) -> Summary:
    if options.arguments and options.model is None:
        raise ValueError("`--arguments` are those of `--model`, which is not given")
    if not is_checkpoint(options.file):
        if options.model is not None:
            raise ValueError("`--model` is for a checkpoint; a packed file says everything by itself")
        return of_description(read_packed(options.file), "packed")
    with _busy("reading"):
        if options.model is not None:
            model = quantized_model(options.model, options.arguments, options.file)
            return of_description(describe(model), "checkpoint")
        try:
            return of_checkpoint(read_checkpoint(options.file))
        except ValueError as error:
            raise ValueError(f"{str(options.file)!r}: {error}") from error


def _print_summary(summary: Summary, options: argparse.Namespace, title: str) -> None:
    if options.json:
        totals = {"total_bytes": summary.total_bytes, "effective_bitwidth": summary.effective_bitwidth}
        print(json.dumps({**asdict(summary), **totals}))
    else:
        _console().print(summary_table(summary, title))


def _console() -> Console:
    """Standard output; as wide as a table is, where no terminal is there to be too narrow for it."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def _busy(text: str) -> Any:
    """Show that something is under way, where somebody looks."""
    return Console(stderr=True).status(text)


def _add_model(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--model",
        required=required,
        metavar="MODULE:NAME",
        help="class or function that makes the float model; a LightningModule gets its saved hyper-parameters",
    )
    parser.add_argument(
        "--arguments", type=_arguments, default={}, metavar="JSON", help="arguments of its call, as a JSON object"
    )


def _arguments(text: str) -> dict[str, Any]:
    try:
        return parse_arguments(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _shape(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))
