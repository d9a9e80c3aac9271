import pytest
import torch

from benchmarks import bench_activations
from benchmarks.bench_activations import BITS, REFERENCE, quantizers, run
from benchmarks.program import Options


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_way_is_measured_with_what_it_keeps_for_the_backward(monkeypatch):
    monkeypatch.setattr(bench_activations, "SHAPES", {"small": (2, 500)})
    monkeypatch.setattr(bench_activations, "BITS", (2,))
    groups = list(run(Options(torch.device("cpu"), 1)))
    assert [group[0]["parameters"]["bits"] for group in groups] == [2]
    kept = {record["case"]: record["kept_bytes"] for record in groups[0]}
    assert kept[REFERENCE] == 1000  # a mask of one byte a value
    assert kept["op by op"] > 4000


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_way_gives_at_most_the_levels_of_its_width(bits):
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for forward in quantizers(x, bits).values():
        assert len(forward(x).unique()) <= 2**bits
