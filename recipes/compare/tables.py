"""Tables from records, as Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from recipes.compare.cells import FLOAT
from recipes.compare.records import Record
from recipes.compare.summary import (
    Difference,
    Row,
    against_baseline,
    against_float,
    mean,
    metric_of,
    rows_of,
    settings_of,
)
from recipes.statistics import deviation, format_p

BASELINE = "uniform_mean"
NAMES = {"test_accuracy": "test accuracy %", "test_perplexity": "test perplexity", None: "nothing tested"}
FIELDS = (
    "recipe", "setting", "overrides", "device", "torch", "method", "weight_bits", "activation_bits", "metric", "n",
    "mean", "deviation", "best_validation", "diverged", "failed", "effective_bitwidth", "bytes", "overhead", "seconds",
    *[f"{other}_{field}" for other in ("float", "baseline")
      for field in ("difference", "low", "high", "n", "p", "p_holm")],
)  # fmt: skip
"""Columns of the CSV."""


def markdown_tables(records: Sequence[Record], *baselines: str) -> str:
    """One table for each recipe with its overrides, device and version of torch."""
    return "\n\n".join(markdown_table(group, *baselines) for group in settings_of(records).values())


def markdown_table(records: Sequence[Record], *baselines: str) -> str:
    """One row a method and width: metric, codes, bytes, differences; what was run stands below.

    Args:
        records: of one recipe with its overrides, one device and version of torch.
        baselines: methods to compare with besides float; ``uniform_mean`` by default.
    """
    baselines = baselines or (BASELINE,)
    rows = rows_of(records)
    compared = [against_float(rows), *(against_baseline(rows, baseline) for baseline in baselines)]
    header = ["W/A", "method", NAMES[metric_of(records)], "best validation", "effective bitwidth", "bytes", "overhead",
              *(f"against {name}" for name in (FLOAT, *baselines))]  # fmt: skip
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    lines += [[*_cells(row), *(_verdict(found.get(row.label)) for found in compared)] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n{note(records, baselines)}"


def csv_table(records: Sequence[Record], baseline: str = BASELINE) -> str:
    """All numbers of the tables, unrounded; p values before and after they are adjusted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for group in settings_of(records).values():
        rows = rows_of(group)
        found = {"float": against_float(rows), "baseline": against_baseline(rows, baseline)}
        for row in rows:
            compared = [_fields(name, differences.get(row.label)) for name, differences in found.items()]
            writer.writerow(_numbers(group, row) | compared[0] | compared[1])
    return text.getvalue()


def _cells(row: Row) -> list[str]:
    bitwidth, overheads, sizes = mean(row.values("effective_bitwidth")), row.values("overhead"), row.values("bytes")
    return [
        str(row.width), row.method, _spread(row), _mean(row.best()), "" if bitwidth is None else f"{bitwidth:.2f}",
        f"{sizes[0]:,.0f}" if sizes else "", f"{100 * median(overheads):.0f} %" if overheads else "",
    ]  # fmt: skip


def _spread(row: Row) -> str:
    values = list(row.results().values())
    notes = [str(len(values))]
    notes += [f"{row.diverged} diverged"] if row.diverged else []
    notes += [f"{len(row.failed)} failed"] if row.failed else []
    return f"{_mean(values)} ({', '.join(notes)})".strip()


def _mean(values: Sequence[float]) -> str:
    spread, center = deviation(values), mean(values)
    shown = "" if center is None else f"{center:.2f}"
    return shown if spread is None else f"{shown} ± {spread:.2f}"


def _verdict(difference: Difference | None) -> str:
    """Difference, confidence interval, adjusted p; and the words without which a difference would be misread."""
    if difference is None:
        return ""
    interval = difference.test.interval()
    shown = f"{difference.test.mean:+.2f}"
    if interval is None or difference.p is None:
        return f"{shown}, not tested (n = {difference.test.n})"
    p = format_p(difference.p)
    verdict = "" if difference.distinguishable else ", not distinguishable"
    return f"{shown} ({interval[0]:+.2f} to {interval[1]:+.2f}), p {p if p.startswith('<') else f'= {p}'}{verdict}"


