"""Models of all shapes: equal, bit for bit, to float models whose weights are replaced by hand."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from packaging.version import Version
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from lightning_balq import BalancedQuantizer
from lightning_balq.nn import quantized_layers
from tests.callback.tiny import TinyModel, tiny_model, tiny_net
from tests.compatibility.by_hand import (
    assert_equals_by_hand,
    assert_same_training,
    balanced,
    by_callback,
    fit,
    learned,
    pruned,
    quantized_by_hand,
)
from tests.helpers import assert_equal, randn

each_quantizer = pytest.mark.parametrize("by_hand", [balanced, learned], ids=["fixed", "learned"])


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


class Structured(TinyModel):
    """Takes an image, integer tokens, and a mask that may be missing; returns several things."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()  # type: ignore[assignment]  # not used
        self.words = nn.Embedding(7, 8)
        self.image, self.text, self.both = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.aux = nn.Linear(8, 2)

    def forward(self, image: Tensor, mask: Tensor | None = None, *, tokens: Tensor, scale: float = 1.0) -> Any:
        text = self.text(self.words(tokens)).relu()
        text = text.mean(1) if mask is None else (text * mask[..., None]).sum(1)
        hidden = (self.image(input=image.flatten(1)) * scale + text).relu()
        return {"logits": self.both(hidden), "others": (self.aux(hidden), None, hidden.argmax(1))}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out = self(batch["image"], batch["mask"], tokens=batch["tokens"], scale=0.5)
        loss = F.cross_entropy(out["logits"], batch["label"]) + out["others"][0].square().mean()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch["image"], tokens=batch["tokens"])["logits"], batch["label"]))


def structured_batches() -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(4, 1, 8, 8, generator=draw),
            "tokens": torch.randint(0, 7, (4, 5), generator=draw),
            "mask": torch.rand(4, 5, generator=draw).round() if index % 2 else None,
            "label": torch.randint(0, 3, (4,), generator=draw),
        }
        for index in range(4)
    ]


@each_quantizer
def test_dict_batches_keywords_missing_and_integer_inputs_and_several_outputs(tmp_path: Path, by_hand: Any) -> None:
    names = ("words", "image", "text", "both", "aux")
    options = {"include": ["*", "words"], "quantize_first_last": True}
    assert_equals_by_hand(
        tmp_path, by_hand, make=Structured, names=names, quantization=options, data=structured_batches()
    )


def test_integer_tensors_reach_an_embedding_as_they_are(tmp_path: Path) -> None:
    seen = []
    model = Structured()
    model.words.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    callback = by_callback(activation_bits=2, include=["*", "words"], quantize_first_last=True)
    fit(tmp_path, model, [callback], data=structured_batches(), max_epochs=1, num_sanity_val_steps=0)
    assert_equal(seen[:4], [batch["tokens"] for batch in structured_batches()])


# ---- shared modules and weights --------------------------------------------------------------------------------------


class Twice(TinyModel):
    """Calls all layers twice in one forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.net(x.flip(-1)).tanh()


@each_quantizer
def test_module_that_is_used_twice_in_a_forward(tmp_path: Path, by_hand: Any) -> None:
    assert_equals_by_hand(tmp_path, by_hand, make=Twice)


class Words(TinyModel):
    """Predicts the next token; ``decode`` turns hidden values into logits, ``penalty`` adds to the loss."""

    tied = False

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()  # type: ignore[assignment]  # not used
        self.embedding, self.hidden, self.decoder = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        if self.tied:
            self.decoder.weight = self.embedding.weight

    def decode(self, hidden: Tensor) -> Tensor:
        return self.decoder(hidden)

    def penalty(self) -> Tensor:
        return torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.hidden(self.embedding(x)).relu())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:  # type: ignore[override]  # other batches
        loss = F.cross_entropy(self(batch).flatten(0, 1), (batch.flatten() + 1) % 11) + self.penalty()
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]  # other batches
        self.log("val_loss", F.cross_entropy(self(batch).flatten(0, 1), (batch.flatten() + 1) % 11))


class Tied(Words):
    """The same with one weight for the embedding and the decoder."""

    tied = True


ALL_WORDS = {"include": ["*", "type:Embedding"], "quantize_first_last": True}


def sentences() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 11, (3, 4), generator=draw) for _ in range(4)]


@each_quantizer
def test_tied_weights_get_the_gradients_of_both_layers(tmp_path: Path, by_hand: Any) -> None:
    names = ("embedding", "hidden", "decoder")
    model, *_ = assert_equals_by_hand(
        tmp_path, by_hand, make=Tied, names=names, quantization=ALL_WORDS, data=sentences()
    )
    assert model.decoder.weight is model.embedding.weight


def test_tied_weight_is_quantized_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    levels = BalancedQuantizer.levels
    monkeypatch.setattr(
        BalancedQuantizer, "levels", lambda self, weight: computed.append(weight.shape) or levels(self, weight)
    )
    options = {"max_epochs": 1, "limit_val_batches": 0}
    fit(tmp_path, Tied(), [by_callback(**ALL_WORDS)], data=sentences(), **options)
    assert sorted(computed) == sorted([torch.Size([11, 8]), torch.Size([8, 8])] * 4)


# ---- weights read outside of their layer -----------------------------------------------------------------------------


class ReadByLinear(Words):
    """Uses the table of an embedding as the weight of a decoder, past its layer."""

    def decode(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)


class ReadByProduct(Words):
    """The same, by a view."""

    def decode(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embedding.weight.t()


class ReadElementwise(Words):
    """Multiplies with a row of a table."""

    def decode(self, hidden: Tensor) -> Tensor:
        return self.decoder(hidden * self.embedding.weight[0])


class Recomputed(ReadByLinear):
    """The same, under activation checkpointing."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint(super().forward, x, use_reentrant=False)
        return result


