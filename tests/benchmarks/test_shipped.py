import re

import pytest
import torch
from lightning.pytorch import Trainer
from packaging.version import Version

from benchmarks import shipped
from benchmarks.make_tables import TABLES
from benchmarks.records import read
from benchmarks.shipped import NOT_MEASURED, evaluate, evaluate_all, shipped_table
from benchmarks.shipped_forms import FLOAT, INTEGER, PACKED, PORTABLE, PROGRAM, PYTORCH, Form
from lightning_balq import BalancedQuantization
from recipes.data.markov import MarkovText
from recipes.models.language import LanguageModel
from tests.benchmarks.speed import record

RECIPE = """
data: {class_path: MarkovText, init_args: {batch_size: 4, eval_batch_size: 50}}
model: {class_path: LanguageModel}
"""


@pytest.fixture
def trained(tmp_path):
    """Recipe and checkpoint of a small language model."""
    pytest.importorskip("onnxruntime", reason="onnxruntime has no wheels for this Python")
    if Version(torch.__version__) < Version("2.8"):
        pytest.skip("ONNX export needs torch 2.8")
    (tmp_path / "small.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu", max_steps=3, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[BalancedQuantization(weight_bits=2, activation_bits=2, include=["*", "type:Embedding"],
                                        quantize_first_last=True, scale="mean", verbose=0)],
    )  # fmt: skip
    trainer.fit(LanguageModel(vocabulary_size=12, units=8), datamodule=MarkovText(batch_size=4))
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    return tmp_path / "small.yaml", tmp_path / "small.ckpt"


@pytest.mark.filterwarnings("ignore")  # of torch, about its own exporter
def test_every_form_is_tested_and_timed(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "THREADS", (1,))
    output = tmp_path / "records.jsonl"
    shipped.main([*map(str, trained), "--repeats", "2", "--output", str(output)])
    found = {record["case"]: record for record in read(output)}
    assert list(found) == [PYTORCH, FLOAT, PACKED, PORTABLE, INTEGER]
    assert "metric" not in found[FLOAT] and found[PACKED]["bytes"] < found[FLOAT]["bytes"]
    exact = found[PYTORCH]
    assert exact["metric"] == "test_perplexity" and 1 < exact["value"] < 20
    assert found[PACKED]["difference"] == 0 == found[PACKED]["median_error"]
    for name in (PORTABLE, INTEGER):
        assert abs(found[name]["difference"]) <= 5e-4 * exact["value"]
        assert found[name]["median_error"] <= 1e-6  # roundings of float sums
        assert found[name]["argmax_agreement"] > 0.99
        assert found[name]["layer_error"] <= 1e-6
    assert shipped_table(list(found.values())).startswith("`small`:")


@pytest.mark.parametrize(("recipe", "said"), [("no.yaml", "does not exist"), ("other.yaml", "of Cifar10, .*got Other")])
def test_wrong_input_is_named(tmp_path, monkeypatch, capsys, recipe, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("data: {class_path: Other}\nmodel: {class_path: LanguageModel}")
    with pytest.raises(SystemExit, match="2"):
        shipped.main([recipe, "no.ckpt"])
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore")
def test_a_form_that_computes_something_else_is_noticed(trained):
    network = shipped.read(*trained, None)
    right = network.quantized.forward

    def wrong(tokens, state=None):
        logits, after = right(tokens, state)
        return logits.flip(-1), after

    forms = {FLOAT: Form(1, right), PYTORCH: Form(2, right), "wrong": Form(3, wrong)}
    tested = evaluate_all(network, forms)
    assert tested[FLOAT] == {"bytes": 1}
    assert tested[PYTORCH]["difference"] == 0
    assert tested["wrong"]["difference"] > 0.1
    assert tested["wrong"]["argmax_agreement"] < 0.5 and tested["wrong"]["median_error"] > 1e-3
    assert network.quantized.forward == right
    assert evaluate(network, forms[PYTORCH])[0] == ("test_perplexity", tested[PYTORCH]["value"])


def test_the_table_has_a_row_for_each_form_of_the_last_run_of_each_network():
    def made(run, network, threads, seconds):
        tested = {"metric": "test_accuracy", "value": 0.5, "difference": -0.001, "median_error": 1e-7,
                  "argmax_agreement": 0.995, "layer_error": 2e-7}  # fmt: skip
        rows = [
            record("shipped", case, [time], run=run, network=network, threads=threads) | {"bytes": 1500, **more}
            for case, time, more in ((FLOAT, seconds, {}), (PACKED, 1.0, tested), (PROGRAM, 2.0, tested))
        ]
        return rows

    table = shipped_table(
        [*made("1", "a", 1, 9.0), *made("2", "a", 1, 4.0), *made("2", "a", 2, 2.0), *made("1", "b", 1, 1.0)]
    )
    lines = table.splitlines()
    assert lines[0] == "`a`:"
    assert lines[5] == (
        f"| {PACKED} | 1.5 | 50.000 | -0.10000 | 99.50% | 1.0e-07 | 2.0e-07 | 4.00 (4.00-4.00) | 2.00 (2.00-2.00) |"
    )
    assert "`b`:" in lines and table.count(f"| {PROGRAM} |") == 2
    assert shipped_table([]) == NOT_MEASURED
    assert TABLES["shipped"][1] is shipped_table
