"""Tables of the benchmarks of speed, from the records of their last runs."""

from collections.abc import Sequence
from itertools import groupby

from benchmarks import bench_deploy, bench_export
from benchmarks.bars import NOT_MEASURED, last_runs, select, where
from benchmarks.harness import ratio
from benchmarks.program import show
from benchmarks.records import Record

MIB = 2**20


def weights_table(records: Sequence[Record]) -> str:
    """Ratio to the compiled uniform quantizer, by case and bits."""
    if not records:
        return NOT_MEASURED
    latest = last_runs(records)
    columns = list(dict.fromkeys(_column(record) for record in latest))
    lines = [
        f"| case | {' | '.join(f'{bits} bits, {granularity}' for granularity, bits in columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for case in dict.fromkeys(record["case"] for record in latest):
        cells = [_weights_cell(latest, case, *column) for column in columns]
        lines += [f"| {case} | {' | '.join(cells)} |"]
    note = f"Times the compiled uniform quantizer, whose own row is in milliseconds. {where(latest)}"
    return "\n".join([*lines, "", note])


def _column(record: Record) -> tuple[str, int]:
    return record["parameters"]["granularity"], record["parameters"]["bits"]


def _weights_cell(records: Sequence[Record], case: str, granularity: str, bits: int) -> str:
    group = select(records, "bench_weights", granularity=granularity, bits=bits)
    found = {record["case"]: record for record in group}.get(case)
    if found is None:
        return ""
    if case == found["reference"]:
        return f"{found['seconds'][1] * 1000:.2f} ms"
    return show(ratio(group, case, found["reference"]))


def steps_table(records: Sequence[Record]) -> str:
    """Time of a training step of each network, and its ratio to float."""
    return _table_against_float(records, "network", "step, ms")


def recurrent_table(records: Sequence[Record]) -> str:
    """Time of each recurrent layer, forward and backward, and its ratio to float."""
    return _table_against_float(records, "layer", "ms")


def _table_against_float(records: Sequence[Record], parameter: str, unit: str) -> str:
    if not records:
        return NOT_MEASURED
    latest = last_runs(records)
    lines = [f"| {parameter} | case | {unit} | against float | n |", "| --- | --- | ---: | ---: | ---: |"]
    for group in _groups(latest):
        for record in group:
            against = show(ratio(group, record["case"], record["reference"]), 3)
            milliseconds = f"{record['seconds'][1] * 1000:.1f}"
            lines.append(
                f"| {record['parameters'][parameter]} | {record['case']} | {milliseconds} | {against} | {record['n']} |"
            )
    return "\n".join([*lines, "", where(latest)])


def deploy_table(records: Sequence[Record]) -> str:
    """Time of an image through each network, and how many times as fast as float that is."""
    if not records:
        return NOT_MEASURED
    latest = last_runs(records)
    bases = (bench_deploy.REFERENCE, bench_deploy.COMPILED, bench_deploy.RUNTIME)
    lines = [
        f"| network | threads | case | ms | {' | '.join(f'times as fast as {base}' for base in bases)} | n |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in _groups(latest):
        present = {record["case"] for record in group}
        for record in group:
            faster = [show(ratio(group, base, record["case"])) if base in present else "" for base in bases]
            parameters, milliseconds = record["parameters"], f"{record['seconds'][1] * 1000:.1f}"
            cells = [parameters["network"], parameters["threads"], record["case"], milliseconds, *faster]
            lines.append(f"| {' | '.join(map(str, [*cells, record['n']]))} |")
    first = latest[0]["parameters"]
    return "\n".join([*lines, "", f"{first['int8_layers']} layers in int8; {first['instructions']}. {where(latest)}"])


def export_table(records: Sequence[Record]) -> str:
    """Time of a layer in ONNX Runtime, by the form it was exported in, with the size of the file and its error."""
    if not records:
        return NOT_MEASURED
    latest = last_runs(records)
    lines = [
        "| layer | threads | case | ms | times as fast as float | kB | largest error | n |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in _groups(latest):
        for record in group:
            error = f"{record['error']['largest']:.0e}" if "error" in record else ""
            cells = [
                record["parameters"]["layer"],
                record["parameters"]["threads"],
                record["case"],
                f"{record['seconds'][1] * 1000:.2f}",
                show(ratio(group, bench_export.REFERENCE, record["case"])),
                f"{record['file_bytes'] / 1000:,.0f}" if "file_bytes" in record else "",
                error,
            ]
            lines.append(f"| {' | '.join(map(str, [*cells, record['n']]))} |")
    return "\n".join([*lines, "", f"Weights and activations of {bench_export.BITS} bits. {where(latest)}"])


def activations_table(records: Sequence[Record]) -> str:
    """Time, peak memory and what is kept for the backward, by layer, bits and case."""
    if not records:
        return NOT_MEASURED
    latest = last_runs(records)
    lines = [
        "| input of | bits | case | ms | against the reference | peak, MiB | kept for the backward, MiB |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for group in _groups(latest):
        for record in group:
            cells = (
                f"{record['parameters']['layer']}, {record['parameters']['values'] / 1e6:.1f} million",
                record["parameters"]["bits"],
                record["case"],
                f"{record['seconds'][1] * 1000:.2f}",
                show(ratio(group, record["case"], record["reference"])),
                f"{record['peak_bytes'] / MIB:.1f}",
                f"{record['kept_bytes'] / MIB:.1f}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", where(latest)])


def _groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records that were measured in the same rounds, which follow each other."""
    return [list(group) for _, group in groupby(records, key=lambda record: record["parameters"])]
