"""Quantized models as ONNX files, in standard operators alone, with weights of k bits.

``export`` is the whole way; ``trace`` lets torch write the graph with a placeholder for everything quantized, and
``expand`` replaces placeholders by operators: those of ``decode`` (weights), ``activation``, ``product`` (integer
products), ``convolution`` and ``recurrent``. ``forms`` decides what can be computed in integers, and ``marks`` keeps
the names of what goes into layers and comes out of them. ``graph`` holds nodes under way, ``packages`` finds the
libraries, ``report`` is what the caller gets.
"""

from lightning_balq.export.onnx.export import export_onnx
from lightning_balq.export.onnx.report import OnnxReport, WeightReport

__all__ = ["OnnxReport", "WeightReport", "export_onnx"]
