"""Small float models of every quantizable kind, inputs for them, and a decoder that knows nothing of the package."""

import json
import struct

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, rnn

from lightning_balq import quantize_
from lightning_balq.nn import activation_quantizers, settle_ranges_, update_ranges_
from tests.helpers import everything, randn


class Attention(nn.Module):
    """Queries, keys and values of three sources."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, query, key, value):
        return self.attention(query, key, value)[0]


class SelfAttention(Attention):
    """Keys and values are the queries, so that nothing of their own is ever seen."""

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Tied(nn.Module):
    """A table that is the weight of the head, too."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.body(self.embedding(tokens)))


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(6, 6)

    def forward(self, x):
        return self.second(self.first(x).relu())


class CellLoop(nn.Module):
    """A cell, three steps."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, steps):
        state = None
        for step in steps:
            state = self.cell(step, state)
        return state


def pruned():
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    prune.random_unstructured(model[0], "weight", 0.4)
    return model


def pruned_for_good():
    """Zeros without a mask, as ModelPruning leaves them."""
    model = pruned()
    prune.remove(model[0], "weight")
    return model


def parametrized(wrap):
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))
    wrap(model[0])
    return model


IMAGE, VOLUME, ROW = randn(2, 4, 7, 7), randn(2, 4, 4, 4, 4), randn(2, 4, 9)
TOKENS = torch.tensor([[0, 3, 10], [2, 2, 1]])
STEPS = randn(3, 2, 5)
PACKED = rnn.pack_padded_sequence(randn(4, 3, 5), torch.tensor([2, 4, 1]), enforce_sorted=False)
MODELS = {
    "linear": (lambda: nn.Linear(6, 5), [randn(3, 6)]),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), [randn(3, 6)]),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), [ROW]),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), [IMAGE]),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), [VOLUME]),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3), [ROW]),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), [IMAGE]),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 2, 2), [VOLUME]),
    "embedding": (lambda: nn.Embedding(11, 6), [TOKENS]),
    "embedding with padding": (lambda: nn.Embedding(11, 6, padding_idx=2), [TOKENS]),
    "attention": (lambda: Attention(), [randn(2, 3, 8, seed=s) for s in range(3)]),
    "attention of other widths": (lambda: Attention(kdim=6, vdim=4), [randn(2, 3, n, seed=n) for n in (8, 6, 4)]),
    "self-attention": (lambda: SelfAttention(bias=False), [randn(2, 3, 8)]),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [randn(2, 3, 8)]),
    "rnn": (lambda: nn.RNN(5, 6, nonlinearity="relu"), [STEPS]),
    "lstm": (lambda: nn.LSTM(5, 6, num_layers=2, bidirectional=True), [STEPS]),
    "lstm with projection": (lambda: nn.LSTM(5, 6, proj_size=3), [STEPS]),
    "gru": (lambda: nn.GRU(5, 6), [PACKED]),
    "rnn cell": (lambda: CellLoop(nn.RNNCell(5, 6)), [STEPS]),
    "lstm cell": (lambda: CellLoop(nn.LSTMCell(5, 6)), [STEPS]),
    "gru cell": (lambda: CellLoop(nn.GRUCell(5, 6)), [STEPS]),
    "tied": (Tied, [TOKENS]),
    "twice": (Twice, [randn(3, 6)]),
    "pruned": (pruned, [randn(3, 6)]),
    "pruned for good": (pruned_for_good, [randn(3, 6)]),
    "weight norm": (lambda: parametrized(parametrizations.weight_norm), [randn(3, 6)]),
    "spectral norm": (lambda: parametrized(parametrizations.spectral_norm), [randn(3, 6)]),
    "legacy weight norm": (lambda: parametrized(nn.utils.weight_norm), [randn(3, 6)]),
    "legacy spectral norm": (lambda: parametrized(nn.utils.spectral_norm), [randn(3, 6)]),
    "norms between": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3)), [IMAGE]),
}
EMBEDDINGS = ["*", "type:Embedding"]


def build(name, seed=0, dtype=torch.float32):
    """Float model and arguments of its forward."""
    torch.manual_seed(seed)
    make, arguments = MODELS[name]
    return make().to(dtype), [given.to(dtype) if is_float(given) else given for given in arguments]


def quantized(name, quantizer=None, dtype=torch.float32, **options):
    """Quantized model whose inputs were observed, in evaluation mode, and arguments of its forward."""
    model, arguments = build(name, dtype=dtype)
    quantize_(model, everything(quantizer, include=EMBEDDINGS if has_embedding(model) else ["*"], **options))
    observe(model, arguments)
    return model.eval(), arguments


def observe(model, arguments):
    """Run one training batch, as far as ranges and learned parameters are concerned."""
    model.train()
    model(*arguments)
    update_ranges_(activation_quantizers(model))
    settle_ranges_(activation_quantizers(model))


def has_embedding(model):
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def is_float(value):
    return (value.data if isinstance(value, rnn.PackedSequence) else value).is_floating_point()


def tensors_of(result):
    """All tensors of an output, whatever form it has."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, rnn.PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in tensors_of(part)]


@torch.no_grad()
def run(model, arguments):
    return tensors_of(model(*arguments))


def assert_same_bits(actual, expected):
    """Equal bit for bit, so that -0 is not 0."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    widths = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    view = widths[actual.element_size()]
    assert torch.equal(actual.contiguous().view(view), expected.contiguous().view(view))


def read_by_hand(path):
    """Metadata and arrays of a safetensors file; bfloat16 as the upper half of float32."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    kinds = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "U8": "u1", "I64": "<i8", "BF16": "<u2"}
    arrays = {}
    for key, entry in header.items():
        start, stop = entry["data_offsets"]
        raw = np.frombuffer(data[8 + size + start : 8 + size + stop], dtype=kinds[entry["dtype"]])
        arrays[key] = raw.reshape(entry["shape"])
    return metadata, arrays


def write_by_hand(path, metadata, arrays):
    """Undo :func:`read_by_hand`, for arrays of float32, uint8 and int64."""
    kinds = {"f": "F32", "u": "U8", "i": "I64"}
    header, offset = {"__metadata__": metadata}, 0
    for key, array in arrays.items():
        stop = offset + array.nbytes
        header[key] = {"dtype": kinds[array.dtype.kind], "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


def decode_by_hand(entry, key, arrays):
    """float32 levels of a weight with output channels in dim 0, before padding and pruning, in NumPy alone."""
    bits, shape = entry["bits"], entry["shape"]
    count = int(np.prod(shape))
    flat = np.unpackbits(arrays[f"codes:{key}"], bitorder="little")[: count * bits].reshape(count, bits)
    codes = (flat.astype(np.int64) @ (1 << np.arange(bits))).reshape(shape).astype(np.float32)
    n = np.float32(2**bits - 1)
    multiple = {
        "odd": lambda c: 2 * c - n,
        "half": lambda c: c - n / 2,
        "integer": lambda c: c - np.float32(2 ** (bits - 1)),
        "unit": lambda c: (2 * c - n) / n,
    }[entry["grid"]](codes)
    scale = arrays[f"scale:{key}"]
    return multiple * scale.reshape(-1, *[1] * (len(shape) - 1))
