"""Random numbers that depend on nothing but what they are for."""

import numpy as np

ORDER, AUGMENTATION = 0, 1
"""What numbers are drawn for: two purposes never share them."""


def generator(seed: int, epoch: int, purpose: int, sample: int = 0) -> np.random.Generator:
    """Return a generator that its arguments alone decide.

    No process has to know how many numbers another has drawn. NumPy mixes the arguments, so that those which differ
    by one give unrelated numbers.

    Example:
        >>> generator(0, 3, ORDER).random() == generator(0, 3, ORDER).random() != generator(0, 4, ORDER).random()
        True
    """
    return np.random.default_rng((seed, epoch, purpose, sample))
