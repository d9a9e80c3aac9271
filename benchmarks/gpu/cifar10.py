"""Test accuracy on CIFAR-10: ResNet-20, all methods from scratch under one recipe.

Question: how much does each method lose at each width?  Not measured: other networks, starts from a float network.
Run: python -m benchmarks.gpu.cifar10 --data FOLDER --results FOLDER --budget 580

The recipe is that of the float network, with its schedule for 100 epochs (``--epochs``); first and last layer stay
float. FOLDER holds Parquet files.
"""

from benchmarks.gpu.study import Study, halves_and_quarters, main

STUDY = Study(
    name="cifar10",
    recipes=("cifar10_resnet20_float",),
    methods=(
        "float", "balanced_learned", "balanced_mean", "uniform_max", "uniform_mean", "lsq", "dorefa", "pact",
        "balanced_paper",
    ),
    widths=("2/2", "3/3", "4/4"),
    epochs=100,
    seeds=3,
    schedule=halves_and_quarters,
    baselines=("uniform_max", "lsq"),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(STUDY, __doc__))
