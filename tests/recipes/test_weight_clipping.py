import pytest
import torch

from recipes.weight_clipping import WeightClipping
from tests.recipes.tiny import quiet_trainer, short_text, tiny_model


@pytest.mark.usefixtures("short_markov")
def test_weights_are_clipped_after_every_step_and_biases_are_not(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3.0)
    quiet_trainer(tmp_path, max_steps=1, max_epochs=-1, callbacks=[WeightClipping(0.05)]).fit(
        model, datamodule=short_text()
    )
    for name, parameter in model.named_parameters():
        assert (parameter.abs().max() <= 0.05) == ("weight" in name), name


def test_a_clipped_weight_is_seen_to_have_changed():
    """Caches of quantized weights go by the version of the tensor, which `weight.data` would not change."""
    model = tiny_model()
    before = model.softmax.weight._version
    WeightClipping(0.05).on_train_batch_end(None, model, None, None, 0)
    assert model.softmax.weight._version > before
    assert model.softmax.weight.requires_grad and model.softmax.weight.is_leaf


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_must_be_positive(bound):
    with pytest.raises(ValueError, match="`bound` must be more than 0, got"):
        WeightClipping(bound)
