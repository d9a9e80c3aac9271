"""The results of :mod:`lightning_balq.functional`, faster: compiled code for the CPU and for CUDA.

Where a line belongs: ``weights`` and ``activations`` choose the form that runs, and hold no arithmetic; ``native``
compiles ``cpu.cpp`` and ``recurrent.cpp`` at first use, and ``cpu`` calls them; ``cuda`` holds the kernels for GPUs.
``recurrent`` differentiates recurrent layers by hand, ``cells`` knows the steps of each kind, ``pointwise`` what a step
does beside its product of matrices. Whatever a compiled form cannot take (a subclass of Tensor, a tensor under ``vmap``
or being traced, a value that is not finite, another device) runs in the plain form.
"""
