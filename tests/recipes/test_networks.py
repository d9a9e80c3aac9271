"""Networks against literal descriptions of those of torchvision and of the papers."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_balq import QuantizationConfig, quantize_
from lightning_balq.nn import BalancedQuantizer, quantized_layers
from recipes.models.networks import NETWORKS, build

CLASSES = {"resnet20": 10, "digits_cnn": 10}
"""Of the data that a network is for, where it is not ImageNet."""

PARAMETERS = {  # torchvision's documentation (`num_params`; with auxiliary heads: its source); He et al. 2015 by hand
    "resnet18": 11_689_512, "resnet50": 25_557_032, "googlenet": 6_624_904, "googlenet_auxiliary": 13_004_888,
    "resnet20": 432 + 6 * 2304 + (4608 + 5 * 9216) + (18432 + 5 * 36864) + 2 * 7 * 16 + 2 * 6 * (32 + 64) + 650,
    "alexnet": 96 * 3 * 144 + 256 * 48 * 25 + 384 * 256 * 9 + 384 * 192 * 9 + 256 * 192 * 9
    + 9216 * 4096 + 4096 * 4096 + 1000 * 4097 + 2 * (256 + 384 + 384 + 256 + 4096 + 4096),
    "digits_cnn": 16 * 9 + 32 * 16 * 9 + 32 * 32 * 9 + 2 * (16 + 32 + 32) + 10 * 129,
}  # fmt: skip

LAYERS = {"resnet18": 21, "resnet50": 54, "googlenet": 58, "googlenet_auxiliary": 64, "resnet20": 20, "alexnet": 8,
          "digits_cnn": 4}  # fmt: skip
"""Convolutions, those of shortcuts included, and linear layers."""

PLAIN = {nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Dropout,
         nn.Flatten}  # fmt: skip


FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
"""Tolerance for what GoogLeNet computes in float64: the constants that its images are scaled by are float32."""


def made(name, classes=None):
    torch.manual_seed(0)
    return build(name, classes or CLASSES.get(name, 1000))


def images(name, size=64, count=2):
    shape = (1, 8, 8) if name == "digits_cnn" else (3, 32, 32) if name == "resnet20" else (3, size, size)
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


# ---- names and shapes ------------------------------------------------------------------------------------------------


def conv(name, outputs, inputs, kernel):
    return [(f"{name}.weight", (outputs, inputs, kernel, kernel))]


def norm(name, width):
    vectors = [(f"{name}.{part}", (width,)) for part in ("weight", "bias", "running_mean", "running_var")]
    return [*vectors, (f"{name}.num_batches_tracked", ())]


def linear(name, outputs, inputs):
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def resnet18_keys():
    keys = [*conv("conv1", 64, 3, 7), *norm("bn1", 64)]
    for layer, width, inputs in (("layer1", 64, 64), ("layer2", 128, 64), ("layer3", 256, 128), ("layer4", 512, 256)):
        for block, before in ((f"{layer}.0", inputs), (f"{layer}.1", width)):
            keys += conv(f"{block}.conv1", width, before, 3) + norm(f"{block}.bn1", width)
            keys += conv(f"{block}.conv2", width, width, 3) + norm(f"{block}.bn2", width)
            if block in ("layer2.0", "layer3.0", "layer4.0"):
                keys += conv(f"{block}.downsample.0", width, before, 1) + norm(f"{block}.downsample.1", width)
    return [*keys, *linear("fc", 1000, 512)]


def resnet50_keys():
    keys = [*conv("conv1", 64, 3, 7), *norm("bn1", 64)]
    for layer, blocks, inputs, width, outputs in (
        ("layer1", 3, 64, 64, 256), ("layer2", 4, 256, 128, 512), ("layer3", 6, 512, 256, 1024),
        ("layer4", 3, 1024, 512, 2048),
    ):  # fmt: skip
        for block in range(blocks):
            name, before = f"{layer}.{block}", outputs if block else inputs
            keys += conv(f"{name}.conv1", width, before, 1) + norm(f"{name}.bn1", width)
            keys += conv(f"{name}.conv2", width, width, 3) + norm(f"{name}.bn2", width)
            keys += conv(f"{name}.conv3", outputs, width, 1) + norm(f"{name}.bn3", outputs)
            if block == 0:
                keys += conv(f"{name}.downsample.0", outputs, inputs, 1) + norm(f"{name}.downsample.1", outputs)
    return [*keys, *linear("fc", 1000, 2048)]


INCEPTIONS = """
    3a  192   64   96 128   16  32   32
    3b  256  128  128 192   32  96   64
    4a  480  192   96 208   16  48   64
    4b  512  160  112 224   24  64   64
    4c  512  128  128 256   24  64   64
    4d  512  112  144 288   32  64   64
    4e  528  256  160 320   32 128  128
    5a  832  256  160 320   32 128  128
    5b  832  384  192 384   48 128  128
