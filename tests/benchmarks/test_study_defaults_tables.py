import pytest

from benchmarks.study_defaults import Setting
from benchmarks.study_defaults_tables import factors_table, networks_table, settings_table
from tests.benchmarks.study import cells, record


def test_settings_table_holds_the_numbers_computed_by_hand(records):
    rows = cells(settings_table(records))
    best, worse = rows["max / mean / unit / per_tensor"], rows["max / median / unit / per_tensor"]
    assert best == ["70.0", "90.0", "80.0", "60.0", "0", "0", "best", "", "", "yes"]
    # differences -0.2 and -0.2: mean -0.2, no spread
    assert worse == ["55.0", "65.0", "60.0", "40.0", "1", "1", "-20.00 ± 0.00", "<0.001", "<0.001", "no"]
    assert rows["float"] == ["", "", "96.0", "95.0", "0", "0", "", "", "", ""]


def test_a_setting_qualifies_unless_it_fails_or_is_significantly_worse(records):
    for line in records:
        line |= {"collapsed": False, "non_finite": False}
    # differences -0.2 and -0.1: mean -0.15, standard error 0.05, t = 3 with one degree of freedom, so that
    # p = 1 - 2 atan(3) / pi
    records[-1]["test_accuracy"] = 0.9
    assert cells(settings_table(records))["max / median / unit / per_tensor"][-4:] == [
        "-15.00 ± 5.00", "0.205", "0.205", "yes",
    ]  # fmt: skip
    records[-1]["collapsed"] = True
    assert cells(settings_table(records))["max / median / unit / per_tensor"][-1] == "no"


def test_a_baseline_is_compared_but_neither_adjusted_for_nor_qualified(records):
    uniform = Setting("uniform", "max", None, "unit", "per_tensor")
    for seed, accuracies in enumerate([(0.8, 0.9), (0.6, 0.7)]):
        records += [record(uniform, bits, seed, accuracy) for bits, accuracy in enumerate(accuracies, start=1)]
    rows = cells(settings_table(records))
    assert rows["uniform max / unit / per_tensor"][-4:] == ["-5.00 ± 5.00", "0.500", "", ""]
    assert rows["max / median / unit / per_tensor"][-2] == "<0.001"


def test_factors_table_holds_the_numbers_computed_by_hand(records):
    # 1 bit: -0.1 and -0.2; 2 bits: -0.3 and -0.2; over both -0.2 and -0.2
    assert cells(factors_table(records))["center: median - mean"] == [
        "-15.00 ± 5.00", "-25.00 ± 5.00", "-20.00 ± 0.00", "<0.001", "<0.001",
    ]  # fmt: skip


def test_networks_table_holds_means_and_worst_runs(records):
    rows = cells(networks_table(records))
    assert rows["max / mean / unit / per_tensor"] == ["80.0", "60.0"]
    assert rows["float"] == ["96.0", "95.0"]


def test_a_table_of_an_unfinished_study_is_refused(records):
    with pytest.raises(ValueError, match="same 4 runs, 'max / median / unit / per_tensor' has 3"):
        settings_table(records[:-1])
