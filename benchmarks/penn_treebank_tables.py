"""Tables of the study of the Penn Treebank."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from benchmarks.penn_treebank_cells import FLOAT, METHODS, SETTINGS, WIDTHS
from benchmarks.records import Record
from benchmarks.study_defaults_tables import markdown, probability
from recipes.statistics import paired_test

NOT_MEASURED = "No records yet. Measure: `python -m benchmarks.penn_treebank --path FOLDER`."
REFERENCE = "uniform_mean"
"""The method that others are compared with besides float: the stronger of the two baselines."""

ENOUGH = 3
"""Pairs from which on a test is made."""

LABELS = {
    FLOAT: "float", "balanced_mean": "balanced, mean center", "balanced_median": "balanced, median center",
    "uniform_mean": "uniform, mean scale", "uniform_max": "uniform, max scale",
}  # fmt: skip
NETWORKS = {"lstm": "LSTM", "gru": "GRU"}


@dataclass(frozen=True)
class Row:
    """The runs of one method at one width: their records by seed."""

    network: str
    width: str
    method: str
    runs: dict[int, Record]

    def values(self, field: str) -> list[float]:
        """A field of all runs that have it."""
        return [run[field] for run in self.runs.values() if run[field] is not None]

    def perplexities(self) -> dict[int, float]:
        """Test perplexity by seed, where there is one."""
        return {seed: run["test_perplexity"] for seed, run in self.runs.items() if run["test_perplexity"] is not None}


def penn_treebank_table(records: Sequence[Record]) -> str:
    """One table for each setting, device and version of torch: perplexities, bitwidth, differences."""
    if not records:
        return NOT_MEASURED
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record["setting"], record["device"], record["torch"]), []).append(record)
    order = sorted(groups, key=lambda group: (list(SETTINGS).index(group[0]), group[1:]))
    return "\n\n".join(_group_table(groups[group]) for group in reversed(order))


def _group_table(records: Sequence[Record]) -> str:
    rows = rows_of(records)
    header = ["network", "width", "method", "test perplexity", "validation perplexity", "effective bitwidth"]
    header += ["difference to float", f"difference to {LABELS[REFERENCE]}"]
    lines = [_cells(row, rows) for row in rows]
    return f"{markdown(header, lines)}\n\n{note(records)}"


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    best = {seed: min(filter(None, run["validation_perplexity"]), default=None) for seed, run in row.runs.items()}
    validation = [value for value in best.values() if value is not None]
    bitwidths = row.values("effective_bitwidth")
    float_row, reference = find(rows, row.network, FLOAT, FLOAT), find(rows, row.network, row.width, REFERENCE)
    return [
        NETWORKS[row.network], row.width, LABELS[row.method], spread(list(row.perplexities().values()), row),
        spread(validation, row), f"{fmean(bitwidths):.2f}" if bitwidths else "",
        difference(row, float_row), difference(row, reference),
    ]  # fmt: skip


def spread(values: Sequence[float], row: Row) -> str:
    """Mean, deviation and number of runs, and how many of them failed."""
    failed = sum(run["diverged"] or run["test_perplexity"] is None for run in row.runs.values())
    failure = f", {failed} diverged" if failed else ""
    if not values:
        return f"none ({len(row.runs)}{failure})"
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{deviation} ({len(values)}{failure})"


def difference(row: Row, other: Row | None) -> str:
    """Difference in test perplexity, paired by seed; with a test if there are enough pairs, else with the spread."""
    if other is None or other.method == row.method:
        return ""
    ours, theirs = row.perplexities(), other.perplexities()
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        return ""
    if len(differences) >= ENOUGH:
        test = paired_test(differences)
        return f"{test.mean:+.1f} ± {stdev(differences):.1f} ({_p(test.p)}, n = {test.n})"
    if len(differences) > 1:
        return f"{fmean(differences):+.1f} ({', '.join(f'{value:+.1f}' for value in differences)})"
    return f"{differences[0]:+.1f}"


def _p(value: float | None) -> str:
    shown = probability(value)
    return shown if value is None else f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Group records into rows, in the order of the study."""
    found: dict[tuple[str, str, str], dict[int, Record]] = {}
    for record in records:
        found.setdefault((record["network"], record["width"], record["method"]), {})[record["seed"]] = record
    rows = [Row(*key, dict(sorted(runs.items()))) for key, runs in found.items()]
    places = [list(NETWORKS), list(WIDTHS), list(METHODS)]
    return sorted(
        rows, key=lambda row: [p.index(v) for p, v in zip(places, (row.network, row.width, row.method), strict=True)]
    )


def find(rows: Iterable[Row], network: str, width: str, method: str) -> Row | None:
    """The row with these values, if it was measured."""
    return next((row for row in rows if (row.network, row.width, row.method) == (network, width, method)), None)


def note(records: Sequence[Record]) -> str:
    """Say what the numbers are and where they were measured."""
    return f"{_training(records[0]['setting'], records[0]['numbers'])} {_place(records)}"


def _training(setting: str, numbers: Record) -> str:
    start = (
        "start from the float network of their seed and train as long again"
        if numbers["from_float"]
        else "are trained from scratch"
    )
    epochs = "1 epoch" if numbers["epochs"] == 1 else f"{numbers['epochs']} epochs"
    optimizer = {"sgd": "SGD", "adam": "Adam"}[numbers["optimizer"]]
    decays = "when the validation does not improve"
    if numbers["milestones"] is not None:
        decays = f"after epoch {', '.join(map(str, numbers['milestones']))}"
    scales = {"per_tensor": "one scale each", "per_channel": "a scale for each row"}[numbers["granularity"]]
    ranges = {"unit": "in [-1, 1]", "observed": "in the range that training batches show"}[numbers["activation_range"]]
    return (
        f"Setting `{setting}`: Penn Treebank, {100 * numbers['train_share']:g} % of the training text, whole "
        f"validation and test text read in {numbers['eval_batch_size']} columns; {epochs}, batch "
        f"{numbers['batch_size']}, {numbers['steps']} steps, dropout {numbers['dropout']:g}, {optimizer} from "
        f"{numbers['learning_rate']:g}, divided by {numbers['decay']:g} {decays}, gradient "
        f"norm {numbers['gradient_clip']:g}. Quantized networks {start}, with weights clipped to "
        f"±{numbers['weight_clip']:g}; embedding, recurrent and softmax weights are quantized, with {scales}; "
        f"activations {ranges}; biases "
        "and cell states stay float. Mean ± deviation over seeds (their number) of the network with the best "
        "validation; differences are paired by seed."
    )


def _place(records: Sequence[Record]) -> str:
    names = ("device", "threads", "torch", "lightning", "lightning_balq", "sources")
    where = {name: ", ".join(sorted({str(record[name]) for record in records})) for name in names}
    commits = ", ".join(sorted({str(record["commit"])[:7] for record in records}))
    seconds = [record["step_seconds"] for record in records if record["method"] == FLOAT and record["step_seconds"]]
    step = f" A float step takes {fmean(seconds):.3f} s." if seconds else ""
    return (
        f"Device: {where['device']}, threads: {where['threads']}; torch {where['torch']}, lightning "
        f"{where['lightning']}, lightning_balq {where['lightning_balq']} (commit {commits}, sources "
        f"{where['sources']}).{step} Repeat: `python -m benchmarks.penn_treebank --path FOLDER --setting "
        f"{records[0]['setting']}`."
    )
