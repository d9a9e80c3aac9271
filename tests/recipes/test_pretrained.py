import pytest
import torch
from torch.testing import assert_close

from recipes.models.classifier import ImageClassifier
from recipes.models.networks import build
from tests.recipes.tiny import RandomImages, quiet_trainer, tiny_classifier, tiny_model


@pytest.fixture
def saved(tmp_path):
    """Weights of ResNet-20 for 10 classes, and the file they are in."""
    torch.manual_seed(7)
    weights = build("resnet20", 10).state_dict()
    torch.save(weights, tmp_path / "resnet20.pth")
    return weights, tmp_path / "resnet20.pth"


def test_a_file_of_weights_is_where_a_network_begins(saved):
    weights, path = saved
    model = ImageClassifier("resnet20", 10, pretrained=str(path))
    assert_close(model.network.state_dict(), weights, rtol=0, atol=0)


def test_a_checkpoint_is_where_a_network_begins(tmp_path):
    before = tiny_classifier()
    trainer = quiet_trainer(tmp_path)
    trainer.fit(before, datamodule=RandomImages())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = tiny_classifier(seed=1, pretrained=str(tmp_path / "last.ckpt"))
    assert_close(model.network.state_dict(), before.network.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_loads_without_the_file_its_model_began_with(saved, tmp_path):
    weights, path = saved
    model = ImageClassifier("resnet20", 10, pretrained=str(path))
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    path.unlink()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert_close(loaded.network.state_dict(), weights, rtol=0, atol=0)


def test_a_file_of_an_old_torch_has_no_counters(saved):
    weights, path = saved
    torch.save({name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}, path)
    model = ImageClassifier("resnet20", 10, pretrained=str(path))
    assert_close(model.network.state_dict(), weights, rtol=0, atol=0)


def test_googlenet_begins_with_a_file_that_has_auxiliary_heads(tmp_path):
    weights = build("googlenet_auxiliary", 10).state_dict()
    torch.save(weights, tmp_path / "googlenet.pth")
    model = ImageClassifier("googlenet", 10, pretrained=str(tmp_path / "googlenet.pth"))
    expected = {name: value for name, value in weights.items() if not name.startswith("aux")}
    assert_close(dict(model.network.state_dict()), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"is for 10 classes \(it has other shapes: 'fc\.weight' 10x1024 instead"):
        ImageClassifier("googlenet", 3, pretrained=str(tmp_path / "googlenet.pth"))


def test_another_number_of_classes_is_named(saved):
    with pytest.raises(
        ValueError,
        match=r"of this network, with 100 classes; .*resnet20\.pth is for 10 classes \(it has other shapes: "
        r"'fc\.weight' 10x64 instead of 100x64, 'fc\.bias' 10 instead of 100\): set `--model\.classes 10`",
    ):
        ImageClassifier("resnet20", 100, pretrained=str(saved[1]))


def test_another_network_is_named_by_the_first_differences(saved, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"resnet20\.pth is of another network: it lacks 'layer2\.0\.downsample\.0\.weight', .* and \d+ more; "
        r"it has besides 'layer1\.2\.conv1\.weight', .*; it has other shapes: 'conv1\.weight' 16x3x3x3 instead of "
        r"64x3x7x7, ",
    ):
        ImageClassifier("resnet18", 10, pretrained=str(saved[1]))
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(tiny_model())
    trainer.save_checkpoint(tmp_path / "language.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"it lacks '0\.weight', .*; it has besides 'embedding\.weight', "):
        tiny_classifier(pretrained=str(tmp_path / "language.ckpt"))


def test_another_width_is_not_taken_for_another_number_of_classes(saved):
    weights, path = saved
    torch.save({**weights, "conv1.weight": weights["conv1.weight"][:8]}, path)
    with pytest.raises(
        ValueError, match=r"is of another network: it has other shapes: 'conv1\.weight' 8x3x3x3 instead"
    ):
        ImageClassifier("resnet20", 10, pretrained=str(path))


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match=r"`pretrained` must be a file of weights, .*weights\.pth does not"):
        tiny_classifier(pretrained=str(path))
    path.write_bytes(b"not torch")
    with pytest.raises(ValueError, match=r"`pretrained` must be a file of weights, .*weights\.pth cannot be read"):
        tiny_classifier(pretrained=str(path))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match=r"a file of weights by name, .*weights\.pth holds list"):
        tiny_classifier(pretrained=str(path))
    torch.save({"epoch": 3, "weights": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth holds other things: \['epoch', 'weights'\]"):
        tiny_classifier(pretrained=str(path))
