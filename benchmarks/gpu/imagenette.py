"""Test accuracy on Imagenette, ten classes of ImageNet, at 128 pixels: ResNet-18, all methods from scratch.

Question: does what holds for a small network and small images hold for ResNet-18?  Not measured: ImageNet itself.
Run: python -m benchmarks.gpu.imagenette --data FOLDER --results FOLDER --budget 580

The recipe is that of the float network, with its schedule for 40 epochs (``--epochs``); first and last layer stay
float. FOLDER holds Parquet files or class folders. Images are decoded once, and cropped on the GPU.
"""

from benchmarks.gpu.cifar10 import STUDY as CIFAR10
from benchmarks.gpu.study import Study, main

STUDY = Study(
    name="imagenette",
    recipes=("imagenette_resnet18_float",),
    methods=CIFAR10.methods,
    widths=("2/2", "4/4"),
    epochs=40,
    seeds=3,
    schedule=lambda epochs: [f"model.warm_up={min(2.0, 0.05 * epochs)}", "data.cache_size=128"],
    baselines=("uniform_max", "lsq"),
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY, __doc__))
