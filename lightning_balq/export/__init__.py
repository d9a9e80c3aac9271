"""Quantized models as files: codes, scales and ranges instead of floats.

``description`` says what a quantized model computes, ``describe`` reads it off a model (``fit`` finds exact scales);
``packed`` writes and reads files of it, with the streams of ``bits`` and the metadata of ``header``; ``load`` makes a
float model of a file, with the quantizers of ``stored``.
"""

from lightning_balq.export.bits import pack_codes, unpack_codes
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
    "Description",
    "QuantizedInput",
    "QuantizedLayer",
    "QuantizedWeight",
    "describe",
    "load_packed",
    "multiples",
    "pack",
    "pack_codes",
    "read_packed",
    "unpack",
    "unpack_codes",
]
