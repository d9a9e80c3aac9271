import pytest
import torch

from benchmarks import peers
from benchmarks.peers import PEERS, weight_peers

WEIGHT = torch.nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_peer_installed_quantizes_to_at_most_the_levels_of_its_width(per_channel):
    cases = weight_peers(WEIGHT, 2, per_channel=per_channel)
    assert any(name.startswith("torch ") for name in cases)
    for case in cases.values():
        quantized = case()
        values = getattr(quantized, "value", quantized).reshape(8, -1)
        assert values.requires_grad
        assert all(len(row.unique()) <= 4 for row in values)


def test_what_is_left_out_is_said(monkeypatch, capsys):
    monkeypatch.setitem(PEERS, "no-such-package", lambda *args: None)
    monkeypatch.setitem(PEERS, "torch", lambda *args: None)
    monkeypatch.setattr(peers, "_version", lambda name: "1" if name == "torch" else None)
    assert weight_peers(WEIGHT, 2, per_channel=False) == {}
    said = capsys.readouterr().out
    assert "left out: no-such-package is not installed" in said
    assert "left out: torch has no such quantizer (bits 2, per_channel False)" in said
