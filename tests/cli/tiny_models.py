"""Models that the command line builds by name."""

import torch
from lightning.pytorch import LightningModule
from torch import nn

from tests.callback.tiny import TinyModel, tiny_net


class Sized(TinyModel):
    """Has a hyper-parameter that decides about shapes."""

    def __init__(self, width: int, classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * width, width), nn.ReLU(), nn.Linear(width, classes),
        )  # fmt: skip


class Late(TinyModel):
    """Builds its layers where Lightning asks for them."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = tiny_net()


class Tokens(LightningModule):
    """Takes integers, and two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.rnn = nn.LSTM(8, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, tokens: torch.Tensor, shift: int = 0) -> dict[str, torch.Tensor]:
        hidden, state = self.rnn(self.embedding((tokens + shift) % 11))
        return {"logits": self.head(hidden), "state": state[0]}


def failing() -> nn.Module:
    raise RuntimeError("no weights at hand")


def nothing() -> int:
    return 3


NUMBER = 3