def _fields(other: str, difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {}
    low, high = difference.test.interval() or (None, None)
    values = (difference.test.mean, low, high, difference.test.n, difference.test.p, difference.p)
    return dict(
        zip((f"{other}_{name}" for name in ("difference", "low", "high", "n", "p", "p_holm")), values, strict=True)
    )


def _numbers(records: Sequence[Record], row: Row) -> dict[str, Any]:
    first, values, overheads = records[0], list(row.results().values()), row.values("overhead")
    sizes = row.values("bytes")
    return {
        **{name: first[name] for name in ("recipe", "setting", "device", "torch")},
        "overrides": _overrides(first["overrides"]), "method": row.method, "weight_bits": row.width.weight_bits,
        "activation_bits": row.width.activation_bits, "metric": metric_of(records), "n": len(values),
        "mean": mean(values), "deviation": deviation(values), "best_validation": mean(row.best()),
        "diverged": row.diverged, "failed": len(row.failed),
        "effective_bitwidth": mean(row.values("effective_bitwidth")), "bytes": sizes[0] if sizes else None,
        "overhead": median(overheads) if overheads else None, "seconds": mean(row.values("seconds")),
    }  # fmt: skip


# ---- what stands below a table ---------------------------------------------------------------------------------------


def note(records: Sequence[Record], baselines: Sequence[str]) -> str:
    """Say what the numbers are, what is the same for all rows, and where they were measured."""
    finished = [record for record in records if record["status"] == "finished"]
    parts = [_what(records, finished), _float_layers(finished), _how(baselines), _where(records)]
    return " ".join(part for part in [*parts, _failures(records)] if part)


def _what(records: Sequence[Record], finished: Sequence[Record]) -> str:
    first = records[0]
    overrides = f" with {_overrides(first['overrides'])}" if first["overrides"] else ""
    title = f"Recipe `{first['recipe']}`{overrides}"
    known = next((record["configuration"] for record in finished if record["configuration"]), None)
    if known is None:
        return f"{title}."
    trainer = known["trainer"]
    length = f"{trainer['max_epochs']} epochs" if "max_epochs" in trainer else f"{trainer['max_steps']} steps"
    return f"{title}: data {_called(known['data'])}; model {_called(known['model'])}; {length}."


def _called(settings: Record) -> str:
    """A class and its arguments, as they are called."""
    given = {key: value for key, value in settings.get("init_args", {}).items() if value is not None}
    arguments = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"`{settings['class_path'].rpartition('.')[2]}({arguments})`"


def _float_layers(finished: Iterable[Record]) -> str:
    """Which layers stay float: the policy for the first and the last."""
    policies = {
        ", ".join(f"`{name}` ({reason})" for name, reason in record["float_layers"].items())
        for record in finished
        if record["method"] != FLOAT and record["float_bytes"]
    }
    if not policies:
        return ""
    return f"Layers that stay float: {' or '.join(sorted(policy or 'none' for policy in policies))}."


def _how(baselines: Sequence[str]) -> str:
    others = ", ".join(f"`{baseline}`" for baseline in baselines)
    return (
        "Mean ± deviation over seeds (their number) of the network of the last epoch, as fixed before; the best "
        "validation of all epochs stands beside it and is not compared. Bytes: all parameters, with those quantized as "
        "codes and scales. Overhead: share of a training step spent quantizing, median. Differences: paired by seed, "
        f"mean (95 % confidence interval), to float and to {others} of the same width; p of a paired t-test, "
        "adjusted for the rows of the column (Holm)."
    )


def _where(records: Sequence[Record]) -> str:
    names = ("device", "threads", "torch", "lightning", "lightning_balq", "sources")
    where = {name: ", ".join(sorted({str(record[name]) for record in records})) for name in names}
    cuda = sorted({str(record["cuda"]) for record in records if "cuda" in record})
    where["torch"] += f", CUDA {', '.join(cuda)}" if cuda else ""
    dirty = " with changes" if any(record["dirty"] for record in records) else ""
    commits = ", ".join(sorted({str(record["commit"])[:7] for record in records}))
    return (
        f"Device: {where['device']}, threads: {where['threads']}; torch {where['torch']}, lightning "
        f"{where['lightning']}, lightning_balq {where['lightning_balq']} (commit {commits}{dirty}, sources "
        f"{where['sources']})."
    )


def _failures(records: Sequence[Record]) -> str:
    failed = [f"{row.label} seed {run['seed']} ({run['error']})" for row in rows_of(records) for run in row.failed]
    return f"Failed: {'; '.join(failed)}." if failed else ""


def _overrides(changes: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changes.items())