class ManualStep(ReadByLinear):
    """The same, with manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]  # returns nothing
        self.optimizers().zero_grad()  # type: ignore[union-attr]  # there is one
        self.manual_backward(super().training_step(batch, batch_idx))
        self.optimizers().step()  # type: ignore[union-attr]  # there is one


def reports(root: Path, model: LightningModule, callback: Callback, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        fit(root, model, [callback], **{"data": sentences(), **options})
    return [str(warning.message) for warning in raised if "read outside" in str(warning.message)]


@pytest.mark.parametrize("kind", [ReadByLinear, ReadByProduct, ReadElementwise, Recomputed, ManualStep])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_weight_read_as_float_outside_of_its_layer_is_named_once(tmp_path: Path, kind: Any, precision: str) -> None:
    (report,) = reports(tmp_path, kind(), by_callback(**ALL_WORDS), precision=precision)
    assert "as float: embedding.weight. What is computed" in report


@each_quantizer
def test_weight_read_outside_is_float_there_and_quantized_in_its_layer(tmp_path: Path, by_hand: Any) -> None:
    names = ("embedding", "hidden", "decoder")
    with pytest.warns(UserWarning, match="also read outside of the forward of their layer, as float: embedding"):
        model, *_ = assert_equals_by_hand(
            tmp_path, by_hand, make=ReadByLinear, names=names, quantization=ALL_WORDS, data=sentences()
        )
    assert model.losses


def test_weight_read_while_the_network_is_still_float_is_named_too(tmp_path: Path) -> None:
    assert len(reports(tmp_path, ReadByLinear(), by_callback(**ALL_WORDS, start_step=3))) == 1


def test_pruned_weight_read_outside_is_named(tmp_path: Path) -> None:
    model = ReadByLinear()
    prune.l1_unstructured(model.embedding, "weight", 0.3)
    assert len(reports(tmp_path, model, by_callback(**ALL_WORDS))) == 1


class SquaredPenalty(Words):
    """Weight decay by hand."""

    def penalty(self) -> Tensor:
        return 0.1 * sum((parameter.pow(2).sum() for parameter in self.parameters()), torch.zeros(()))


class NormPenalty(Words):
    """A norm of all weights together."""

    def penalty(self) -> Tensor:
        return 0.1 * torch.cat([parameter.flatten() for parameter in self.parameters()]).norm()


class AbsolutePenalty(Words):
    """For sparse weights."""

    def penalty(self) -> Tensor:
        return 0.1 * torch.stack([parameter.abs().mean() for parameter in self.parameters()]).mean()


@pytest.mark.parametrize("kind", [Words, Tied, SquaredPenalty, NormPenalty, AbsolutePenalty])
def test_nothing_is_reported_of_penalties_and_of_layers_that_share_a_weight(tmp_path: Path, kind: Any) -> None:
    assert reports(tmp_path, kind(), by_callback(**ALL_WORDS)) == []


def test_nothing_is_reported_of_a_layer_that_shares_the_weight_and_is_float_by_plan(tmp_path: Path) -> None:
    assert reports(tmp_path, Tied(), by_callback(include=["embedding", "hidden"])) == []


def test_search_for_reads_ends_with_the_first_batch(tmp_path: Path) -> None:
    searching = []

    class Look(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            searching.append(next(state.schedule.reads is not None for _, _, state in quantized_layers(pl_module)))

    fit(tmp_path, Words(), [by_callback(**ALL_WORDS), Look()], data=sentences())
    assert searching == [True] + [False] * 7


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="torch 2.5 compiles no context managers")
def test_compiled_model_is_one_graph_and_reports_nothing(tmp_path: Path) -> None:
    from torch._dynamo.testing import CompileCounter

    class Compiled(Words):
        def __init__(self) -> None:
            super().__init__()
            self.counter = CompileCounter()
            self.run = torch.compile(self._run, backend=self.counter, fullgraph=True)

        def _run(self, x: Tensor) -> Tensor:
            return F.linear(self.hidden(self.embedding(x)).relu(), self.embedding.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    model = Compiled()
    assert reports(tmp_path, model, by_callback(**ALL_WORDS), limit_val_batches=0) == []
    assert model.counter.frame_count == 1


# ---- models within models --------------------------------------------------------------------------------------------


class Nested(TinyModel):
    """Holds another LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()  # type: ignore[assignment]  # not used
        self.inner = TinyModel()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@each_quantizer
