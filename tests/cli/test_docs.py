"""The commands that docs/command.md shows do what it says, one after the other."""

import re
import shlex
import sys

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_balq import BalancedQuantization
from lightning_balq.cli import comparison
from tests.callback.tiny import quiet_trainer
from tests.cli.commands import MISSING, run
from tests.helpers import ROOT, randn

PAGE = (ROOT / "docs" / "command.md").read_text()
COMMANDS = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^balq .*$", PAGE, flags=re.MULTILINE)]
MODEL = """
from torch import nn
from torch.nn import functional as F

from tests.callback.tiny import TinyModel


class MyModel(TinyModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 3),
        )
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folder with the package, the checkpoint and the records that the page speaks of."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from my_package.models import MyModel

    torch.manual_seed(0)
    logger = CSVLogger(tmp_path)
    callback = BalancedQuantization(4, 4, verbose=0, record_every_n_steps=1)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], logger=logger)
    data = TensorDataset(randn(24, 3, 32, 32), torch.arange(24) % 3)
    trainer.fit(MyModel(), DataLoader(data, 8))
    trainer.save_checkpoint("epoch=9.ckpt")
    yield tmp_path
    for name in ("my_package", "my_package.models"):
        del sys.modules[name]


def test_commands_of_the_page_run(place, capsys):
    assert {arguments[0] for arguments in COMMANDS} == {"inspect", "report", "pack", "export", "verify"}
    for arguments in COMMANDS:
        if not (MISSING and any(argument.endswith(".onnx") for argument in arguments)):
            assert run(*arguments) == 0, arguments
    made = {path.name for path in place.iterdir()} - {"my_package", "lightning_logs", "epoch=9.ckpt"}
    assert made >= {"network.html", "training.html", "net.safetensors", "net.pt2"}
    assert ("net.onnx" in made) == (not MISSING)


def test_the_rule_of_the_page_is_the_rule():
    rule = " ".join(PAGE[PAGE.index("A file agrees if") : PAGE.index("With a hundred rows")].split())
    assert f"each layer is at most {comparison.LAYER_MEDIAN:.0e} ".replace("e-0", "e-") in rule
    assert f"of the outputs is at most {comparison.MEDIAN:.0e} ".replace("e-0", "e-") in rule
    assert f"in at least {comparison.ARGMAX * 100:.0f} % of the rows" in rule
    assert f"equal but for {comparison.TIE:.0e} ".replace("e-0", "e-") in rule
