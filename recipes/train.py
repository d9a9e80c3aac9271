"""Train, validate or test a language model: settings from YAML files and from the command line, which wins.

Run:  python -m recipes.train fit --config recipes/ptb_lstm_w2a2.yaml --data.path FOLDER
      python -m recipes.train test --config recipes/ptb_lstm_w2a2.yaml --data.path FOLDER --ckpt_path FILE
      python -m recipes.train fit --help

How weights and activations are quantized is one option; without it the network is float:

      --quantization UniformQuantization --quantization.weight_bits 2 --quantization.scale mean
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_balq.callback import QuantizationCallback
from recipes.configuration import expand
from recipes.data import markov, text  # noqa: F401  # `--data` takes the name of any class that is imported
from recipes.data.module import TextModule
from recipes.models.language import LanguageModel
from recipes.random_state import RandomState
from recipes.weight_clipping import WeightClipping


class TrainingProgram(LightningCLI):
    """Command line with ``--quantization``, ``--weight_clipping``, ``--init_from`` and ``--checkpoint`` added."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning that a language model has."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_subclass_arguments(QuantizationCallback, "quantization", required=False)
        parser.add_argument(
            "--weight_clipping", type=float | None, default=None, help="Largest magnitude of a weight; null clips none."
        )
        parser.add_argument(
            "--init_from", type=str | None, default=None, help="Checkpoint whose weights `fit` starts with, no more."
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": "val_loss", "checkpoint.save_last": True})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a command line whose configuration files may have bases."""
        arguments = sys.argv[1:] if args is None else args
        assert isinstance(arguments, list)
        try:
            expanded = expand(arguments)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        self.config = parser.parse_args(expanded)

    def _parse_ckpt_path(self) -> None:
        """Do not let the settings in a checkpoint win over those of this run, as Lightning does."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with a callback for each option that is given."""
        settings = self.config_init[self.subcommand]
        callbacks = list(settings["trainer"]["callbacks"] or [])
        if settings["weight_clipping"] is not None:
            callbacks.append(WeightClipping(settings["weight_clipping"]))
        if settings["quantization"] is not None:
            callbacks.append(settings["quantization"])
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def before_fit(self) -> None:
        """Load initial weights, if asked to."""
        path = self.config_init["fit"]["init_from"]
        if path is not None:
            load_weights(self.model, Path(path))


def load_weights(model: LightningModule, path: Path) -> None:
    """Load the weights of a checkpoint, and nothing else of it.

    Args:
        model: the model to load into, float or quantized.
        path: checkpoint of a float or quantized model of the same shape.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: if names or shapes of weights differ.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`init_from` must be a checkpoint, the file {path} does not exist")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"], strict=True)


def main(arguments: Sequence[str] | None = None) -> TrainingProgram:
    """Run what the command line says.

    Args:
        arguments: of the command line; those of this process by default.

    Returns:
        The program, with the model and the Trainer that were run.
    """
    return TrainingProgram(
        LanguageModel,
        TextModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": [RandomState()],
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}},
        },
        args=None if arguments is None else list(arguments),
    )


if __name__ == "__main__":
    main()
