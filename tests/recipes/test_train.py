from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

import recipes
from lightning_balq import BalancedQuantization, DoReFaQuantization, UniformQuantization
from lightning_balq.callback import QuantizationCallback
from lightning_balq.nn import quantized_layers
from recipes.configuration import load
from recipes.train import TrainingProgram, load_weights, main
from recipes.weight_clipping import WeightClipping
from tests.recipes.tiny import tiny_model

pytest.importorskip("datasets")

FOLDER = Path(recipes.__file__).parent
FILES = sorted([*FOLDER.glob("ptb_*.yaml"), *FOLDER.glob("markov_*.yaml")])
METHODS = FOLDER / "methods"
FLOAT, QUANTIZED = FOLDER / "markov_lstm_float.yaml", FOLDER / "markov_lstm_w2a2.yaml"
SMALL = [
    "--model.units=8", "--data.batch_size=2", "--data.eval_batch_size=2", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
ONE_STEP = ["--trainer.fast_dev_run=1"]


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path, monkeypatch, short_markov):
    monkeypatch.chdir(tmp_path)


def run(action: str, file: Path, *options: str) -> TrainingProgram:
    return main([action, "--config", str(file), *SMALL, *options])


def callbacks(program: TrainingProgram, kind: type) -> list:
    return [callback for callback in program.trainer.callbacks if isinstance(callback, kind)]


def test_no_recipe_is_left_out():
    images = [*FOLDER.glob("image*.yaml"), *FOLDER.glob("cifar10_*.yaml")]
    assert len(FILES) == 15
    assert set(FOLDER.glob("*.yaml")) - {*FILES, *images} == {FOLDER / "modern.yaml", FOLDER / "digits_cnn.yaml"}


def test_the_recipe_for_digits_trains_float_and_by_a_method():
    pytest.importorskip("sklearn")
    file = FOLDER / "digits_cnn.yaml"
    for line in ("# Run:  python -m recipes.train fit --config recipes/digits_cnn.yaml", "# Cost: "):
        assert line in file.read_text()
    options = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *ONE_STEP]
    recipe = ["fit", "--config", str(file)]
    program = main([*recipe, *options])
    assert program.trainer.global_step == 1 and not callbacks(program, QuantizationCallback)
    bits = ["--quantization.weight_bits=3", "--quantization.activation_bits=2"]
    method = ["--config", str(METHODS / "pact.yaml"), *bits]
    (callback,) = callbacks(main([*recipe, *method, *options]), QuantizationCallback)
    assert type(callback) is DoReFaQuantization and callback.activation_range == "pact"
    assert (callback.weight_bits, callback.activation_bits) == (3, 2)


def test_a_method_file_takes_the_place_of_the_method_of_a_recipe():
    program = run("fit", QUANTIZED, *ONE_STEP, "--config", str(METHODS / "bwn.yaml"), "--quantization.weight_bits=1")
    (callback,) = callbacks(program, QuantizationCallback)
    assert type(callback) is UniformQuantization and (callback.scale, callback.weight_bits) == ("least_squares", 1)
    # what the recipe says and the method does not
    assert callback.quantize_first_last and callback.activation_bits == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_says_what_it_is_and_trains(file, corpus):
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith(f"# Run:  python -m recipes.train fit --config recipes/{file.name}") for line in comment)
    assert any(line.startswith("# Cost: ") for line in comment)
    data = ["--data.path", str(corpus), "--model.vocabulary_size=23"] if file.name.startswith("ptb") else []
    program = run("fit", file, *ONE_STEP, *data)
    assert program.trainer.global_step == 1
    layers = {name: state for name, _, state in quantized_layers(program.model)}
    if file.stem.endswith("float"):
        assert not layers and not callbacks(program, WeightClipping)
        return
    options = load(file)["quantization"]["init_args"]
    width = f"w{options['weight_bits']}" + (f"a{options['activation_bits']}" if options["activation_bits"] else "")
    assert file.stem.endswith(f"_{width}")
    recurrent = {"rnn.cells.0.kernel", "rnn.cells.0.recurrent"} if "sibling" in file.stem else {"rnn"}
    assert set(layers) == {"embedding", "softmax"} | recurrent
    assert {weight.bits for state in layers.values() for weight in state.weights.values()} == {options["weight_bits"]}
    (callback,) = callbacks(program, QuantizationCallback)
    assert (callback.activation_bits, callback.scale) == (options["activation_bits"], "mean")


def test_published_settings_are_those_of_the_papers():
    xu, he = load(FOLDER / "ptb_gru_w3a3.yaml"), load(FOLDER / "ptb_lstm_sibling_w2a2.yaml")
    assert xu["trainer"] == {"max_epochs": 80, "gradient_clip_val": 0.25}
    assert xu["data"]["init_args"]["steps"] == 30 and xu["weight_clipping"] == 1.0
    assert {key: xu["model"]["init_args"][key] for key in ("cell", "optimizer", "learning_rate", "decay")} == {
        "cell": "gru", "optimizer": "sgd", "learning_rate": 20.0, "decay": 1.2,
    }  # fmt: skip
    assert he["trainer"] == {"max_epochs": 100, "gradient_clip_val": 10.0}
    assert he["data"]["init_args"]["steps"] == 20
    options = ("optimizer", "learning_rate", "decay", "milestones", "dropout")
    assert {key: he["model"]["init_args"][key] for key in options} == {
        "optimizer": "adam", "learning_rate": 1e-3, "decay": 10.0, "milestones": [40, 80], "dropout": 0.5,
    }  # fmt: skip
    assert he["quantization"]["init_args"]["activation_range"] == "unit"


