"""How many changes of the code the tests notice, from the records of ``python -m tests.mutation``."""

from collections import Counter
from collections.abc import Sequence

from benchmarks.records import Record


def mutation_table(records: Sequence[Record]) -> str:
    """Mutants of each file that were run, and those that survived; the last record of a mutant counts."""
    last = {record["key"]: record for record in records if record["operator"] != "unchanged"}
    counts = Counter((record["module"], record["outcome"]) for record in last.values())
    lines = ["| file | mutants run | killed | survived | score |", "| --- | ---: | ---: | ---: | ---: |"]
    modules = sorted({module for module, _ in counts})
    lines += [_row(f"`{module}`", counts[module, "killed"], counts[module, "survived"]) for module in modules]
    outcomes = Counter(record["outcome"] for record in last.values())
    lines.append(_row("all", outcomes["killed"], outcomes["survived"]))
    return "\n".join(lines)


def _row(name: str, killed: int, survived: int) -> str:
    return f"| {name} | {killed + survived} | {killed} | {survived} | {killed / (killed + survived):.0%} |"
