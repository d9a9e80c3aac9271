"""The command line of ``balq``."""

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt, restricted_string_type

from lightning_balq import __version__
from lightning_balq.cli.actions import WRONG_INPUT, run_export, run_inspect, run_pack, run_report, run_verify
from lightning_balq.cli.tables import printable
from lightning_balq.export.onnx.plan import Mode

ACTIONS = {
    "inspect": run_inspect,
    "pack": run_pack,
    "export": run_export,
    "verify": run_verify,
    "report": run_report,
}

Shape = restricted_string_type("Shape", r"^[1-9]\d*(,[1-9]\d*)*$", "positive numbers, separated by commas")
Axes = restricted_string_type("Axes", r"^\d+(,\d+)*$", "dimensions counted from 0, separated by commas")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The exit status: 0, 1 if a check failed, 2 for wrong input.
    """
    action, options = parse(arguments)
    try:
        return ACTIONS[action](options)
    except (OSError, ValueError, ImportError) as error:
        print(f"balq {action}: error: {printable(str(error))}", file=sys.stderr)
        return WRONG_INPUT


def parse(arguments: Sequence[str] | None) -> tuple[str, Namespace]:
    """Read the command line: the action and its options. The program ends with status 2 if it cannot be understood."""
    parser = ArgumentParser(
        prog="balq", description="Low-bit networks of lightning_balq as files.", version=__version__
    )
    actions = parser.add_subcommands(dest="action", metavar="ACTION")

    inspect = _action("say what a checkpoint or a packed file holds")
    inspect.add_argument("file", type=str, help="checkpoint of Lightning, or packed file")
    _add_model(inspect, required=False)

    pack = _action("write a packed file from a checkpoint")
    pack.add_argument("checkpoint", type=str, help="checkpoint of Lightning")
    pack.add_argument("output", type=str, help="file to write, such as net.safetensors; an existing one is replaced")
    _add_model(pack, required=True)

    export = _action("write a file for ONNX Runtime or torch.export from a checkpoint")
    export.add_argument("checkpoint", type=str, help="checkpoint of Lightning")
    export.add_argument("output", type=str, help="*.onnx or *.pt2, the deploy model; an existing one is replaced")
    _add_model(export, required=True)
    _add_inputs(export, "their shapes are those of the file")
    export.add_argument("--dynamic", type=Axes, metavar="N,N,..", help="free dimensions of every input")
    export.add_argument("--mode", type=Mode, help="products of floats or of integers, in *.onnx; portable if not given")
    export.add_argument("--integer-convolutions", action="store_true", help="in integer mode, also in convolutions")
    export.add_argument("--input-names", type=str, metavar="NAME,..", help="of the inputs in *.onnx")
    export.add_argument("--output-names", type=str, metavar="NAME,..", help="of the outputs in *.onnx")

    verify = _action("compare an exported file with the checkpoint it was made from")
    verify.add_argument("exported", type=str, help="*.onnx, *.pt2 (which torch can execute code from), or packed file")
    verify.add_argument("checkpoint", type=str, help="checkpoint of Lightning")
    _add_model(verify, required=True)
    _add_inputs(verify, "of the shapes that the file takes")

    report = _action("write an HTML page on a checkpoint, a packed file or records")
    report.add_argument("source", type=str, help="checkpoint, packed file, or metrics.csv of Lightning's CSVLogger")
    report.add_argument("-o", "--output", type=str, required=True, help="file to write; an existing one is replaced")
    _add_model(report, required=False)

    for name, each in (
        ("inspect", inspect),
        ("pack", pack),
        ("export", export),
        ("verify", verify),
        ("report", report),
    ):
        each.add_argument("--json", action="store_true", help="print JSON instead of tables")
        actions.add_subcommand(name, each, help=each.description)
    found = parser.parse_args(arguments)
    return found.action, found[found.action]


def _action(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", action="config", help="YAML file of these options")
    return parser


def _add_model(parser: ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--model",
        type=str,
        required=required,
        metavar="MODULE:NAME",
        help="class or function that makes the float model; a LightningModule gets its saved hyper-parameters",
    )
    parser.add_argument(
        "--arguments", type=dict[str, Any], default={}, metavar="JSON", help="arguments of its call, as a JSON object"
    )


def _add_inputs(parser: ArgumentParser, meaning: str) -> None:
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--inputs", type=str, metavar="FILE", help=f".pt or .npy: a tensor, or a tuple or dict of them, {meaning}"
    )
    inputs.add_argument("--shape", type=Shape, metavar="N,N,..", help="shape of random inputs, such as 8,3,32,32")
    parser.add_argument("--tokens", type=PositiveInt, metavar="N", help="random inputs are integers below N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random inputs")
