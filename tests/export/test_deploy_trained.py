"""A network that was trained with the callback keeps its accuracy in int8."""

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_balq import BalancedQuantization
from lightning_balq.export import deploy_report, to_deploy
from recipes.data.digits import Digits
from recipes.digits import digits
from recipes.models.classifier import ImageClassifier
from tests.helpers import assert_equal


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_accuracy_on_all_test_images_is_that_of_the_quantized_network(tmp_path):
    torch.manual_seed(0)
    model = ImageClassifier("digits_cnn", classes=10, optimizer="adamw", learning_rate=0.005, schedule="cosine")
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[BalancedQuantization(weight_bits=4, activation_bits=4, record_every_n_steps=0, verbose=0)],
    )  # fmt: skip
    trainer.fit(model, datamodule=Digits())
    model.eval()
    deployed = to_deploy(model)
    assert [layer.norm for layer in deploy_report(deployed).int8] == ["network.4", "network.8"]
    images, labels = digits()[1].tensors
    with torch.no_grad():
        expected, actual = model(images), deployed(images)
    accuracy = float((expected.argmax(dim=1) == labels).double().mean())
    assert accuracy > 0.8
    assert abs(float((actual.argmax(dim=1) == labels).double().mean()) - accuracy) <= 0.0005
    assert_equal(actual.argmax(dim=1), expected.argmax(dim=1))
    # The median: rounding can move an activation over a threshold.
    assert float((actual - expected).abs().median()) <= 1e-6 * float(expected.abs().max())
