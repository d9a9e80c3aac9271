"""What docs/packed_files.md says about reading a file is true."""

import re

import pytest
import torch

from lightning_balq import BalancedQuantizer
from lightning_balq.export import pack, unpack
from tests.export.zoo import assert_same_bits, quantized
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "packed_files.md").read_text()


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_numpy_example_reads_a_weight(granularity, tmp_path):
    path = tmp_path / "m.safetensors"
    pack(quantized("norms between", BalancedQuantizer(3, granularity=granularity))[0], path)
    *_, example = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {"path": path, "layer": "2"}
    exec(example, names)
    assert_same_bits(torch.from_numpy(names["weight"]), unpack(path)["2.weight"])
