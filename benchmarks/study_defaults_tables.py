"""Tables of the study of defaults; the rule they apply is in ``README.md`` and was fixed before the study was run."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple, TypeAlias

from benchmarks.records import Record
from recipes.statistics import SIGNIFICANCE, PairedTest, holm, paired_test


class Setting(NamedTuple):
    """What a record says about how its network was quantized."""

    method: str
    scale: str | None
    center: str | None
    activation_range: str | None
    granularity: str | None

    def label(self) -> str:
        options = " / ".join(option for option in self[1:] if option is not None)
        return options if self.method == "balanced" else f"{self.method} {options}".strip()


Block: TypeAlias = tuple[str, int]  # network and seed: runs that start from the same weights
Accuracies: TypeAlias = dict[Setting, dict[Block, dict[int, float]]]


def settings_table(records: Sequence[Record]) -> str:
    """One row a setting: accuracy at each width, failures, and the paired difference to the best setting."""
    accuracies, widths = quantized(records), bits_of(records)
    tests, adjusted = against_best(accuracies)
    header = ["scale / center / range / granularity", *(f"W{bits}A{bits}" for bits in widths), "all", "worst run"]
    header += ["non-finite", "collapsed", "difference to best", "p", "p (Holm)", "qualifies"]
    rows = []
    for setting in sorted(accuracies, key=lambda setting: (setting.method, -overall(accuracies[setting]))):
        runs = [record for record in records if setting_of(record) == setting]
        failures = [sum(record[kind] for record in runs) for kind in ("non_finite", "collapsed")]
        means = [percent(fmean(block[bits] for block in accuracies[setting].values())) for bits in widths]
        row = [setting.label(), *means, percent(overall(accuracies[setting]))]
        row += [percent(min(record["test_accuracy"] for record in runs)), *map(str, failures)]
        row += _verdict(tests.get(setting), adjusted.get(setting), setting in adjusted, sum(failures))
        rows.append(row)
    return f"{markdown(header, [*rows, _float_row(records, len(widths))])}\n\n{provenance(records)}"


def _verdict(test: PairedTest | None, adjusted: float | None, candidate: bool, failures: int) -> list[str]:
    """Difference, p, adjusted p and whether the setting qualifies; a baseline has no adjusted p and cannot qualify."""
    if test is None:
        return ["best", "", "", "no" if failures else "yes"]
    shown = [difference(test), probability(test.p)]
    if not candidate:
        return [*shown, "", ""]
    worse = adjusted is not None and adjusted < SIGNIFICANCE
    return [*shown, probability(adjusted), "no" if failures or worse else "yes"]


def _float_row(records: Sequence[Record], widths: int) -> list[str]:
    runs = [record for record in records if record["method"] == "float"]
    values = [record["test_accuracy"] for record in runs]
    failures = [str(sum(record[kind] for record in runs)) for kind in ("non_finite", "collapsed")]
    return ["float", *[""] * widths, percent(fmean(values)), percent(min(values)), *failures, "", "", "", ""]


def networks_table(records: Sequence[Record]) -> str:
    """One row a setting: accuracy over all widths and seeds on each network, and the worst run there."""
    networks = sorted({record["network"] for record in records})
    settings = sorted(
        {setting_of(record) for record in records}, key=lambda setting: [option or "" for option in setting]
    )
    header = [
        "scale / center / range / granularity",
        *(f"{name}{end}" for name in networks for end in ("", ", worst run")),
    ]
    rows = []
    for setting in settings:
        row = [setting.label()]
        for name in networks:
            runs = [r["test_accuracy"] for r in records if setting_of(r) == setting and r["network"] == name]
            row += [percent(fmean(runs)), percent(min(runs))]
        rows.append(row)
    return markdown(header, rows)


def factors_table(records: Sequence[Record]) -> str:
    """One row a pair of options: their paired difference, averaged over the settings that differ in nothing else."""
    accuracies, widths = quantized(records), bits_of(records)
    effects = {name: _effect(accuracies, pairs) for name, pairs in _option_pairs(accuracies).items()}
    tests = {
        name: paired_test([fmean(values) for values in zip(*effect.values(), strict=True)])
        for name, effect in effects.items()
    }
    adjusted = holm([test.p for test in tests.values()])
    header = ["factor: options", *(f"W{bits}A{bits}" for bits in widths), "all", "p", "p (Holm)"]
    rows = []
    for (name, test), p in zip(tests.items(), adjusted, strict=True):
        row = [name, *(difference(paired_test(effects[name][bits])) for bits in widths)]
        rows.append([*row, difference(test), probability(test.p), probability(p)])
    return markdown(header, rows)


def _option_pairs(accuracies: Accuracies) -> dict[str, list[tuple[Setting, Setting]]]:
    """Balanced settings that differ in one option only, by the name of the option and its two values."""
    balanced = [setting for setting in accuracies if setting.method == "balanced"]
    pairs: dict[str, list[tuple[Setting, Setting]]] = {}
    for field in Setting._fields[1:]:
        for low, high in combinations(dict.fromkeys(getattr(setting, field) for setting in balanced), 2):
            changed = ((setting, setting._replace(**{field: high})) for setting in balanced)
            found = [pair for pair in changed if getattr(pair[0], field) == low and pair[1] in accuracies]
            if found:
                pairs[f"{field}: {high} - {low}"] = found
    return pairs


def _effect(accuracies: Accuracies, pairs: Sequence[tuple[Setting, Setting]]) -> dict[int, list[float]]:
    """Mean difference over the pairs, for each width a list over networks and seeds."""
    blocks = accuracies[pairs[0][0]]
    return {
        bits: [fmean(accuracies[b][block][bits] - accuracies[a][block][bits] for a, b in pairs) for block in blocks]
        for bits in next(iter(blocks.values()))
    }


def against_best(accuracies: Accuracies) -> tuple[dict[Setting, PairedTest], dict[Setting, float | None]]:
    """Compare every setting with the best balanced one; adjusted p of the balanced ones, which are one family."""
    balanced = [setting for setting in accuracies if setting.method == "balanced"]
    best = max(balanced, key=lambda setting: overall(accuracies[setting]))
    tests = {
        setting: paired_test(
            [fmean(blocks[block].values()) - fmean(accuracies[best][block].values()) for block in blocks]
        )
        for setting, blocks in accuracies.items()
        if setting != best
    }
    candidates = [setting for setting in tests if setting.method == "balanced"]
    return tests, dict(zip(candidates, holm([tests[setting].p for setting in candidates]), strict=True))


def quantized(records: Iterable[Record]) -> Accuracies:
    """Test accuracies of the quantized runs, by setting, network and seed, and width.

    Raises:
        ValueError: if the settings were not measured in the same runs, so that they cannot be paired.
    """
    accuracies: Accuracies = {}
    for record in records:
        if record["method"] != "float":
            blocks = accuracies.setdefault(setting_of(record), {})
            blocks.setdefault((record["network"], record["seed"]), {})[record["bits"]] = record["test_accuracy"]
    runs = {
        setting: {(block, bits) for block in blocks for bits in blocks[block]} for setting, blocks in accuracies.items()
    }
    every = set().union(*runs.values())
    for setting, found in runs.items():
        if found != every:
            raise ValueError(
                f"every setting must have the same {len(every)} runs, {setting.label()!r} has {len(found)}: "
                "complete the study with `python -m benchmarks.study_defaults`"
            )
    return accuracies


def setting_of(record: Record) -> Setting:
    return Setting(*(record[name] for name in Setting._fields))


def bits_of(records: Iterable[Record]) -> list[int]:
    return sorted({record["bits"] for record in records} - {None})


def overall(blocks: dict[Block, dict[int, float]]) -> float:
    """Mean over all runs of a setting."""
    return fmean(accuracy for block in blocks.values() for accuracy in block.values())


def provenance(records: Sequence[Record]) -> str:
    """Say what the numbers are and where they were measured; several versions are all named."""
    names = ("epochs", "device", "threads", "torch", "lightning", "lightning_balq", "commit", "sources")
    found = {name: ", ".join(sorted({str(record[name]) for record in records})) for name in names}
    pairs = len({(record["network"], record["seed"]) for record in records})
    dirty = " with changes" if any(record["dirty"] for record in records) else ""
    return (
        f"Test accuracy in percent; {len(records)} runs of {found['epochs']} epochs; the first and the last layer stay "
        f"float32. Differences: percentage points, mean ± standard error over n = {pairs} pairs. "
        f"Device: {found['device']}, threads: {found['threads']}. Versions: torch {found['torch']}, "
        f"lightning {found['lightning']}, lightning_balq {found['lightning_balq']} "
        f"(commit {found['commit'][:7]}{dirty}, sources {found['sources']})."
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def difference(test: PairedTest) -> str:
    spread = "" if test.standard_error is None else f" ± {100 * test.standard_error:.2f}"
    return f"{100 * test.mean:+.2f}{spread}"


def probability(p: float | None) -> str:
    return "not tested" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
