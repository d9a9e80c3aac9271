"""``balq report``: pages that need nothing else, show what was there, and obey nothing in it."""

import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_balq import BalancedQuantization
from lightning_balq.cli.charts import histogram, line_chart
from lightning_balq.functional import balanced_codes
from tests.callback.tiny import Batches, quiet_trainer, tiny_model
from tests.cli.commands import TINY, run, strictly

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x1b[31m"
SHOWN = HOSTILE.replace("\x1b", "\\x1b")
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "b", "span", "section", "figure"),
    *("figcaption", "svg", "path", "text", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {
    *("aria-label", "charset", "class", "content", "d", "http-equiv", "lang", "name", "role", "text-anchor", "viewbox"),
    *("x", "y"),
}


class Page(HTMLParser):
    """Tags, attributes and texts of a page, as a browser would understand them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.attributes, self.rows = set(), [], [], []
        self.open = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def table(self, first):
        """Rows below the heading that begins with ``first``, by their first cells."""
        start = next(index for index, row in enumerate(self.rows) if row[0] == first)
        found = {}
        for row in self.rows[start + 1 :]:
            if len(row) != len(self.rows[start]):
                break
            found[row[0]] = dict(zip(self.rows[start], row, strict=True))
        return found


def report(tmp_path, source, *arguments):
    assert run("report", source, "-o", tmp_path / "report.html", *arguments) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags <= TAGS and {name for name, _ in page.attributes} <= ATTRIBUTES
    assert not re.search(r"https?:|url\(|@import|\x1b|\x07", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    return page


def bars(page):
    """Heights of the bars of each histogram, as shares of the highest."""
    found = []
    for name, value in page.attributes:
        if name == "d" and value.endswith("Z"):
            tops = [float(top) for top in re.findall(r"V([\d.]+)H", value)]
            found.append([1 - top / 72 for top in tops])
    return found


def counts_of(weight):
    return np.bincount(balanced_codes(weight, 2).numpy().ravel(), minlength=4)


def test_page_of_a_checkpoint_shows_layers_bytes_and_codes(fitted, tmp_path):
    model, checkpoint = fitted("plain")
    page = report(tmp_path, checkpoint)
    weights = page.table("weight")
    assert list(weights) == ["net.3.weight", "net.7.weight"]
    assert {key: weights["net.3.weight"][key] for key in ("W bits", "A bits", "shape", "weights", "bytes")} == {
        "W bits": "2",
        "A bits": "4",
        "shape": "8x4x3x3",
        "weights": "288",
        "bytes": "76",
    }
    counts = [counts_of(model.net[index].weight.detach()) for index in (3, 7)]
    for row, count in zip(weights.values(), counts, strict=True):
        share = count / count.sum()
        assert float(row["effective bits"]) == pytest.approx(-(share * np.log2(share)).sum(), abs=5e-4)
    for heights, count in zip(bars(page), counts, strict=True):
        assert heights == pytest.approx(count / count.max(), abs=0.005 / 72 + 1e-9)  # two decimals of a pixel of 72
    assert page.table("layer") == {
        "net.0": {"layer": "net.0", "because": "first layer"},
        "net.9": {"layer": "net.9", "because": "last layer"},
    }


def test_page_says_the_same_of_checkpoint_model_and_packed_file(fitted, tmp_path):
    _, checkpoint = fitted("lsq")
    packed = tmp_path / "m.safetensors"
    assert run("pack", checkpoint, packed, "--model", TINY) == 0
    pages = [report(tmp_path, *arguments) for arguments in ((checkpoint,), (checkpoint, "--model", TINY), (packed,))]
    assert pages[0].rows == pages[1].rows == pages[2].rows
    assert bars(pages[0]) == bars(pages[1]) == bars(pages[2]) and len(bars(pages[0])) == 2


def test_page_says_that_a_network_is_not_quantized_yet(fitted, tmp_path):
    page = report(tmp_path, fitted("blending")[1])
    assert "training has not come to the quantized network yet" in page.texts


def test_names_in_a_checkpoint_are_text(fitted, tmp_path):
    checkpoint = torch.load(fitted("plain")[1], weights_only=True)
    saved = checkpoint["lightning_balq"]
    saved["layers"] = {HOSTILE: saved["layers"]["net.3"], "no-weight" + HOSTILE: saved["layers"]["net.7"]}
    saved["float"] = {HOSTILE: HOSTILE}
    checkpoint["state_dict"][f"{HOSTILE}.weight"] = checkpoint["state_dict"].pop("net.3.weight")
    torch.save(checkpoint, tmp_path / "c.ckpt")
    page = report(tmp_path, tmp_path / "c.ckpt")
    assert list(page.table("weight")) == [f"{SHOWN}.weight", f"no-weight{SHOWN}.weight"]
    assert page.table("weight")[f"no-weight{SHOWN}.weight"]["shape"] == "not known"
    assert page.table("layer") == {SHOWN: {"layer": SHOWN, "because": SHOWN}}
    assert len(bars(page)) == 1


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What a callback recorded in a file."""
    root = tmp_path_factory.mktemp("records")
    callback = BalancedQuantization(2, 2, verbose=0, record_every_n_steps=4)
    logger = CSVLogger(root, name="", version="")
    quiet_trainer(root, callbacks=[callback], logger=logger, max_epochs=3).fit(tiny_model(), Batches())
    return root / "metrics.csv"


def test_page_of_records_shows_every_statistic(records, tmp_path):
    page = report(tmp_path, records)
    lines = [line.split(",") for line in records.read_text().splitlines()]
    last = dict(zip(lines[0], [row for row in lines if row[lines[0].index("balq/imbalance")]][-1], strict=True))
    rows = page.table("layer")
    assert list(rows) == ["(all layers)", "net.3", "net.7"]
    for layer, prefix in {"(all layers)": "", "net.3": "net.3/", "net.7": "net.7/"}.items():
        for key in ("effective_bitwidth", "bin_utilization", "imbalance", "code_flip_rate"):
            assert float(rows[layer][key.replace("_", " ")]) == pytest.approx(
                float(last[f"balq/{prefix}{key}"]), rel=1e-3
            )
    assert rows["net.3"]["overhead"] == "" and 0 < float(rows["(all layers)"]["overhead"]) < 1
    labels = [value for name, value in page.attributes if name == "aria-label"]
    statistics = ("overhead", "effective bitwidth", "bin utilization", "imbalance", "code flip rate")
    assert labels == [f"{name} over steps" for name in statistics]
    assert "5 records" in page.texts and "steps 4 to 18, 2 layers or parts of them" in page.texts


def test_names_in_records_are_text(tmp_path):
    column = f"balq/{HOSTILE}/imbalance".replace('"', '""')
    (tmp_path / "m.csv").write_text(f'step,"{column}",train_loss\n3,1.5,\n4,,0.1\n', encoding="utf-8")
    page = report(tmp_path, tmp_path / "m.csv")
    assert list(page.table("layer")) == ["(all layers)", SHOWN]
    assert page.table("layer")[SHOWN]["imbalance"] == "1.5"


def points(drawing, name):
    """Coordinates of a line, in parts that are drawn without a gap."""
    path = re.search(rf'd="([^"]*)"><title>{name}</title>', drawing)[1]
    return [
        [tuple(map(float, point.removesuffix("h0").split())) for point in part.split("L")]
        for part in path.split("M")[1:]
    ]


def test_lines_are_drawn_to_scale_with_gaps():
    nan = float("nan")
    lines = {"a": {0: 1.0, 10: 3.0, 20: nan, 30: 2.0, 40: float("inf")}, "b": {0: 1.0, 40: 1.0}}
    drawing = line_chart(lines, "a", "test")
    (first, second), (alone,) = points(drawing, "a")
    ((start, end),) = points(drawing, "b")
    assert start == first and end[1] == first[1]
    assert (second[0] - first[0]) / (end[0] - first[0]) == pytest.approx(0.25, abs=1e-4)
    assert (alone[0] - first[0]) / (end[0] - first[0]) == pytest.approx(0.75, abs=1e-4)
    assert (alone[1] - first[1]) / (second[1] - first[1]) == pytest.approx(0.5, abs=1e-4) and second[1] < first[1]
    assert drawing.index("<title>a") > drawing.index("<title>b")  # above the others
    assert re.findall(">([^<>]+)</text>", drawing) == ["3.00", "2.00", "1.00", "step 0", "40"]


def test_axis_shows_its_limits_and_a_constant_in_its_middle():
    drawing = line_chart({"a": {5: 0.5}}, "a", "test", (0.0, 1.0))
    assert re.findall(">([^<>]+)</text>", drawing) == ["1.00", "0.50", "0.00", "step 5", "5"]
    constant = line_chart({"a": {5: 2.0, 6: 2.0}}, "a", "test")
    assert re.findall(">([^<>]+)</text>", constant) == ["3.00", "2.00", "1.00", "step 5", "6"]
    assert "no finite values" in line_chart({"a": {5: float("nan")}}, "a", "test")
    assert "no codes" in histogram([0, 0], "test")


def test_line_of_equal_use_is_the_mean_of_the_bars():
    drawing = histogram([1, 2, 4, 1], "test")
    even = float(re.search(r'class="even" d="M0 ([\d.]+)H', drawing)[1])
    assert 1 - even / 72 == pytest.approx(2 / 4, abs=1e-4)


def test_json_names_the_file(records, tmp_path, capsys):
    path = tmp_path / "r.html"
    assert run("report", records, "-o", path, "--json") == 0
    assert strictly(capsys.readouterr().out) == {"path": str(path), "size": path.stat().st_size}


def test_failed_report_leaves_the_file_that_was_there(records, tmp_path, capsys, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("earlier")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    assert run("report", records, "-o", path) == 2
    assert "disk full" in capsys.readouterr().err
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["r.html"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"step,train_loss\n1,0.5\n", "holds no column balq/..; expected metrics.csv"),
        (b"", "holds no column balq/..; expected metrics.csv"),
        (b"step,balq/overhead\n1,\n", "holds no column balq/..; expected metrics.csv"),
        (b"step,balq/overhead\n1,0.5\n2,much\n", "line 3: `balq/overhead` must be a number, got 'much'"),
        (b"step,balq/overhead\nlast,0.5\n", "line 2: `step` must be a number, got 'last'"),
        (b"step,balq/overhead\ninf,0.5\n", "line 2: `step` must be a number, got 'inf'"),
        (b"balq/overhead\n0.5\n", "line 2: `step` must be a number, got None"),
        (b"\xff\xfe\x00", "is not a CSV file"),
    ],
)
def test_records_of_another_kind_are_wrong_input(content, message, tmp_path, capsys):
    (tmp_path / "m.csv").write_bytes(content)
    assert run("report", tmp_path / "m.csv", "-o", tmp_path / "r.html") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_wrong_input_writes_no_page(fitted, records, tmp_path, capsys):
    for arguments, message in {
        (records, "-o", tmp_path / "r.html", "--model", TINY): "`--model` and `--arguments` are for a checkpoint",
        (tmp_path / "gone.csv", "-o", tmp_path / "r.html"): "No such file",
        (tmp_path / "gone.ckpt", "-o", tmp_path / "r.html"): "No such file",
        (fitted("plain")[1], "-o", tmp_path / "no folder" / "r.html"): "No such file",
    }.items():
        assert run("report", *arguments) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
