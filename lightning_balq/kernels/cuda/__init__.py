"""Quantizers as Triton kernels for CUDA: all weights of a model together, each activation in one pass.

Needs ``triton``, which comes with the CUDA builds of torch; nothing outside this folder imports it.
"""
