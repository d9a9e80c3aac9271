"""Quantized models as files: codes, scales and ranges instead of floats.

``description`` says what a quantized model computes, ``describe`` reads it off a model (``fit`` finds exact scales);
``packed`` writes and reads files of it, with the streams of ``bits`` and the metadata of ``header``; ``load`` makes a
float model of a file, with the quantizers of ``stored``. ``deploy`` makes a model that computes in int8, of
``deploy_layers``, whose numbers come from ``integers``, with batch norms found by ``deploy_norms``; ``deploy_report``
says what became of each layer, and ``deploy_compile`` compiles it. ``onnx`` writes ONNX files. By ``replacing``,
existing files are replaced only whole.
"""

from lightning_balq.export.bits import pack_codes, unpack_codes
from lightning_balq.export.deploy import deploy_report, to_deploy
from lightning_balq.export.deploy_compile import compile_deploy, enable_int8_kernels
from lightning_balq.export.deploy_report import DeployedLayer, DeployReport
from lightning_balq.export.describe import describe
from lightning_balq.export.description import (
    Description,
    QuantizedInput,
    QuantizedLayer,
    QuantizedWeight,
    multiples,
)
from lightning_balq.export.load import load_packed
from lightning_balq.export.packed import pack, read_packed, unpack

__all__ = [
    "DeployReport",
    "DeployedLayer",
    "Description",
    "QuantizedInput",
    "QuantizedLayer",
    "QuantizedWeight",
    "compile_deploy",
    "deploy_report",
    "describe",
    "enable_int8_kernels",
    "load_packed",
    "multiples",
    "pack",
    "pack_codes",
    "read_packed",
    "to_deploy",
    "unpack",
    "unpack_codes",
]
