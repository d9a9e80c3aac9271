"""Tables of what was measured on a GPU, which ``benchmarks.make_tables`` writes into documents."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from benchmarks.bars import where
from benchmarks.gpu.published import published_table
from benchmarks.gpu.study import Study
from benchmarks.harness import ratio
from benchmarks.program import show
from benchmarks.records import Record
from benchmarks.study_defaults_tables import markdown
from recipes.compare.summary import settings_of
from recipes.compare.tables import markdown_table

NOT_MEASURED = "No records yet. Measure: `python -m benchmarks.gpu --data-root FOLDER --results FOLDER`."
GIB = 2**30
SHOWN_KERNELS = 8


def study_table(study: Study, records: Sequence[Record]) -> str:
    """One table for each recipe, device and version of torch, and what others report beside ours."""
    found = study.of(records)
    tables = [markdown_table(group, *study.baselines) for group in settings_of(found).values()]
    by_device: dict[tuple[str, str], list[Record]] = {}
    for record in found:
        by_device.setdefault((record["device"], record["torch"]), []).append(record)
    tables += [published_table(study, group) for group in by_device.values()] or [published_table(study, [])]
    return "\n\n".join(table for table in [*([] if found else [NOT_MEASURED]), *tables] if table)


def cost_table(records: Sequence[Record]) -> str:
    """Quantizers alone, training steps, recurrent layers, and the kernels that take longest."""
    groups = _latest(records)
    latest = [group for group in groups if "error" not in group[0]]
    failed = [
        f"{group[0]['bench']}, {group[0]['group']} ({group[0]['error']})" for group in groups if "error" in group[0]
    ]
    if not groups:
        return NOT_MEASURED
    tables = [make([group for group in latest if group[0]["bench"] == bench]) for bench, make in PARTS.items()]
    below = [where([group[0] for group in groups]), *([f"Failed: {'; '.join(failed)}."] if failed else [])]
    return "\n\n".join([*(table for table in tables if table), *below])


def quantizers_table(groups: Sequence[list[Record]]) -> str:
    """Time of quantizing all weights, against a copy and against the least that memory allows; launches."""
    header = ["weights of", "bits", "case", "ms", "times a copy", "times the floor", "launches", "n"]
    rows = []
    for group in groups:
        for record in group:
            times = ratio(group, record["case"], record["reference"])
            floor = "" if record["floor"] is None else f"{times.median / record['floor']:.2f}"
            given = record["parameters"]
            rows.append([given["model"], given["bits"], record["case"], f"{1000 * record['seconds'][1]:.3f}",
                         show(times), floor, record["launches"], record["n"]])  # fmt: skip
    return _table(header, rows)


def steps_table(groups: Sequence[list[Record]]) -> str:
    """Time of a training step, images per second and memory."""
    header = ["network", "", "case", "ms", "against float", "images a second", "peak, GiB", "n"]
    rows = []
    for group in groups:
        for record in group:
            given, peak = record["parameters"], record["peak_allocated"]
            rows.append([f"{given['network']}, batch {given['batch']}", "compiled" if given["compiled"] else "eager",
                         record["case"], f"{1000 * record['seconds'][1]:.1f}",
                         show(ratio(group, record["case"], record["reference"]), 3),
                         f"{record['images_per_second']:,.0f}", "" if peak is None else f"{peak / GIB:.2f}",
                         record["n"]])  # fmt: skip
    return _table(header, rows)


def recurrent_table(groups: Sequence[list[Record]]) -> str:
    """Time of a recurrent layer, forward and backward, against that of cuDNN."""
    rows = [
        [record["parameters"]["layer"], record["case"], f"{1000 * record['seconds'][1]:.2f}",
         show(ratio(layer, record["case"], record["reference"])), record["n"]]
        for group in groups
        for _, part in groupby(group, key=lambda record: record["parameters"]["layer"])
        for layer in [list(part)]
        for record in layer
    ]  # fmt: skip
    return _table(["layer", "case", "ms", "against float", "n"], rows)


def kernels_table(groups: Sequence[list[Record]]) -> str:
    """The kernels that take longest in a quantized step, with their share of it."""
    rows = []
    for (record,) in groups:
        total = sum(kernel["seconds"] for kernel in record["kernels"])
        for kernel in record["kernels"][:SHOWN_KERNELS]:
            share = f"{100 * kernel['seconds'] / total:.1f} %"
            rows.append([record["parameters"]["network"], f"`{kernel['name']}`", kernel["calls"], share])
    return _table(["network", "kernel", "calls", "share of a step"], rows)


PARTS = {
    "gpu_quantizers": quantizers_table, "gpu_steps": steps_table, "bench_recurrent": recurrent_table,
    "gpu_kernels": kernels_table,
}  # fmt: skip


def _table(header: list[str], rows: list[list[Any]]) -> str:
    texts = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return markdown(header, texts) if rows else ""


def _latest(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each group of cases as measured last, by device and version of torch."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = (record["device"], record["torch"], record["bench"], record["group"])
        known = groups.setdefault(key, [])
        if known and known[0]["run"] != record["run"]:
            known.clear()
        known.append(record)
    return list(groups.values())