def test_the_method_is_one_option():
    program = run("fit", QUANTIZED, *ONE_STEP, "--quantization=UniformQuantization", "--quantization.scale=max")
    (callback,) = callbacks(program, QuantizationCallback)
    assert type(callback) is UniformQuantization and callback.scale == "max"
    assert callback.weight_bits == 2 and callback.quantize_first_last  # what the file says still holds


def test_without_a_file_the_options_make_a_network_quantized_or_float():
    common = ["fit", "--data=MarkovText", "--model=LanguageModel", "--model.vocabulary_size=12", *SMALL, *ONE_STEP]
    assert not callbacks(main(common), QuantizationCallback)
    options = ["--quantization=BalancedQuantization", "--quantization.quantize_first_last=true"]
    (callback,) = callbacks(main([*common, *options, "--quantization.center=median"]), QuantizationCallback)
    assert type(callback) is BalancedQuantization and callback.center == "median"


def test_null_makes_a_quantized_recipe_float():
    program = run("fit", QUANTIZED, *ONE_STEP, "--quantization=null", "--weight_clipping=null")
    assert not callbacks(program, QuantizationCallback) and not callbacks(program, WeightClipping)


def test_weights_are_clipped_before_their_codes_are_recorded():
    program = run("fit", QUANTIZED, *ONE_STEP, "--weight_clipping=0.05")
    kinds = [type(callback) for callback in program.trainer.callbacks]
    assert kinds.index(WeightClipping) < kinds.index(BalancedQuantization)
    assert program.model.rnn.weight_hh_l0.abs().max() <= 0.05


def test_options_win_over_files_wherever_they_stand(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.units=4", "--config", str(QUANTIZED), "--quantization.weight_bits=3", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert [printed["model"]["init_args"][key] for key in ("units", "vocabulary_size")] == [4, 12]
    assert printed["quantization"]["init_args"]["weight_bits"] == 3
    assert printed["checkpoint"]["monitor"] == "val_loss"
    assert printed["seed_everything"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nothing.yaml\n", "nothing.yaml does not exist"),
        ("base: a.yaml\n", "a file must not be its own base"),
        ("model: {width: 3}\n", "width"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path, capsys, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", str(tmp_path / "a.yaml"), "--data=MarkovText"])
    assert message in capsys.readouterr().err


def test_there_is_nothing_to_predict(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["predict"])
    assert "fit,validate,test" in capsys.readouterr().err


@pytest.fixture
def float_run(tmp_path):
    """A float run of one epoch; its checkpoint."""
    program = run("fit", FLOAT, "--trainer.max_epochs=1")
    return program, Path(program.trainer.log_dir) / "checkpoints" / "last.ckpt"


def test_a_run_leaves_metrics_checkpoints_and_its_settings(float_run):
    program, last = float_run
    log = Path(program.trainer.log_dir)
    assert "val_perplexity" in (log / "metrics.csv").read_text().splitlines()[0]
    assert [path.name for path in sorted(last.parent.iterdir())] == ["epoch=0-step=18.ckpt", "last.ckpt"]
    again = main(["fit", "--config", str(log / "config.yaml"), *ONE_STEP])
    assert again.model.hparams == program.model.hparams


def test_a_quantized_run_goes_on_from_the_checkpoint_of_a_float_one(float_run):
    before, last = float_run
    with pytest.warns(UserWarning, match="is that of a float model"):
        program = run("fit", QUANTIZED, f"--ckpt_path={last}", "--trainer.max_epochs=2")
    assert program.trainer.global_step == 2 * before.trainer.global_step
    assert program.trainer.current_epoch == 2
    assert [name for name, _, _ in quantized_layers(program.model)] == ["embedding", "rnn", "softmax"]
    # Adam counts its steps
    assert next(iter(program.trainer.optimizers[0].state.values()))["step"] == program.trainer.global_step


def test_a_quantized_run_starts_with_the_weights_of_a_float_one_and_nothing_else(float_run):
    before, last = float_run
    options = ["--model.learning_rate=0.0", "--weight_clipping=null"]
    program = run("fit", QUANTIZED, f"--init_from={last}", *ONE_STEP, *options)
    assert_close(program.model.state_dict(), before.model.state_dict(), rtol=0, atol=0)
    assert program.trainer.global_step == 1


def test_initial_weights_must_be_there_and_fit(float_run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`init_from` must be a file of .*nothing\.ckpt does not exist"):
        load_weights(tiny_model(), tmp_path / "nothing.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is of another: .* 'embedding\.weight' 12x8 instead of 12x4, "):
        load_weights(tiny_model(units=4), float_run[1])
    torch.save(tiny_model().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"must be a checkpoint of a run, .*bare\.pt is none"):
        load_weights(tiny_model(), tmp_path / "bare.pt")


@pytest.mark.parametrize("action", ["validate", "test"])
def test_a_checkpoint_is_evaluated(float_run, action):
    before, last = float_run
    program = run(action, FLOAT, f"--ckpt_path={last}")
    metrics = program.trainer.callback_metrics
    if action == "test":
        assert metrics["test_perplexity_ratio"] > 1
    else:
        assert metrics["val_perplexity"] == before.trainer.callback_metrics["val_perplexity"]


def test_settings_of_a_run_win_over_those_in_its_checkpoint(float_run):
    program = run("fit", FLOAT, f"--ckpt_path={float_run[1]}", "--trainer.max_epochs=2", "--model.dropout=0.25")
    assert program.model.hparams.dropout == 0.25 == program.model.dropout.p


def test_the_seed_decides():
    runs = [run("fit", QUANTIZED, *ONE_STEP, f"--seed_everything={seed}").model for seed in (0, 0, 1)]
    weights = [model.softmax.weight for model in runs]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
