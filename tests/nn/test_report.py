"""Tables hold what they promise, also for long names."""

import io

from rich.console import Console
from torch import nn

from lightning_balq.nn import QuantizationConfig, plan
from lightning_balq.nn.report import plan_table, record_table
from tests.helpers import everything, tiny_model


def rows(text):
    """Words of each line that has any."""
    return [line.split() for line in text.splitlines() if line.strip()]


def test_plan_shows_layers_bits_shapes_bytes_and_reasons():
    text = str(plan(tiny_model(), QuantizationConfig(activation_bits=2)))
    lines = rows(text)
    assert lines[0] == ["2", "of", "4", "layers", "quantized"]
    assert ["stem", "float", "4x1x3x3", "36", "144", "144", "first", "layer"] in lines
    assert ["conv", "4/2", "8x4x3x3", "288", "1,152", "148"] in lines
    assert ["hidden", "4/2", "16x32", "512", "2,048", "260"] in lines
    assert ["head", "float", "3x16", "48", "192", "192", "last", "layer"] in lines
    other = 4 * (4 + 8 + 16 + 3)
    assert ["other", "parameters", "float", "124", "124", "biases,", "norms", "and", "others"] in lines
    assert ["total", "884", f"{3536 + other:,}", str(144 + 148 + 260 + 192 + other)] in lines


def test_float_activations_are_called_float():
    assert ["(the", "model)", "4/float", "3x2", "6", "24", "7"] in rows(str(plan(nn.Linear(2, 3), everything())))


def test_shapes_of_an_attention_are_all_shown():
    assert "24x8, 8x8" in str(plan(nn.MultiheadAttention(8, 2), everything()))


def test_long_names_are_shown_in_full():
    name = "a_module_with_quite_a_long_name_that_somebody_has_chosen"
    inner = nn.Sequential()
    inner.add_module(name, nn.Linear(2, 2))
    model = nn.Sequential()
    model.add_module(name, inner)
    assert f"{name}.{name}" in str(plan(model, everything())).replace("\n", "")


def test_plan_table_fits_a_terminal():
    console = Console(file=io.StringIO(), width=100)
    console.print(plan_table(plan(tiny_model(), QuantizationConfig())))
    assert "hidden" in console.file.getvalue()
    assert "last layer" in console.file.getvalue()


def test_record_table_has_a_row_for_each_layer():
    console = Console(file=io.StringIO(), width=100)
    console.print(record_table("Codes", ["layer", "bits"], [("conv", "3.9"), ("fc", "4.0")]))
    assert rows(console.file.getvalue())[0] == ["Codes"]
    assert ["conv", "3.9"] in rows(console.file.getvalue())
    assert ["fc", "4.0"] in rows(console.file.getvalue())
