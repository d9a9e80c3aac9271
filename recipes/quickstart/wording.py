"""Fixed text of the report."""

LEAD = """A small CNN, trained {runs} times: in float, and with weights and activations of {bits} bits. Uniform
quantization rounds each weight to the nearest of evenly spaced levels; balanced quantization gives every level about as
many weights as any other."""

READ_RESULTS = """Accuracy is that of the test set, mean ± standard deviation over {seeds}. Effective bitwidth is the
entropy in bits of the codes of the quantized layers after the last step. Bytes are those of all parameters,
{float_bytes} in float. Overhead is the time of a training step beyond float's, as median and quartiles."""

READ_DIFFERENCES = """Row minus column, paired by seed. In parentheses: p of a paired t-test, adjusted for the number of
tests in its column (Holm). Bold is p < 0.05; all else is not distinguishable from chance with these seeds."""

FIGURES = {
    "weights": """Above, the float weights of a layer after training; the shade changes where one level ends and the
next begins. Below, the levels they are rounded to, as high as the share of weights on each: a level without weights is
wasted.""",
    "bitwidth": """Entropy of the codes of the quantized layers, mean over seeds and the range they span: the dotted
line is reached when all levels are used equally often, and a network one bit below it gets by with half of them.""",
    "accuracy": """Small dots are runs, large dots their means, bars one standard deviation to each side; the grey band
is the float network, so a row that reaches it loses little by being quantized.""",
}

EXAMPLE = """from lightning.pytorch import Trainer
from lightning_balq import BalancedQuantization

callback = BalancedQuantization(weight_bits=2, activation_bits=2)
print(callback.plan(model))  # layers, bits and bytes
trainer = Trainer(max_epochs=10, callbacks=[callback])
trainer.fit(model, train_batches)
trainer.test(model, test_batches)  # the quantized network"""

CAVEATS = (
    "A small network on easy data shows how a method behaves, not how methods rank on larger tasks.",
    "A few seeds reveal large differences only: not distinguishable does not mean equal.",
    "Hyperparameters are the same for all rows and tuned for none; the callback's defaults are from a study on digits.",
    "Bytes count packed codes and their scales; while training, the float weights are kept.",
    "Overhead is that of a step of milliseconds on a CPU, and says little about larger networks or other devices.",
)