"""  # inputs, 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5 (which is 3x3 in torchvision), projection of the pool


def googlenet_keys(auxiliary):
    def unit(name, outputs, inputs, kernel):
        return conv(f"{name}.conv", outputs, inputs, kernel) + norm(f"{name}.bn", outputs)

    keys = unit("conv1", 64, 3, 7) + unit("conv2", 64, 64, 1) + unit("conv3", 192, 64, 3)
    for row in INCEPTIONS.split("\n")[1:-1]:
        name, *numbers = row.split()
        inputs, single, reduce3, conv3, reduce5, conv5, pool = map(int, numbers)
        keys += unit(f"inception{name}.branch1", single, inputs, 1)
        keys += unit(f"inception{name}.branch2.0", reduce3, inputs, 1)
        keys += unit(f"inception{name}.branch2.1", conv3, reduce3, 3)
        keys += unit(f"inception{name}.branch3.0", reduce5, inputs, 1)
        keys += unit(f"inception{name}.branch3.1", conv5, reduce5, 3)
        keys += unit(f"inception{name}.branch4.1", pool, inputs, 1)
    for name, inputs in (("aux1", 512), ("aux2", 528)) if auxiliary else ():
        keys += unit(f"{name}.conv", 128, inputs, 1)
        keys += linear(f"{name}.fc1", 1024, 128 * 4 * 4) + linear(f"{name}.fc2", 1000, 1024)
    return [*keys, *linear("fc", 1000, 1024)]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("resnet18", resnet18_keys()),
        ("resnet50", resnet50_keys()),
        ("googlenet", googlenet_keys(auxiliary=False)),
        ("googlenet_auxiliary", googlenet_keys(auxiliary=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_shapes_and_order_of_weights_are_those_of_torchvision(name, keys):
    assert [(key, tuple(value.shape)) for key, value in made(name).state_dict().items()] == keys


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_published_number_of_parameters_in_plain_layers(name):
    network = made(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    leaves = [type(module) for module in network.modules() if not list(module.children())]
    assert set(leaves) - PLAIN == ({type(network.layer2[0].downsample)} if name == "resnet20" else set())
    assert sum(kind in (nn.Conv2d, nn.Linear) for kind in leaves) == LAYERS[name]


def test_resnet20_has_269722_parameters():
    assert PARAMETERS["resnet20"] == 269_722


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_classes_asked_for(name):
    assert made(name, classes=7).eval()(images(name)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19", 10), "`network` must be one of alexnet, .*, got 'resnet19'"),
        (("resnet20", 1), "`classes` must be at least 2, got 1"),
    ],
)
def test_an_unknown_network_or_too_few_classes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)


# ---- what is computed ------------------------------------------------------------------------------------------------


class Transcript:
    """A network read literally from its published description, with the weights of ours, in evaluation."""

    def __init__(self, network):
        self.weights = network.state_dict()

    def conv(self, x, name, **options):
        return F.conv2d(x, self.weights[f"{name}.weight"], **options)

    def norm(self, x, name, eps=1e-5):
        mean, var = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps=eps)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def resnet(self, x, blocks):
        x = self.conv(x, "conv1", stride=2, padding=3)
        x = F.max_pool2d(F.relu(self.norm(x, "bn1")), 3, 2, 1)
        for layer, count in enumerate(blocks, start=1):
            for block in range(count):
                x = self.residual(x, f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1)
        return self.linear(x.mean((2, 3)), "fc")

    def residual(self, x, name, stride):
        shortcut = x
        if f"{name}.downsample.0.weight" in self.weights:
            shortcut = self.norm(self.conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
        if f"{name}.conv3.weight" in self.weights:
            x = F.relu(self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1"))
            x = F.relu(self.norm(self.conv(x, f"{name}.conv2", stride=stride, padding=1), f"{name}.bn2"))
            return F.relu(self.norm(self.conv(x, f"{name}.conv3"), f"{name}.bn3") + shortcut)
        x = F.relu(self.norm(self.conv(x, f"{name}.conv1", stride=stride, padding=1), f"{name}.bn1"))
        return F.relu(self.norm(self.conv(x, f"{name}.conv2", padding=1), f"{name}.bn2") + shortcut)

    def cifar_resnet(self, x):
        x = F.relu(self.norm(self.conv(x, "conv1", padding=1), "bn1"))
        for layer, width in ((1, 16), (2, 32), (3, 64)):
            for block in range(3):
                name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
                shortcut = x.new_zeros(len(x), width, x.shape[2] // stride, x.shape[3] // stride)
                shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
                x = F.relu(self.norm(self.conv(x, f"{name}.conv1", stride=stride, padding=1), f"{name}.bn1"))
                x = F.relu(self.norm(self.conv(x, f"{name}.conv2", padding=1), f"{name}.bn2") + shortcut)
        return self.linear(x.mean((2, 3)), "fc")

    def unit(self, x, name, **options):
        return F.relu(self.norm(self.conv(x, f"{name}.conv", **options), f"{name}.bn", eps=0.001))

    def inception(self, x, name):
        pooled = F.max_pool2d(x, 3, 1, 1)
        branches = [
            self.unit(x, f"{name}.branch1"),
            self.unit(self.unit(x, f"{name}.branch2.0"), f"{name}.branch2.1", padding=1),
            self.unit(self.unit(x, f"{name}.branch3.0"), f"{name}.branch3.1", padding=1),
            self.unit(pooled, f"{name}.branch4.1"),
        ]
        return torch.cat(branches, 1)

    def auxiliary(self, x, name):
        x = self.unit(F.adaptive_avg_pool2d(x, (4, 4)), f"{name}.conv")
        return self.linear(F.relu(self.linear(x.flatten(1), f"{name}.fc1")), f"{name}.fc2")

    def googlenet(self, x):
        """Logits of the network and, where it has them, of its auxiliary heads."""
        red, green, blue = x[:, 0], x[:, 1], x[:, 2]
        red = red * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
        green = green * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
        blue = blue * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
        x = self.unit(torch.stack([red, green, blue], 1), "conv1", stride=2, padding=3)
        x = self.unit(F.max_pool2d(x, 3, 2, ceil_mode=True), "conv2")
        x = F.max_pool2d(self.unit(x, "conv3", padding=1), 3, 2, ceil_mode=True)
        heads = []
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            x = self.inception(x, f"inception{name}")
            head = {"4a": "aux1", "4d": "aux2"}.get(name)
            if f"{head}.fc1.weight" in self.weights:
                heads.append(self.auxiliary(x, head))
            if name in ("3b", "4e"):
                x = F.max_pool2d(x, 3 if name == "3b" else 2, 2, ceil_mode=True)
        return [self.linear(x.mean((2, 3)), "fc"), *heads]

    def alexnet(self, x):
        x = F.relu(self.conv(x, "conv0", stride=4))
        x = self.norm(self.conv(x, "conv1", padding=2, groups=2), "bn1", eps=1e-4)
        x = F.max_pool2d(F.relu(F.pad(x, (0, 1, 0, 1), value=-math.inf)), 3, 2)  # 54 to 27 pixels: "SAME"
        x = self.norm(self.conv(x, "conv2", padding=1), "bn2", eps=1e-4)
        x = F.max_pool2d(F.relu(F.pad(x, (1, 1, 1, 1), value=-math.inf)), 3, 2)  # 27 to 14 pixels
        x = F.relu(self.norm(self.conv(x, "conv3", padding=1, groups=2), "bn3", eps=1e-4))
        x = F.max_pool2d(F.relu(self.norm(self.conv(x, "conv4", padding=1, groups=2), "bn4", eps=1e-4)), 3, 2)
        assert x.shape[1:] == (256, 6, 6)
        x = F.relu(self.norm(F.linear(x.flatten(1), self.weights["fc0.weight"]), "bnfc0", eps=1e-4))
        x = F.relu(self.norm(F.linear(x, self.weights["fc1.weight"]), "bnfc1", eps=1e-4))
        return self.linear(x, "fct")


@torch.no_grad()
def settled(name):
    """A network in float64 whose batch norms have seen something, in evaluation."""
    network = made(name, classes=10).double().train()
    generator = torch.Generator().manual_seed(2)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
            module.momentum = 1.0
    network(images(name, count=8).double())
    return network.eval()


@pytest.mark.parametrize(
    ("name", "transcribe", "size"),
    [
        ("resnet18", lambda network, x: Transcript(network).resnet(x, (2, 2, 2, 2)), 64),
        ("resnet50", lambda network, x: Transcript(network).resnet(x, (3, 4, 6, 3)), 64),
        ("resnet20", lambda network, x: Transcript(network).cifar_resnet(x), 32),
        ("googlenet", lambda network, x: Transcript(network).googlenet(x)[0], 75),
        ("alexnet", lambda network, x: Transcript(network).alexnet(x), 224),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_a_network_computes_what_its_description_says(name, transcribe, size):
    network, x = settled(name), images(name, size).double()
    logits = network(x)
    assert logits.std(0).min() > 1e-3
    # means are summed in another order
    assert_close(logits, transcribe(network, x), **FLOAT32 if name == "googlenet" else {"rtol": 1e-9, "atol": 1e-9})


@torch.no_grad()
def test_auxiliary_heads_are_there_in_training_and_read_4a_and_4d():
    network, x = settled("googlenet_auxiliary"), images("googlenet", 75).double()
    assert isinstance(network(x), torch.Tensor)
    expected = Transcript(network).googlenet(x)
    network.training = True  # batch norm and dropout are left in evaluation
    found = network(x)
    assert len(found) == 3
    for logits, others in zip(found, expected, strict=True):
        assert_close(logits, others, **FLOAT32)


@torch.no_grad()
def test_googlenet_without_auxiliary_heads_loads_the_weights_of_one_with_them():
    network, without = settled("googlenet_auxiliary"), made("googlenet", classes=10).double().eval()
    without.load_state_dict(network.state_dict(), strict=True)
    x = images("googlenet").double()
    assert_close(without(x), network(x), rtol=0, atol=0)
    inside = nn.ModuleDict({"network": without})  # as in a classifier, where names have a prefix
    inside.load_state_dict({f"network.{key}": value for key, value in network.state_dict().items()}, strict=True)
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"network.aux3.x\""):
        inside.load_state_dict(inside.state_dict() | {"network.aux3.x": x}, strict=True)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"digits_cnn"}))  # which is as torch makes it
def test_initial_weights_are_as_published(name):
    network = made(name)
    for weight in (module.weight for module in network.modules() if isinstance(module, nn.Conv2d)):
        if name.startswith("googlenet"):
            # a normal distribution that is cut at two deviations has 0.8796 of the deviation
            assert weight.abs().max() <= 0.02
            deviation = 0.01 * 0.8796
        else:
            count = weight[0].numel() if name == "alexnet" else weight[:, 0].numel()
            deviation = math.sqrt(2 / count)
        # the deviation of n normal values is known to 1 / sqrt(2 n); five times that
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * weight.numel()))


# ---- quantized -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_all_layers_but_the_ends_are_quantized_and_learn(name):
    network = made(name, classes=10).train()
    exclude = ["aux?.fc2"] if name == "googlenet_auxiliary" else []
    options = {"weight": BalancedQuantizer(bits=2), "activation_bits": 2, "exclude": exclude}
    quantize_(network, QuantizationConfig(**options))
    layers = {layer for layer, _, _ in quantized_layers(network)}
    assert len(layers) == LAYERS[name] - 2 - 2 * len(exclude)
    outputs = network(images(name))
    sum(head.sum() for head in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
