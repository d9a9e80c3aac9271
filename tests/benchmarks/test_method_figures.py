from statistics import NormalDist

import pytest

from benchmarks.figures import digest, drawn_digest
from benchmarks.method_figures import FIGURES, Bin, bitwidths, partitions, update, weights_of


def test_committed_pictures_show_what_the_quantizers_do():
    assert update(check=True) == []


def test_weights_are_quantiles():
    weights = weights_of("Gaussian")
    assert weights[len(weights) // 4].item() == pytest.approx(NormalDist().inv_cdf(0.25), abs=1e-4)
    assert weights.mean().item() == pytest.approx(0, abs=1e-5)


def test_partitions_are_those_of_a_gaussian():
    # Means of the halves of a Gaussian are at +-0.798, quartiles at +-0.674; the outermost level is the largest weight.
    uniform, _, mean, median = partitions()
    largest = weights_of("Gaussian")[-1].item()
    for partition, threshold in ((uniform, 2 / 3 * largest), (mean, 0.798), (median, 0.674)):
        assert [found.low for found in partition.bins[1:]] == pytest.approx([-threshold, 0, threshold], abs=2e-3)
        assert partition.bins[3].level == pytest.approx(largest, abs=1e-3)
    assert [found.share for found in median.bins] == [0.25] * 4
    assert isinstance(mean.bins[0], Bin) and mean.bins[0].share == pytest.approx(0.2125, abs=1e-3)


def test_the_median_uses_all_bits_and_the_largest_weight_leaves_most_unused():
    for panel in bitwidths():
        assert panel.curves["balanced, median center"] == panel.bits
        assert panel.curves["uniform, max scale"][1] < 1.1


def test_a_picture_that_is_missing_is_found_and_drawn_with_its_digest(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.method_figures.FIGURES", {"staircases": FIGURES["staircases"]})
    path = tmp_path / "staircases.svg"
    assert update(tmp_path, check=True) == [path]
    assert not path.exists()
    assert update(tmp_path) == [path]
    assert update(tmp_path, check=True) == []
    assert drawn_digest(path) == digest(partitions())
