"""Test perplexity on the Penn Treebank: one LSTM or GRU layer of 300 units, in the setting of Xu et al. 2018.

Question: how much does each method lose at each width?  Not measured: other texts, larger networks.
Run: python -m benchmarks.gpu.penn_treebank --data FOLDER --results FOLDER --budget 580

The float networks train for 80 epochs, and quantized ones begin with that of their seed and train as long again. Tested
is the network of the last epoch. FOLDER holds `ptb.train.txt` and the other two files, or Parquet files.
"""

from benchmarks.gpu.study import METHODS, Study, main

STUDY = Study(
    name="penn_treebank",
    recipes=("ptb_lstm_float", "ptb_gru_float"),
    methods=("float", "balanced_mean", "uniform_mean", "uniform_max", "balanced_median"),
    widths=("2/2", "2/3", "3/3", "4/4"),
    epochs=80,
    seeds=3,
    schedule=lambda epochs: [],
    baselines=("uniform_max", "uniform_mean"),
    folder=METHODS / "penn_treebank",
    images=False,
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY, __doc__))
