"""What the pages say about files is true, and what they show of int8 runs."""

import re

import pytest
import torch

from lightning_balq import BalancedQuantizer
from lightning_balq.export import pack, unpack
from tests.export.test_deploy_compile import needs_kernels
from tests.export.zoo import assert_same_bits, quantized
from tests.helpers import ROOT, run_python

PAGE = (ROOT / "docs" / "packed_files.md").read_text()


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_numpy_example_reads_a_weight(granularity, tmp_path):
    path = tmp_path / "m.safetensors"
    pack(quantized("norms between", BalancedQuantizer(3, granularity=granularity))[0], path)
    *_, example = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"path": path, "layer": "2"}
    exec(example, names)
    assert_same_bits(torch.from_numpy(names["weight"]), unpack(path)["2.weight"])


RUN_BLOCKS = """
import os, re, sys
import torch
from torch import nn

page, folder, languages, left_out = sys.argv[1:]
blocks = re.findall(rf"^```(?:{languages})\\n(.*?)^```$", open(page).read(), flags=re.DOTALL | re.MULTILINE)
os.chdir(folder)
"""


@needs_kernels
def test_page_about_deployment_runs_from_top_to_bottom(tmp_path):
    script = """
for block in blocks:
    if left_out not in block:
        exec(block)
torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)
print(len(blocks))
"""
    page = ROOT / "docs" / "deployment.md"
    assert int(run_python(RUN_BLOCKS + script, page, tmp_path, "python|py", "onnx").splitlines()[-1]) == 7
    assert (tmp_path / "net.pt2").exists()


@needs_kernels
def test_what_the_readme_shows_of_files_and_int8_runs(tmp_path):
    script = """
from lightning_balq import BalancedQuantizer, QuantizationConfig, quantize_
from lightning_balq.nn import activation_quantizers, update_ranges_

def MyModel():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

model, images = MyModel(), torch.randn(5, 6)
quantize_(model, QuantizationConfig(BalancedQuantizer(2), activation_bits=4))
model(images)
update_ranges_(activation_quantizers(model.eval()))
for block in blocks:
    exec(block)
assert torch.equal(net(images), model(images))
torch.testing.assert_close(logits, model(images), rtol=1e-5, atol=1e-5)
assert weights["2.weight"].unique().numel() == 4
print(len(blocks))
"""
    assert run_python(RUN_BLOCKS + script, ROOT / "README.md", tmp_path, "py", "").splitlines()[-1] == "2"
