"""Kernels compile to machine code of the devices that torch supports, whether or not one is present."""

import importlib
import os

import pytest

triton = pytest.importorskip("triton", minversion="3.3", reason="older versions describe a kernel otherwise")
ast_source = importlib.import_module("triton.compiler").ASTSource
target = importlib.import_module("triton.backends.compiler").GPUTarget
weights = importlib.import_module("lightning_balq.kernels.cuda.weights")
activations = importlib.import_module("lightning_balq.kernels.cuda.activations")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")

TYPES = {
    **dict.fromkeys(["addresses", "table", "owners"], "*i64"),
    **dict.fromkeys(["steps", "statistics", "thresholds", "extremes", "range_pointer"], "*fp32"),
    **dict.fromkeys(["sums", "totals"], "*fp64"),
    **dict.fromkeys(["members", "arrivals"], "*i32"),
    **dict.fromkeys(["mask", "signed_pointer"], "*i1"),
    **dict.fromkeys(["segments", "all_parts", "parts", "row", "length"], "i32"),
}
CASES = [(75, 1, "fp32"), (80, 4, "bf16"), (90, 8, "fp32"), (90, 4, "fp64")]  # capability, bits, type


def ptx(kernel, capability, dtype, warps, **constants):
    """PTX of a kernel; fails unless machine code came out, too."""
    types = TYPES | dict.fromkeys(["levels", "source"], f"*{dtype}")
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ast_source(kernel, signature, values)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=target("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def assert_rounds_as_the_plain_form(code):
    assert "fma." not in code
    assert "div.full" not in code and "div.approx" not in code and "rcp.approx" not in code


@pytest.mark.parametrize(("capability", "bits", "dtype"), CASES)
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "uniform"])
def test_short_segments_compile(capability, bits, dtype, balanced):
    constants = {"BITS": bits, "BALANCED": balanced, "WIDE": True}
    for scale, (tile, warps) in zip(["max", "mean", "least_squares"], [(256, 1), (4096, 4), (16384, 16)], strict=True):
        code = ptx(weights._quantize_short, capability, dtype, warps, SCALE=scale, TILE=tile, **constants)
        assert_rounds_as_the_plain_form(code)


@pytest.mark.parametrize(("capability", "bits", "dtype"), CASES)
@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "uniform"])
def test_long_segments_compile(capability, bits, dtype, balanced):
    fixed = {"BITS": bits, "TILE": 4096, "WIDE": True}
    reducing = fixed | {"LANES": 1024}
    codes = [
        ptx(weights._measure, capability, dtype, 8, SCALE="mean", BALANCED=balanced, **reducing),
        ptx(weights._fit, capability, dtype, 8, BALANCED=balanced, **reducing),
        ptx(weights._place, capability, dtype, 8, BALANCED=balanced, **fixed),
    ]
    if balanced and bits > 1:
        codes.append(ptx(weights._split, capability, dtype, 4, LEVEL=bits - 1, **reducing))
    for code in codes:
        assert_rounds_as_the_plain_form(code)


@pytest.mark.parametrize(("capability", "bits", "dtype"), CASES)
def test_activations_compile(capability, bits, dtype):
    code = ptx(activations._quantize, capability, dtype, 4, BITS=bits, TILE=4096, LANES=1024)
    assert_rounds_as_the_plain_form(code)


@pytest.mark.parametrize(("wide", "loads"), [(True, "v4.b32"), (False, "ld.global.b32")])
def test_aligned_weights_are_loaded_four_values_at_a_time(wide, loads):
    code = ptx(weights._place, 90, "fp32", 8, BITS=4, TILE=4096, WIDE=wide, BALANCED=False)
    assert any("ld.global" in line and loads in line for line in code.splitlines())
    assert any("ld.global.v4" in line for line in code.splitlines()) == wide


def test_stores_come_before_the_arrival_that_publishes_them():
    lines = ptx(weights._split, 90, "fp32", 4, BITS=4, LEVEL=2, TILE=4096, LANES=1024, WIDE=True).splitlines()
    (arrival,) = [index for index, line in enumerate(lines) if "atom.global.gpu.acq_rel.add" in line]
    sync = max(index for index, line in enumerate(lines[:arrival]) if "bar.sync" in line)
    stores = [index for index, line in enumerate(lines[:arrival]) if "st.global" in line]
    assert max(stores) < sync < arrival
