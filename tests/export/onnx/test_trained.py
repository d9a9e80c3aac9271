"""Trained networks are as good in a file as they are in PyTorch, on the whole of the test data."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_balq import BalancedQuantizer, quantize_
from lightning_balq.export.onnx import export_onnx
from lightning_balq.nn import activation_quantizers, settle_ranges_, update_ranges_
from recipes.data.markov import MarkovSource
from recipes.digits import digits, network
from tests.export.onnx.runtimes import run_onnx
from tests.helpers import everything


def train(model, batches, loss, learning_rate):
    """Adam on quantized layers, with what the callback does after every batch."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    quantizers = activation_quantizers(model)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        update_ranges_(quantizers)
        settle_ranges_(quantizers)
    model.eval()


def digit_batches(dataset, epochs):
    images, labels = dataset.tensors
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            yield images[rows], labels[rows]


@torch.no_grad()
def test_digits_are_recognised_as_well(tmp_path):
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    training, (images, labels) = digits()[0], digits()[1].tensors
    model = network("cnn_bn")
    quantize_(model, everything(BalancedQuantizer(2), activation_bits=2))
    with torch.enable_grad():
        train(model, digit_batches(training, 6), lambda batch: F.cross_entropy(model(batch[0]), batch[1]), 0.005)
    right = model(images)
    accuracy = float((right.argmax(1) == labels).double().mean())
    assert accuracy > 0.9
    dims = ({0: torch.export.Dim("batch")},)
    for mode in ("portable", "integer"):
        report = export_onnx(
            model, tmp_path / mode, images[:2], mode=mode, integer_convolutions=True, dynamic_shapes=dims
        )
        assert {weight.form for weight in report.weights} == {"float" if mode == "portable" else "int8"}
        (found,) = run_onnx(tmp_path / mode, [images])
        assert abs(float((found.argmax(1) == labels).double().mean()) - accuracy) <= 0.0005
        # A rounding of batch norm that lies on a border between two levels may fall on the other side.
        assert float((found - right).abs().median()) <= 1e-6


class Language(nn.Module):
    """Embedding, LSTM and softmax layer over columns of text, shape ``(T, B)``."""

    def __init__(self, symbols=12, units=32):
        super().__init__()
        self.embedding = nn.Embedding(symbols, units)
        self.rnn = nn.LSTM(units, units)
        self.head = nn.Linear(units, symbols)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0])


def columns(text, count):
    """Text as ``count`` columns, and what follows each symbol."""
    length = (len(text) - 1) // count
    return [part[: length * count].reshape(count, length).t().contiguous() for part in (text[:-1], text[1:])]


@torch.no_grad()
def test_text_is_as_likely(tmp_path):
    torch.manual_seed(0)
    source = MarkovSource(12, seed=0)
    model = Language()
    quantizer = BalancedQuantizer(2, scale="mean")
    options = {"activation_bits": 2, "activation_range": "unit", "include": ["*", "type:Embedding"]}
    quantize_(model, everything(quantizer, **options))

    def loss(batch):
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    tokens, following = columns(source.draw(30_000, seed=1), 20)
    windows = list(zip(tokens.split(35), following.split(35), strict=True))
    with torch.enable_grad():
        train(model, windows * 4, loss, 0.01)
    tokens, following = columns(source.draw(20_000, seed=3), 10)
    perplexity = float(loss((tokens, following)).exp())
    assert perplexity < 8  # of 12 symbols, had it learned nothing
    dims = ({0: torch.export.Dim("length"), 1: torch.export.Dim("batch")},)
    for mode in ("portable", "integer"):
        report = export_onnx(model, tmp_path / mode, tokens[:3, :2], mode=mode, dynamic_shapes=dims)
        forms = {weight.name: weight.form for weight in report.weights}
        assert set(forms.values()) == ({"float"} if mode == "portable" else {"float", "int8"})
        assert mode == "portable" or [name for name in forms if forms[name] == "float"] == ["embedding.weight"]
        (found,) = run_onnx(tmp_path / mode, [tokens])
        other = float(F.cross_entropy(found.flatten(0, 1), following.flatten()).exp())
        assert abs(other - perplexity) <= 0.0005 * perplexity
