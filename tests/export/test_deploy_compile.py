"""Deploy models become files, and compiled code that runs every integer layer in an int8 kernel."""

import re
import sys
import types
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch._inductor.fx_passes import quantization

from lightning_balq import BalancedQuantizer, quantize_
from lightning_balq.export import compile_deploy, deploy_report, enable_int8_kernels, to_deploy
from lightning_balq.nn import QuantizationConfig
from recipes.models.resnet import resnet18
from tests.export.zoo import assert_same_bits, observe, run
from tests.helpers import everything, randn, run_python

HAS_KERNELS = hasattr(quantization, "_register_quantization_weight_pack_pass") or find_spec("torchao")
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="from torch 2.14 on int8 kernels need torchao")
KERNELS = r"torch\.ops\.onednn\.(qconv|qconv2d|qlinear)_pointwise\."


def ready(model, x, quantizer=None, **options):
    """Deploy model of a model that is quantized whole, after a training batch."""
    quantize_(model, everything(quantizer or BalancedQuantizer(4), activation_bits=4, **options))
    observe(model, [x])
    return to_deploy(model.eval())


def exported(model, x, path):
    torch.export.save(torch.export.export(model, (x,)), path)
    return torch.export.load(path).module()


def compiled(model, x):
    """Output of compiled code, and how many int8 kernels of each kind it calls."""
    from torch._inductor.utils import run_and_get_code

    torch.compiler.reset()
    output, sources = run_and_get_code(compile_deploy(model), x)
    kinds = re.findall(KERNELS, "".join(sources))
    return output, {"conv": sum(kind != "qlinear" for kind in kinds), "linear": kinds.count("qlinear")}


def signed_and_unsigned():
    """Every kind of convolution, a residual sum, signed and unsigned inputs, a linear layer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
            self.depthwise = nn.Conv2d(8, 8, 3, padding=(1, 0), stride=2, groups=8)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            x = self.grouped(x) + x
            return self.head(self.depthwise(x.tanh()).mean((2, 3)))

    torch.manual_seed(0)
    return Net()


def test_file_computes_the_same_bits(tmp_path):
    x = randn(2, 3, 9, 7)
    deployed = ready(signed_and_unsigned(), x)
    loaded = exported(deployed, x, tmp_path / "m.pt2")
    assert_same_bits(run(loaded, [x])[0], run(deployed, [x])[0])


def test_file_takes_batches_of_any_size(tmp_path):
    deployed = ready(signed_and_unsigned(), randn(2, 3, 9, 7))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(deployed, (randn(2, 3, 9, 7),), dynamic_shapes=({0: batch},))
    x = randn(5, 3, 9, 7)
    assert_same_bits(run(program.module(), [x])[0], run(deployed, [x])[0])


def test_file_holds_a_byte_for_each_weight(tmp_path):
    deployed = ready(nn.Linear(400, 300, bias=False), randn(2, 400))
    exported(deployed, randn(2, 400), tmp_path / "m.pt2")
    assert 400 * 300 < (tmp_path / "m.pt2").stat().st_size < 400 * 300 * 1.5


def test_file_runs_in_a_process_without_this_package(tmp_path):
    x = randn(2, 3, 9, 7)
    deployed = ready(signed_and_unsigned(), x)
    exported(deployed, x, tmp_path / "m.pt2")
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys, torch\n"
        "import torch.ao.quantization.fx._decomposed\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "print(float(model(torch.load(sys.argv[2])).double().sum()))\n"
        "assert not any(name.startswith('lightning') for name in sys.modules)"
    )
    printed = run_python(script, tmp_path / "m.pt2", tmp_path / "x.pt")
    assert float(printed) == float(deployed(x).double().sum())


def test_layers_that_stay_float_are_exported_too(tmp_path):
    x = randn(2, 3, 9, 7)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3), nn.Flatten(), nn.Linear(189, 2))
    deployed = ready(model, x, BalancedQuantizer(8))
    assert not deploy_report(deployed).int8
    loaded = exported(deployed, x, tmp_path / "m.pt2")
    torch.testing.assert_close(
        run(loaded, [x])[0], run(deployed, [x])[0], rtol=0, atol=1e-6
    )  # plain, not compiled code


@pytest.fixture
def without_own_passes(monkeypatch):
    """A torch that left the passes to torchao."""
    monkeypatch.delattr(quantization, "_register_quantization_weight_pack_pass", raising=False)
    enable_int8_kernels.cache_clear()
    yield
    enable_int8_kernels.cache_clear()


def test_kernels_that_are_missing_are_named_with_what_to_install(without_own_passes, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)  # cannot be imported
    with pytest.raises(ImportError, match=r"to float: .* in torchao, pip install lightning-balq\[int8\]"):
        compile_deploy(nn.Identity())


def test_kernels_are_taken_once_from_torchao_where_torch_has_none(without_own_passes, monkeypatch):
    calls = []
    passes = types.ModuleType("passes")
    passes._register_quantization_weight_pack_pass = lambda: calls.append(1)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e.inductor_passes.x86", passes)
    for _ in range(2):
        compile_deploy(nn.Identity())
    assert calls == [1]


@needs_kernels
def test_compiled_code_calls_an_int8_kernel_for_every_layer():
    x = randn(2, 3, 9, 7)
    deployed = ready(signed_and_unsigned(), x)
    output, kernels = compiled(deployed, x)
    assert kernels == {"conv": 3, "linear": 1} and len(deploy_report(deployed).int8) == 4
    expected = run(deployed, [x])[0]
    assert float((output - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@needs_kernels
@pytest.mark.slow
def test_compiled_code_rounds_ties_as_the_layer_does():
    layer = nn.Linear(4096, 3)
    quantize_(layer, everything(BalancedQuantizer(2), activation_bits=6))
    x = randn(1, 4096).abs()
    observe(layer, [x])
    deployed = to_deploy(layer.eval())
    ties = (torch.randint(0, 63, (64, 4096), generator=torch.Generator().manual_seed(0)) + 0.5) * deployed.given.step
    output, kernels = compiled(deployed, ties)
    assert kernels["linear"] == 1
    expected = run(deployed, [ties])[0]  # a tie rounded to the other side is 1e-4 of the output
    assert float((output - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@needs_kernels
@pytest.mark.slow
def test_resnet18_from_a_file_has_19_int8_convolutions(tmp_path):
    torch.manual_seed(0)
    model, x = resnet18(10), randn(4, 3, 64, 64)
    quantize_(model, QuantizationConfig(BalancedQuantizer(2), activation_bits=2))  # all but the first and the last
    for _ in range(5):
        observe(model, [x])
    deployed = to_deploy(model.eval())
    output, kernels = compiled(exported(deployed, x, tmp_path / "m.pt2"), x)
    assert kernels == {"conv": 19, "linear": 0}
    expected = run(model, [x])[0]
    # An activation that rounding moves over a threshold moves what follows: so the median, and most classes.
    assert float((output - expected).abs().median()) <= 1e-5 * float(expected.abs().max())
    assert int((output.argmax(dim=1) == expected.argmax(dim=1)).sum()) >= 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch._inductor, "aoti_load_package"), reason="packages came with torch 2.6")
def test_package_of_aot_inductor_computes_the_same(tmp_path):
    x = randn(2, 3, 9, 7)
    deployed = ready(signed_and_unsigned(), x)
    with torch.no_grad():
        program = torch.export.export(deployed, (x,))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "m.pt2"), inductor_configs={"freezing": True}
        )
        output = torch._inductor.aoti_load_package(path)(x)
    expected = run(deployed, [x])[0]
    assert float((output - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
