"""The command line of ``balq``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_balq import __version__
from lightning_balq.cli.actions import WRONG_INPUT, run_export, run_inspect, run_pack, run_report, run_verify
from lightning_balq.cli.sources import parse_arguments
from lightning_balq.cli.tables import printable
from lightning_balq.export.onnx.plan import MODES

ACTIONS = {
    "inspect": run_inspect,
    "pack": run_pack,
    "export": run_export,
    "verify": run_verify,
    "report": run_report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit status: 0, 1 if a check failed, 2 for wrong input.
    """
    options = parse(arguments)
    try:
        return ACTIONS[options.action](options)
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

    export = actions.add_parser("export", help="write a file for ONNX Runtime or torch.export from a checkpoint")
    export.add_argument("checkpoint", type=Path, help="checkpoint of Lightning")
    export.add_argument("output", type=Path, help="*.onnx or *.pt2, the deploy model; an existing one is replaced")
    _add_model(export, required=True)
    _add_inputs(export, "their shapes are those of the file")
    export.add_argument("--dynamic", type=_axes, default=(), metavar="N,N,..", help="free dimensions of every input")
    export.add_argument(
        "--mode", choices=MODES, help="products of floats or of integers, in *.onnx (default: portable)"
    )
    export.add_argument("--integer-convolutions", action="store_true", help="in integer mode, also in convolutions")
    export.add_argument("--input-names", type=_names, metavar="NAME,..", help="of the inputs in *.onnx")
    export.add_argument("--output-names", type=_names, metavar="NAME,..", help="of the outputs in *.onnx")

    verify = actions.add_parser("verify", help="compare an exported file with the checkpoint it was made from")
    verify.add_argument("exported", type=Path, help="*.onnx, *.pt2 (which torch can execute code from), or packed file")
    verify.add_argument("checkpoint", type=Path, help="checkpoint of Lightning")
    _add_model(verify, required=True)
    _add_inputs(verify, "of the shapes that the file takes")

    report = actions.add_parser("report", help="write an HTML page on a checkpoint, a packed file or records")
    report.add_argument("source", type=Path, help="checkpoint, packed file, or metrics.csv of Lightning's CSVLogger")
    report.add_argument("-o", "--output", type=Path, required=True, help="file to write; an existing one is replaced")
    _add_model(report, required=False)

    for each in (inspect, pack, export, verify, report):
        each.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


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


def _add_inputs(parser: argparse.ArgumentParser, meaning: str) -> None:
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--inputs", type=Path, metavar="FILE", help=f".pt or .npy: a tensor, or a tuple or dict of them, {meaning}"
    )
    inputs.add_argument("--shape", type=_shape, metavar="N,N,..", help="shape of random inputs, such as 8,3,32,32")
    parser.add_argument("--tokens", type=_positive, metavar="N", help="random inputs are integers below N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs (default: %(default)s)")


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


def _axes(text: str) -> tuple[int, ...]:
    axes = tuple(int(part) for part in text.split(","))
    if min(axes) < 0:
        raise argparse.ArgumentTypeError(f"expected dimensions, counted from 0, got {text}")
    return axes


def _names(text: str) -> list[str]:
    return text.split(",")
