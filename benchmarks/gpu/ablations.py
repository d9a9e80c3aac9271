"""Which options balanced quantization should have: CIFAR-10, ResNet-20, 2-bit weights and activations.

Question: what does each option change, the others being the defaults?  Not measured: options in combination.
Run: python -m benchmarks.gpu.ablations --data FOLDER --results FOLDER --budget 580

Each file in ``methods/ablations`` changes one of the defaults: the center of a bin, the scale, the gradient, the first
and the last layer, the granularity, and the start. The float network is that of ``benchmarks.gpu.cifar10``.
"""

from benchmarks.gpu.study import METHODS, Study, halves_and_quarters, main

STUDY = Study(
    name="ablations",
    recipes=("cifar10_resnet20_float",),
    methods=(
        "float", "defaults", "scale_mean", "scale_least_squares", "scale_learned", "center_median", "ends_quantized",
        "ends_8_bits", "gradient_equalized", "per_channel", "from_float",
    ),
    widths=("2/2",),
    epochs=100,
    seeds=3,
    schedule=halves_and_quarters,
    baselines=("defaults",),
    folder=METHODS / "ablations",
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(STUDY, __doc__))
