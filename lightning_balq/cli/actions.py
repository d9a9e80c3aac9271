"""What each action of the command does; each returns its exit status."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_balq.cli.as_json import to_json
from lightning_balq.cli.comparison import RULE, Comparison, compare, compare_exported
from lightning_balq.cli.engines import run_onnx, run_program
from lightning_balq.cli.exporting import ONNX, PROGRAM, check_suffix, write_onnx, write_program
from lightning_balq.cli.page import records_page, summary_page
from lightning_balq.cli.progress import progress
from lightning_balq.cli.records import read_records
from lightning_balq.cli.sources import (
    build_model,
    is_checkpoint,
    quantized_model,
    random_inputs,
    read_checkpoint,
    read_inputs,
)
from lightning_balq.cli.summary import Summary, of_checkpoint, of_description
from lightning_balq.cli.tables import comparison_table, deploy_table, onnx_table, summary_table
from lightning_balq.export.describe import describe
from lightning_balq.export.description import Description
from lightning_balq.export.load import apply_
from lightning_balq.export.packed import read_packed, write_packed
from lightning_balq.export.replacing import replacing

FINE, FAILED, WRONG_INPUT = 0, 1, 2


def run_inspect(options: Namespace) -> int:
    """Say what a file holds."""
    path = Path(options.file)
    _print_summary(_inspected(path, options), options, _sized(path))
    return FINE


def run_pack(options: Namespace) -> int:
    """Write a packed file."""
    path = Path(options.output)
    with progress(3) as begin:
        begin("making the model")
        model = quantized_model(options.model, options.arguments, Path(options.checkpoint))
        begin("quantizing its weights")
        description = describe(model)
        begin("writing")
        write_packed(description, path)
    _print_summary(of_description(description, "packed"), options, _sized(path))
    return FINE


def run_export(options: Namespace) -> int:
    """Write a file for an engine."""
    path = Path(options.output)
    check_suffix(path)
    given = {
        "--mode": options.mode,
        "--integer-convolutions": options.integer_convolutions,
        "--input-names": options.input_names,
        "--output-names": options.output_names,
    }
    unused = [name for name, value in given.items() if value and path.suffix == PROGRAM]
    if unused:
        raise ValueError(f"`{unused[0]}` is for files called *{ONNX}")
    if options.integer_convolutions and options.mode != "integer":
        raise ValueError("`--integer-convolutions` needs `--mode integer`")
    args, kwargs = _inputs(options)
    dynamic = _numbers(options.dynamic)
    with progress(2) as begin:
        begin("making the model")
        model = quantized_model(options.model, options.arguments, Path(options.checkpoint))
        begin("exporting")
        report: Any
        if path.suffix == PROGRAM:
            report = write_program(model, path, args, kwargs, dynamic=dynamic)
            table = deploy_table(report, _sized(path))
        else:
            report = write_onnx(
                model,
                path,
                args,
                kwargs,
                mode=options.mode or "portable",
                integer_convolutions=options.integer_convolutions,
                dynamic=dynamic,
                input_names=_names(options.input_names),
                output_names=_names(options.output_names),
            )
            table = onnx_table(report, _sized(path))
    _print(options, {**asdict(report), "path": str(path), "size": path.stat().st_size}, table)
    return FINE


def run_verify(options: Namespace) -> int:
    """Compare an exported file with its checkpoint."""
    args, kwargs = _inputs(options)
    path = Path(options.exported)
    is_engine = path.suffix in (ONNX, PROGRAM)
    with progress(3) as begin:
        begin("making the model")
        expected = quantized_model(options.model, options.arguments, Path(options.checkpoint))
        begin("running the file" if is_engine else "loading the file")
        if is_engine:
            found = run_onnx(path, args, kwargs) if path.suffix == ONNX else run_program(path, args, kwargs, expected)
            begin("comparing")
            comparison = compare_exported(expected, found, args, kwargs)
        else:
            packed = read_packed(path)
            actual = _loaded(packed, options)
            begin("comparing")
            comparison = compare(expected, actual, packed, args, kwargs)
    passed = comparison.agrees if is_engine else comparison.exact
    rule = RULE if is_engine else "nothing differs"
    _print(
        options,
        {**asdict(comparison), "exact": comparison.exact, "passed": passed, "rule": rule},
        comparison_table(comparison, "differences"),
        *_verdict(comparison, passed, rule, is_engine),
    )
    return FINE if passed else FAILED


def run_report(options: Namespace) -> int:
    """Write an HTML report."""
    source, output = Path(options.source), Path(options.output)
    if source.suffix == ".csv":
        if options.model is not None or options.arguments:
            raise ValueError("`--model` and `--arguments` are for a checkpoint, and records need none")
        page = records_page(read_records(source), source.name)
    else:
        page = summary_page(_inspected(source, options), _sized(source))
    with replacing(output) as draft:
        draft.write_text(page, encoding="utf-8")
    _print(options, {"path": str(output), "size": output.stat().st_size}, _sized(output))
    return FINE


def _inputs(options: Namespace) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if options.inputs is None:
        return random_inputs(_numbers(options.shape), options.tokens, options.seed)
    if options.tokens is not None:
        raise ValueError("`--tokens` is for random inputs, of a `--shape`")
    return read_inputs(Path(options.inputs))


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def _names(text: str | None) -> list[str] | None:
    return text.split(",") if text else None


def _loaded(packed: Description, options: Namespace) -> nn.Module:
    """The float model with a packed file in it."""
    model = build_model(options.model, options.arguments, read_checkpoint(Path(options.checkpoint)))
    try:
        apply_(packed, model)
    except ValueError as error:
        raise ValueError(f"{options.exported!r} does not fit the model: {error}") from error
    return model


def _verdict(comparison: Comparison, passed: bool, rule: str, is_engine: bool) -> list[str]:
    words = ("agrees", "DIFFERS") if is_engine else ("exact", "NOT EXACT")
    found = (
        f"outputs: median difference {comparison.median:.3g}, largest {comparison.largest:.3g} "
        f"(of {comparison.magnitude:.3g}), argmax agrees in {comparison.argmax_agreement:.2%}: {words[not passed]}"
    )
    return [*([comparison.note] if comparison.note else []), found, f"rule: {rule}"]


def _inspected(path: Path, options: Namespace) -> Summary:
    if options.arguments and options.model is None:
        raise ValueError("`--arguments` are those of `--model`, which is not given")
    if not is_checkpoint(path):
        if options.model is not None:
            raise ValueError("`--model` is for a checkpoint; a packed file says everything by itself")
        return of_description(read_packed(path), "packed")
    with progress(2) as begin:
        begin("reading")
        if options.model is not None:
            model = quantized_model(options.model, options.arguments, path)
            begin("quantizing its weights")
            return of_description(describe(model), "checkpoint")
        checkpoint = read_checkpoint(path)
        begin("quantizing its weights")
        try:
            return of_checkpoint(checkpoint)
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from error


def _print_summary(summary: Summary, options: Namespace, title: str) -> None:
    _print(options, summary.as_dict(), summary_table(summary, title))


def _print(options: Namespace, values: dict[str, Any], *parts: Table | str) -> None:
    """Print values as JSON if that is asked for, else what is for people."""
    if options.json:
        print(to_json(values))
        return
    console = Console()
    if not console.is_terminal:  # as wide as a table is, where nothing is too narrow for it
        console = Console(width=10_000)
    for part in parts:
        console.print(part, highlight=False, markup=False)


def _sized(path: Path) -> str:
    return f"{path.name}: {path.stat().st_size:,} bytes"
