"""What docs/deployment.md shows of ONNX runs."""

import re

import torch

from tests.export.onnx.runtimes import run_onnx
from tests.export.zoo import quantized, run
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "deployment.md").read_text()


def test_example_writes_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *_, example = re.findall(r"^```py\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    model, arguments = quantized("linear", activation_bits=4)
    exec(example, {"model": model, "x": arguments[0]})
    assert "multiplied as int8" in capsys.readouterr().out
    # Sums of six products in another order.
    torch.testing.assert_close(run_onnx("net.onnx", arguments)[0], run(model, arguments)[0], rtol=0, atol=1e-6)