def test_nested_lightning_module(tmp_path: Path, by_hand: Any) -> None:
    names = ("inner.net.3", "inner.net.7")
    model, trainer, *_ = assert_equals_by_hand(tmp_path, by_hand, make=Nested, names=names)
    trainer.save_checkpoint(tmp_path / "nested.ckpt")
    loaded = Nested.load_from_checkpoint(tmp_path / "nested.ckpt", strict=True)
    assert_equal(loaded.inner.net[3].weight.detach(), model.inner.net[3].weight.detach())


class Taught(TinyModel):
    """Learns from a frozen network beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = tiny_net().requires_grad_(False).eval()

    def on_train_start(self) -> None:
        self.teacher.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.teacher.eval()
        loss = F.mse_loss(self(batch[0]), self.teacher(batch[0]))
        self.losses.append(loss.item())
        return loss


@each_quantizer
def test_frozen_teacher_is_left_alone_by_a_pattern(tmp_path: Path, by_hand: Any) -> None:
    options = {"exclude": ["teacher"], "activation_bits": None}
    model, *_ = assert_equals_by_hand(tmp_path, by_hand, make=Taught, quantization=options)
    assert all(type(layer) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.Flatten) for layer in model.teacher)
    assert [name for name, _, _ in quantized_layers(model)] == ["net.3", "net.7"]


class ChannelsLast(TinyModel):
    """Weights and images with channels in the last place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.net.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(memory_format=torch.channels_last))


@each_quantizer
def test_channels_last(tmp_path: Path, by_hand: Any) -> None:
    model, *_ = assert_equals_by_hand(tmp_path, by_hand, make=ChannelsLast)
    layer = model.net[3]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    state = next(state for name, _, state in quantized_layers(model) if name == "net.3")
    assert state.quantize_weight(layer, "weight").is_contiguous(memory_format=torch.channels_last)


# ---- weights that are computed ---------------------------------------------------------------------------------------


def legacy_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(layer)


COMPUTED: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "legacy weight_norm": legacy_weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "structured": lambda layer: prune.ln_structured(layer, "weight", 0.3, n=1, dim=0),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_are_quantized_after_they_are_computed(tmp_path: Path, kind: str) -> None:
    by_hand = pruned if kind in ("pruned", "structured") else balanced

    def make(is_reference: bool) -> TinyModel:
        model = tiny_model()
        if is_reference:  # its class is changed before a parametrization derives another from it
            quantized_by_hand(model, by_hand=by_hand)
        for layer in (model.net[3], model.net[7]):
            COMPUTED[kind](layer)
        return model

    model, reference = make(False), make(True)
    trainer, other = fit(tmp_path, model, [by_callback()]), fit(tmp_path, reference, [])
    assert_same_training(model, trainer, reference, other)


# ---- torch.fx --------------------------------------------------------------------------------------------------------


class Traced(TinyModel):
    """Its network went through torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.fx.symbolic_trace(self.net)  # type: ignore[assignment]  # another container

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_network_that_was_traced_before(tmp_path: Path) -> None:
    assert_equals_by_hand(tmp_path, make=Traced)


@each_quantizer
def test_quantized_network_is_traced_as_quantized(tmp_path: Path, by_hand: Any) -> None:
    model, _, reference, _ = assert_equals_by_hand(tmp_path, by_hand)
    traced = torch.fx.symbolic_trace(copy.deepcopy(model.net))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == [str(index) for index in range(10)]
    assert_equal(traced.eval()(randn(2, 1, 8, 8)), reference.net.eval()(randn(2, 1, 8, 8)))
