"""The results of :mod:`lightning_balq.functional`, faster: compiled code for the CPU and for CUDA.

Where a line belongs: ``weights`` and ``activations`` choose the form that runs, and hold no arithmetic; ``native``
compiles ``cpu.cpp`` at first use, and ``cpu`` calls it; ``cuda`` holds the kernels for GPUs. Whatever a compiled form
cannot take (a subclass of Tensor, a tensor under ``vmap`` or being traced, a value that is not finite, another device)
runs in the plain form.
"""
