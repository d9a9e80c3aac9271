import pytest
import torch

from benchmarks.networks import NETWORKS


@pytest.mark.parametrize(
    ("name", "parameters"),
    # He et al. 2016: 11.7 and 0.27 million; LSTM: embedding, 4 gates of (300 + 300) inputs and 2 biases, softmax
    [
        ("ResNet-18, batch 16", 11_689_512),
        ("ResNet-20, batch 128", 269_722 + 2_752),  # 1x1 convolutions as shortcuts, where the paper pads
        ("LSTM, batch 20, 35 steps", 3_000_000 + 4 * 300 * (600 + 2) + 3_010_000),
        ("MLP, batch 256", 785 * 512 + 513 * 512 + 513 * 10),
    ],
)
def test_a_network_has_the_parameters_of_its_paper(name, parameters):
    with torch.device("meta"):
        network = NETWORKS[name].build()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_a_score_for_each_target_of_its_batch(name):
    inputs, targets = NETWORKS[name].batch()
    with torch.device("meta"):
        scores = NETWORKS[name].build()(inputs.to("meta"))
    assert scores.shape == (len(targets), NETWORKS[name].classes)


def test_the_target_of_a_word_is_the_next_one():
    words, targets = NETWORKS["LSTM, batch 20, 35 steps"].batch()
    assert torch.equal(words[1:].flatten(), targets[: -words.shape[1]])
