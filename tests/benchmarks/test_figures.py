from benchmarks.figures import Curve, digest, draw, drawn_digest, memory_panels, time_panels
from tests.benchmarks.speed import scaling

RECORDS = [
    scaling("balanced mean", 3000, 0.003),
    scaling("balanced mean", 1000, 0.001),
    scaling("balanced mean", 1000, 0.002, bits=8),
    scaling("uniform, compiled", 1000, 0.0005),
    scaling("balanced mean", 1000, 0.004, bits=1, sweep="bits"),
]


def test_panels_hold_the_points_of_their_sweep_in_order():
    weights, bits, layers = time_panels(RECORDS)
    assert weights.curves == [
        Curve("balanced mean", [1000, 3000], [1.0, 3.0], [1.0, 3.0], [1.0, 3.0]),
        Curve("uniform, compiled", [1000], [0.5], [0.5], [0.5]),
    ]
    assert bits.curves == [Curve("balanced mean", [1], [4.0], [4.0], [4.0])]
    assert layers.curves == []
    assert memory_panels(RECORDS)[0].curves[0].median == [12_000 / 2**20, 36_000 / 2**20]


def test_a_figure_says_what_data_it_shows(tmp_path):
    path = tmp_path / "figures" / "time.svg"
    assert drawn_digest(path) is None
    panels = time_panels(RECORDS)
    draw(panels, path)
    assert drawn_digest(path) == digest(panels)
    assert digest(time_panels(RECORDS[1:])) != digest(panels)
    assert digest(memory_panels(RECORDS)) != digest(panels)


def test_drawing_again_gives_the_same_file(tmp_path):
    for name in "ab":
        draw(memory_panels(RECORDS), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
