"""Train, validate or test a model of the recipes: settings from YAML files and from the command line, which wins.

Run:  python -m recipes.train fit --config recipes/ptb_lstm_w2a2.yaml --data.path FOLDER
      python -m recipes.train test --config recipes/ptb_lstm_w2a2.yaml --data.path FOLDER --ckpt_path FILE
      python -m recipes.train fit --help

Model and data are classes, here or elsewhere: `LanguageModel` or `ImageClassifier`, `PennTreebank`, `MarkovText` or
`package.module.Class`. `--model LanguageModel --model.units 300` sets what a file would say as

      model:
        class_path: LanguageModel
        init_args: {units: 300}

Two checkpoints are kept: the one with the lowest `val_loss`, or the best by `--checkpoint.monitor` and
`--checkpoint.mode`, and `last.ckpt`, of the last epoch, which `--ckpt_path` goes on from.

How weights and activations are quantized is one option; without it the network is float:

      --quantization UniformQuantization --quantization.weight_bits 2 --quantization.scale mean

The files in `recipes/methods` set it for methods that have a name; several files are merged, the last one wins:

      --config recipes/digits_cnn.yaml --config recipes/methods/lsq.yaml --quantization.weight_bits 2
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_balq.callback import QuantizationCallback
from recipes.configuration import expand

# `--data` and `--model` take the name of any class that is imported.
from recipes.data import cifar10, digits, imagenet, markov, text  # noqa: F401
from recipes.models import classifier, language  # noqa: F401
from recipes.models.weight_files import load_, read
from recipes.random_state import RandomState
from recipes.weight_clipping import WeightClipping


class TrainingProgram(LightningCLI):
    """Command line with ``--quantization``, ``--weight_clipping``, ``--init_from`` and ``--checkpoint`` added.

    Args:
        *args: as for :class:`LightningCLI`.
        callbacks: come before all others in the Trainer, and see the model before it is quantized.
        **kwargs: as for :class:`LightningCLI`.
    """

    def __init__(self, *args: Any, callbacks: Sequence[Callback] = (), **kwargs: Any) -> None:
        self._first_callbacks = callbacks
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of Lightning that the models have."""
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
        parser.set_defaults({"checkpoint.monitor": "val_loss"})

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
        """Build the Trainer, with a callback for each option that is given, and one to go on from, `last.ckpt`."""
        settings = self.config_init[self.subcommand]
        asked = settings["trainer"]["callbacks"]
        callbacks = [*self._first_callbacks, *([asked] if isinstance(asked, Callback) else asked or [])]
        # `save_last` of the other one leaves out epochs that are not among the best, in Lightning 2.6.
        callbacks.append(
            ModelCheckpoint(
                settings["checkpoint"].dirpath, "last", enable_version_counter=False, save_on_train_epoch_end=True
            )
        )
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
        ValueError: if it is not a checkpoint, or names or shapes of weights differ.
    """
    checkpoint = read(path, "init_from")
    if "state_dict" not in checkpoint:
        raise ValueError(
            f"`init_from` must be a checkpoint of a run, {path} is none; a file of nothing but the weights of a "
            "network is for `--model.pretrained` of an ImageClassifier"
        )
    differences = load_(model, checkpoint["state_dict"])
    if differences:
        raise ValueError(f"`init_from` must be a checkpoint of the same model, {path} is of another: {differences}")


def main(arguments: Sequence[str] | None = None, callbacks: Sequence[Callback] = ()) -> TrainingProgram:
    """Run what the command line says.

    Args:
        arguments: of the command line; those of this process by default.
        callbacks: come before those that the command line asks for.

    Returns:
        The program, with the model and the Trainer that were run.
    """
    return TrainingProgram(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": [RandomState()],
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}},
        },
        args=None if arguments is None else list(arguments),
        callbacks=callbacks,
    )


if __name__ == "__main__":
    main()
