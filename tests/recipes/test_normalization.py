import numpy as np
import torch
from torch.testing import assert_close

from recipes.data.normalization import normalize

MEAN, DEVIATION = (0.1, 0.5, 0.7), (0.2, 0.25, 1.0)


def test_it_equals_numpy_exactly():
    pixels = np.random.default_rng(0).integers(256, size=(4, 5, 6, 3), dtype=np.uint8)
    single = [np.asarray(values, dtype=np.float32) for values in (MEAN, DEVIATION)]
    expected = (pixels.astype(np.float32) / np.float32(255) - single[0]) / single[1]
    given = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    result = normalize(given, MEAN, DEVIATION)
    assert result.is_contiguous() and result.dtype == torch.float32
    assert_close(result, torch.from_numpy(expected).permute(0, 3, 1, 2), rtol=0, atol=0)
    assert torch.equal(given, torch.from_numpy(pixels).permute(0, 3, 1, 2))
