"""A word-level language model: embedding, recurrent layers, softmax layer."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, ReduceLROnPlateau

from recipes.data.streams import IGNORED
from recipes.models.likelihood import MeanNLL
from recipes.models.sigmoid_cells import SigmoidGRU, SigmoidLSTM, State

Cell = Literal["lstm", "gru", "rnn", "sigmoid_lstm", "sigmoid_gru"]
CELLS: dict[Cell, Callable[..., nn.Module]] = {
    "lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "sigmoid_lstm": SigmoidLSTM, "sigmoid_gru": SigmoidGRU,
}  # fmt: skip
INITIAL = 0.1
"""Largest initial weight of the embedding and the softmax layer."""


class LanguageModel(LightningModule):
    """Predicts each token from those before it; the state is carried from batch to batch.

    It logs ``train_loss``, ``val_loss`` and ``test_loss`` (mean negative log-likelihood in nats of all tokens), their
    exponentials ``val_perplexity`` and ``test_perplexity``, and, where the data know the optimum,
    ``test_perplexity_ratio``.

    Args:
        cell: kind of the recurrent layers; ``sigmoid_*`` have states in [0, 1].
        vocabulary_size: number of different tokens.
        units: size of the embedding and of each recurrent layer.
        layers: number of recurrent layers.
        dropout: share dropped, in training, of the inputs of each recurrent layer and of the softmax layer.
        tie_weights: let the softmax layer use the weight of the embedding.
        optimizer: which optimizer to train with.
        learning_rate: at the beginning.
        decay: what the learning rate is divided by at every milestone.
        milestones: epochs after which the learning rate decays; ``None`` for each validation that is not better than
            all before it.

    Raises:
        ValueError: if ``decay`` is less than 1.
    """

    def __init__(
        self,
        cell: Cell = "lstm",
        vocabulary_size: int = 10_000,
        units: int = 300,
        layers: int = 1,
        dropout: float = 0.5,
        tie_weights: bool = False,
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 20.0,
        decay: float = 1.2,
        milestones: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if decay < 1:
            raise ValueError(f"`decay` divides the learning rate and must be at least 1, got {decay}")
        self.save_hyperparameters()
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocabulary_size, units)
        self.rnn = CELLS[cell](units, units, layers, dropout=dropout if layers > 1 else 0.0)
        self.softmax = nn.Linear(units, vocabulary_size)
        if tie_weights:
            self.softmax.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -INITIAL, INITIAL)
        nn.init.uniform_(self.softmax.weight, -INITIAL, INITIAL)
        nn.init.zeros_(self.softmax.bias)
        self.nll = MeanNLL()
        self._train_state: State | None = None
        self._eval_state: State | None = None

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return logits, shape ``(steps, batch, vocabulary)``, and the state after the last step.

        Args:
            inputs: tokens, shape ``(steps, batch)``.
            state: to start from; zeros by default.
        """
        outputs, state = self.rnn(self.dropout(self.embedding(inputs)), state)
        return self.softmax(self.dropout(outputs)), state

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the tokens of a batch."""
        logits, state = self(batch[0], self._train_state if batch_idx else None)
        self._train_state = _map(Tensor.detach, state)
        total, tokens = _total_nll(logits, batch[1])
        loss = total / tokens.clamp(min=1)  # a process may have no more than padding in the last batch
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the loss."""
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the loss."""
        self._evaluate(batch, batch_idx)

    def _evaluate(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits, self._eval_state = self(batch[0], self._eval_state if batch_idx else None)
        self.nll.update(*_total_nll(logits, batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity, and let the learning rate follow it."""
        loss = self._log_perplexity("val")
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        schedule = self.lr_schedulers()
        # Lightning itself would do so after checkpoints are written, and a resumed run would miss a step.
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(float(loss))

    def on_test_epoch_end(self) -> None:
        """Log the perplexity, and how far it is from the optimum."""
        loss = self._log_perplexity("test")
        optimum = getattr(self._data(), "optimal_perplexity", None)
        if optimum is not None:
            self.log("test_perplexity_ratio", loss.exp() / optimum, sync_dist=True)

    def _log_perplexity(self, stage: str) -> Tensor:
        loss = self.nll.compute()  # of all processes
        self.nll.reset()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_perplexity": loss.exp()}, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, and the schedule of its learning rate."""
        options = self.hparams
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[options.optimizer]
        optimizer = kind(self.parameters(), lr=options.learning_rate)
        schedule: LRScheduler | ReduceLROnPlateau
        if options.milestones is None:
            schedule = ReduceLROnPlateau(optimizer, factor=1 / options.decay, patience=0, threshold=0.0)
        else:
            schedule = MultiStepLR(optimizer, list(options.milestones), 1 / options.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss", "strict": False}}

    def lr_scheduler_step(self, scheduler: LRScheduler | ReduceLROnPlateau, metric: Any) -> None:
        """Step a schedule of milestones; the other one is stepped by the validation."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    # ---- checks and checkpoints -------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Check the vocabulary."""
        self._check_vocabulary()

    def on_validation_start(self) -> None:
        """Check the vocabulary."""
        self._check_vocabulary()

    def on_test_start(self) -> None:
        """Check the vocabulary."""
        self._check_vocabulary()

    def _check_vocabulary(self) -> None:
        size = getattr(self._data(), "vocabulary_size", 0)
        if size > self.hparams.vocabulary_size:
            raise ValueError(
                f"`vocabulary_size` of the model must be at least that of the text, {size}, got "
                f"{self.hparams.vocabulary_size}: set `--model.vocabulary_size {size}`"
            )

    def _data(self) -> object:
        return getattr(self.trainer, "datamodule", None)  # which is not there if data loaders were given

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the training state of all processes, which Lightning asks for in all of them."""
        if self._train_state is not None:
            checkpoint["train_state"] = _map(self._of_all_processes, self._train_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training state."""
        self._train_state = checkpoint.get("train_state")

    def on_train_start(self) -> None:
        """Take the part of a restored training state that belongs to this process."""
        if self._train_state is not None:
            self._train_state = _map(self._of_this_process, self._train_state)

    def _of_all_processes(self, state: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return state
        gathered = self.all_gather(state)
        assert isinstance(gathered, Tensor)
        return torch.cat(list(gathered), dim=1)

    def _of_this_process(self, state: Tensor) -> Tensor:
        return state.chunk(self.trainer.world_size, dim=1)[self.trainer.global_rank].to(self.device)


def _total_nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of negative log-likelihoods, and the number of tokens that count."""
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets != IGNORED).sum()


def _map(function: Callable[[Tensor], Tensor], state: State) -> State:
    return function(state) if isinstance(state, Tensor) else (function(state[0]), function(state[1]))
