from pathlib import Path

import pytest

from recipes.compare.cells import (
    FLOAT,
    Cell,
    Method,
    Width,
    all_cells,
    check_recipe,
    choose,
    left_out,
    methods,
    parse_width,
)

KNOWN = methods()
FLOAT_WIDTH = Width(None, None)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("trainer: {max_epochs: 3}\n")
    return path


def cell(recipe, name="lsq", width=Width(2, 2), **options):  # noqa: B008  # a tuple does not change
    return Cell(recipe, KNOWN[name], FLOAT_WIDTH if name == FLOAT else width, **{"seed": 0} | options)


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("1/1", (1, 1), "W1A1"), ("2/4", (2, 4), "W2A4"), ("8/32", (8, None), "W8")],
)
def test_a_width_is_bits_of_weights_and_activations(text, width, shown):
    assert parse_width(text) == width
    assert str(parse_width(text)) == shown


@pytest.mark.parametrize("text", ["2", "", "0/2", "9/2", "2/9", "2/0", "32/32", "2/2/2", "a/b", "02/2"])
def test_another_width_is_refused(text):
    with pytest.raises(ValueError, match=rf"such as 2/2 or 2/32; got '{text}'"):
        parse_width(text)


def test_widths_are_sorted_float_first_then_by_weights():
    widths = [parse_width(text) for text in ("2/32", "8/8", "2/2", "1/1", "2/4")]
    ordered = sorted([*widths, FLOAT_WIDTH], key=lambda width: width.order)
    assert [str(width) for width in ordered] == ["float", "W1A1", "W2A2", "W2A4", "W2", "W8A8"]


def test_methods_are_the_files_of_a_folder_and_float(tmp_path):
    (tmp_path / "b.yaml").write_text("quantization: {class_path: X}\n")
    (tmp_path / "a.yaml").write_text("widths: {weight_bits: [1, 2]}\nquantization: {class_path: X}\n")
    found = methods(tmp_path)
    assert list(found) == ["float", "a", "b"]
    assert found["a"] == Method("a", tmp_path / "a.yaml", (1, 2), (1, 2, 3, 4, 5, 6, 7, 8, None))
    assert found["a"].admits(Width(2, None)) and not found["a"].admits(Width(3, None))
    assert found["b"].admits(Width(8, 1)) and not found["b"].admits(FLOAT_WIDTH)
    assert found["float"].admits(FLOAT_WIDTH) and not found["float"].admits(Width(2, 2))


def test_a_comparison_takes_the_first_seed_of_all_rows_first_and_leaves_out_widths_with_a_word(recipe):
    chosen = choose(KNOWN, ["float", "lsq", "bwn", "xnor"])
    widths = [Width(1, 1), Width(2, 2), Width(1, None)]
    labels = [cell.label for cell in all_cells(recipe, chosen, widths, range(2), [])]
    rows = ["float", "xnor W1A1", "lsq W2A2", "bwn W1"]
    assert labels == [f"{row}, seed {seed}" for seed in range(2) for row in rows]
    assert left_out(chosen, widths) == [
        "lsq is made for weights of 2 to 8 and activations of 1 to 8 or 32 bits: without W1A1, W1",
        "bwn is made for weights of 1 and activations of 32 bits: without W1A1, W2A2",
        "xnor is made for weights of 1 and activations of 1 bits: without W2A2, W1",
    ]


def test_all_methods_are_chosen_if_none_is_named_and_an_unknown_one_is_named():
    assert choose(KNOWN, []) == list(KNOWN.values())
    with pytest.raises(ValueError, match=r"methods must be of float, .*xnor; got lsqq, dorrefa"):
        choose(KNOWN, ["lsq", "lsqq", "dorrefa"])


def test_a_name_stands_for_all_settings_of_a_cell(recipe, tmp_path):
    base = cell(recipe)
    assert base.name.startswith("some--lsq--W2A2--seed0--")
    others = [
        cell(recipe, seed=1), cell(recipe, width=Width(2, 4)), cell(recipe, "pact"),
        cell(recipe, overrides=("trainer.max_epochs=4",)), cell(recipe, overrides=("trainer.max_epochs=5",)),
    ]  # fmt: skip
    before = [base.name, *(other.name for other in others)]
    assert len(set(before)) == 6
    assert cell(recipe, overrides=("a=1", "b=2")).name == cell(recipe, overrides=("b=2", "a=0", "a=1")).name
    recipe.write_text("# a comment\ntrainer:\n  max_epochs: 3\n")
    assert base.name == before[0]
    recipe.write_text("trainer: {max_epochs: 4}\n")
    assert base.name != before[0] and base.name.rpartition("--")[0] == before[0].rpartition("--")[0]


def test_a_name_follows_the_file_of_the_method(recipe, tmp_path):
    (tmp_path / "methods").mkdir()
    file = tmp_path / "methods" / "mine.yaml"
    names, settings = [], []
    for scale in ("max", "mean"):
        file.write_text(f"quantization: {{class_path: UniformQuantization, init_args: {{scale: {scale}}}}}\n")
        mine = Cell(recipe, methods(tmp_path / "methods")["mine"], Width(2, 2), 0)
        names.append(mine.name)
        settings.append(mine.setting)
    assert names[0] != names[1]
    assert settings[0] == settings[1] == cell(recipe).setting  # one table for both


def test_the_command_line_is_what_one_would_write_by_hand(recipe):
    overrides = ("quantization.quantize_first_last=true", "trainer.max_epochs=4")
    lsq = str(KNOWN["lsq"].file)
    assert cell(recipe, width=Width(2, None), seed=3, overrides=overrides).arguments() == [
        "fit", "--config", str(recipe), "--config", lsq, "--seed_everything=3",
        "--quantization.quantize_first_last=true", "--trainer.max_epochs=4",
        "--quantization.weight_bits=2", "--quantization.activation_bits=null",
    ]  # fmt: skip
    assert cell(recipe, FLOAT, seed=3, overrides=overrides).arguments() == [
        "fit", "--config", str(recipe), "--seed_everything=3", "--trainer.max_epochs=4", "--quantization=null",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_epochs", "takes key=value"),
        ("=3", "takes key=value"),
        ("--trainer.max_epochs=3", "takes key=value"),
        ("quantization.weight_bits=3", "must not set 'quantization.weight_bits'"),
        ("seed_everything=1", "must not set 'seed_everything'"),
    ],
)
def test_an_override_that_cannot_be_one_is_refused(recipe, override, message):
    with pytest.raises(ValueError, match=f"`--set` {message}"):
        check_recipe(recipe, [override])


def test_a_missing_recipe_is_named():
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml does not exist"):
        check_recipe(Path("nothing.yaml"), [])
