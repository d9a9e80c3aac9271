import json

import pytest

from recipes.configuration import expand, load


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_file_states_only_what_differs_from_its_bases(write):
    write("float.yaml", "model: {cell: lstm, units: 300}\ntrainer: {callbacks: [a, b], max_epochs: 80}\n")
    write("narrow.yaml", "base: float.yaml\nmodel: {units: 8}\nquantization: {class_path: X, init_args: {bits: 2}}\n")
    last = write(
        "more/gru.yaml", "base: ../narrow.yaml\nmodel: {cell: gru}\ntrainer: {callbacks: [c]}\nquantization: null\n"
    )
    assert load(last) == {
        "model": {"cell": "gru", "units": 8}, "trainer": {"callbacks": ["c"], "max_epochs": 80}, "quantization": None,
    }  # fmt: skip


def test_a_cycle_is_shown(write):
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    with pytest.raises(ValueError, match=r"must not be its own base, got .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load(write("a.yaml", "base: b.yaml\n"))


def test_a_missing_base_is_named_with_the_file_that_names_it(write):
    path = write("a.yaml", "base: nothing.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml does not exist \(.*a\.yaml -> .*nothing\.yaml\)"):
        load(path)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n"])
def test_a_file_without_a_mapping_is_refused(write, text):
    with pytest.raises(ValueError, match=r"a\.yaml must hold a mapping"):
        load(write("a.yaml", text))


@pytest.mark.parametrize("spelling", [["--config", "{}"], ["--config={}"], ["-c", "{}"]], ids=" ".join)
def test_files_stand_before_other_options_wherever_they_were(write, spelling):
    path = write("a.yaml", "model: {units: 8}\n")
    words = [word.format(path) for word in spelling]
    expected = ["fit", "--config", json.dumps({"model": {"units": 8}}), "--model.units", "4"]
    assert expand(["fit", "--model.units", "4", *words]) == expected


def test_widths_are_no_setting_of_a_training(write):
    path = write("a.yaml", "widths: {weight_bits: [1]}\nmodel: {units: 8}\n")
    assert expand(["fit", "--config", str(path)]) == ["fit", "--config", '{"model": {"units": 8}}']
    assert load(path)["widths"] == {"weight_bits": [1]}


def test_several_files_keep_their_order_and_other_arguments_are_left_alone(write):
    first, second = write("a.yaml", "seed: 1\n"), write("b.yaml", "seed: 2\n")
    expanded = expand(["fit", "--config", str(first), "--x", "1", "--config", str(second), "--y"])
    assert expanded == ["fit", "--config", '{"seed": 1}', "--config", '{"seed": 2}', "--x", "1", "--y"]
    assert expand(["--help"]) == ["--help"]
    assert expand(["fit", "--config"]) == ["fit", "--config"]
    assert expand([]) == []
