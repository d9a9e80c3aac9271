"""Every recipe for images trains, says what it is, and states the setting it names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recipes
from lightning_balq import BalancedQuantization
from lightning_balq.nn import quantized_layers
from recipes.configuration import load
from recipes.models.networks import build
from recipes.train import TrainingProgram, main
from tests.recipes.pictures import encoded, noise, table, write_folders

FOLDER = Path(recipes.__file__).parent
FILES = sorted([*FOLDER.glob("image*.yaml"), *FOLDER.glob("cifar10_*.yaml")])
QUANTIZED = {"alexnet": 6, "googlenet": 56, "resnet18": 19, "resnet50": 52, "resnet20": 18}
"""Layers between the first and the last: convolutions, downsampling among them, and linear layers."""

pytestmark = pytest.mark.usefixtures("own_datasets", "no_seed")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return write_folders(tmp_path_factory.mktemp("photographs"), train=4, validation=4)


@pytest.fixture
def cifar(tmp_path) -> Path:
    names = [f"class {label}" for label in range(10)]
    for part in ("train", "test"):
        content = [encoded(noise(32, 32, seed)) for seed in range(4)]
        table(content, [0, 1, 2, 9], image="img", names=names).to_parquet(str(tmp_path / f"{part}-0.parquet"))
    return tmp_path


def run(*files: Path, path: Path, tmp_path: Path, options: tuple[str, ...] = ()) -> TrainingProgram:
    network = load(files[0])["model"]["init_args"]["network"]
    arguments = [word for file in files for word in ("--config", str(file))]
    arguments += [f"--data.path={path}", "--data.batch_size=2", "--data.eval_batch_size=2"]
    if not files[0].name.startswith("cifar10"):
        size = 224 if network == "alexnet" else 64  # its linear layers fit one size of image
        arguments += ["--model.classes=3", "--data.workers=0", f"--data.crop_size={size}", f"--data.resize_size={size}"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.fast_dev_run=1"]
    arguments += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_model_summary=false", *options]
    return main(["fit", *arguments])


def test_no_recipe_is_left_out():
    assert len(FILES) == 4 * 3 + 2 * 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_says_what_it_is_and_trains(file, photographs, tmp_path, request):
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith(f"# Run:  python -m recipes.train fit --config recipes/{file.name}") for line in comment)
    assert any(line.startswith("# Cost: ") for line in comment)
    is_cifar = file.name.startswith("cifar10")
    path = request.getfixturevalue("cifar") if is_cifar else photographs
    program = run(file, path=path, tmp_path=tmp_path)
    assert program.trainer.global_step == 1
    layers = list(quantized_layers(program.model))
    if file.stem.endswith("_float"):
        assert not layers
        return
    bits = int(file.stem[-1])
    assert file.stem.endswith(f"_w{bits}a{bits}")
    assert len(layers) == QUANTIZED[program.model.hparams.network]
    assert {(s.weights["weight"].bits, s.inputs["input"].bits) for _, _, s in layers} == {(bits, bits)}
    (callback,) = [callback for callback in program.trainer.callbacks if isinstance(callback, BalancedQuantization)]
    assert (callback.center, callback.scale, callback.activation_range) == ("mean", "max", "unit")  # the paper's


def test_settings_are_those_that_they_name():
    options = {file.stem: load(file)["model"]["init_args"] for file in FILES}
    assert {stem: value["network"] for stem, value in options.items()} == {stem: stem.split("_")[1] for stem in options}
    cifar = load(FOLDER / "cifar10_resnet20_w4a4.yaml")
    steps = [round(64_000 * share) for share in (0.5, 0.75, 1)]
    epochs = [round(step / 391) for step in steps]  # of 50 000 images, 128 a batch
    assert [*cifar["model"]["init_args"]["milestones"], cifar["trainer"]["max_epochs"]] == epochs
    alexnet = load(FOLDER / "imagenet_alexnet_w2a2.yaml")
    assert alexnet["data"]["init_args"]["batch_size"] == 128 and alexnet["model"]["init_args"]["milestones"] == [56, 64]
    resnet = load(FOLDER / "imagenet_resnet50_w2a2.yaml")
    assert resnet["trainer"] == {"max_epochs": 90} and resnet["checkpoint"] == {
        "monitor": "val_accuracy",
        "mode": "max",
    }


@pytest.mark.parametrize("recipe", ["imagenet_resnet18_w2a2.yaml", "imagenet_googlenet_w4a4.yaml"])
def test_the_modern_setting_goes_with_a_recipe_and_with_float_weights(recipe, photographs, tmp_path):
    network = recipe.split("_")[1]
    weights = build(network, 3).state_dict()
    torch.save(weights, tmp_path / "float.pt")
    options = (f"--model.pretrained={tmp_path / 'float.pt'}",)
    program = run(FOLDER / recipe, FOLDER / "modern.yaml", path=photographs, tmp_path=tmp_path, options=options)
    model = program.model
    assert (model.hparams.schedule, model.hparams.label_smoothing, model.hparams.learning_rate) == ("cosine", 0.1, 0.01)
    assert len(list(quantized_layers(model))) == QUANTIZED[network]
    # One step of warm-up from there.
    assert 0 < float((model.network.fc.bias - weights["fc.bias"]).abs().max()) < 0.02


def test_torchrun_starts_two_processes(photographs, tmp_path):
    """The command of docs/imagenet.md, with two processes on one machine without GPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "recipes.train", "fit", "--config", str(FOLDER / "imagenet_resnet18_w2a2.yaml")]
    command += [f"--data.path={photographs}", "--data.batch_size=4", "--data.eval_batch_size=2", "--data.workers=0"]
    command += ["--data.crop_size=32", "--data.resize_size=32", "--model.classes=3", "--trainer.devices=2"]
    command += ["--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    command += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    root = str(FOLDER.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 1
