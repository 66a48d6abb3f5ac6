"""Laws of the plots: the front, one colour a family, labels with units, no overlapping names, stable files."""

# ruff: noqa: RUF001
from __future__ import annotations

import copy
import math
import re
import struct
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from bench.reports import style
from bench.reports.frames import Run
from bench.reports.front import pareto_front
from bench.reports.plots import PLOTS, write_plots
from bench.reports.plots.layer_heatmap import split
from quant import FAMILIES
from tests.bench.sample_records import METHODS, record, sample

NAMES = {
    "adapting",
    "layer-heatmap",
    "pareto-causal",
    "pareto-encoder",
    "recovery",
    "speed",
    "training-memory",
    "weight-error",
}
UNITS = {
    "adapting": ("accuracy (%)", "(MB, log scale)"),
    "layer-heatmap": ("SQNR against the method's middle layer (dB)",),
    "pareto-causal": ("nats/token", "(% of tokens)", "bits per quantized weight"),
    "pareto-encoder": ("1 − cosine", "(points)", "bits per quantized weight"),
    "recovery": ("before training (1 − cosine, log scale)", "to LoRA (nats)", "× LoRA's (log scale)"),
    "speed": ("Speed-up over fp32 in the same run (×",),
    "training-memory": ("(MB = 10⁶ bytes)",),
    "weight-error": ("error = restored − weight",),
}
SMALL = (
    "fp32",
    "bf16",
    "uniform-int4-g64",
    "uniform-int3-g64",
    "kmeans-row-4",
    "nf4",
    "nf4-dq",
    "cluster-16",
    "nm-2-4",
)


def few(quick: bool = False) -> list[dict[str, object]]:
    """A small part of the sample, with something for every plot."""
    return [r for r in sample(quick) if r["cell"]["method"] in SMALL and r["cell"]["order"] != "merge"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plots")
    write_plots(out, Run(sample()))
    return out


@pytest.fixture
def styled() -> Iterator[None]:
    with style.style():
        yield


def test_every_plot_is_written_in_every_form(files: Path) -> None:
    assert {p.stem for p in files.iterdir()} == NAMES == set(PLOTS)
    for name in NAMES:
        png = (files / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", png[16:24])
        assert width == round(style.WIDTH * 150)
        assert height > 400
        assert ElementTree.parse(files / f"{name}.svg").getroot().tag.endswith("svg")
        assert len(pd.read_csv(files / f"{name}.csv")) > 5


def test_axes_are_labelled_with_units(files: Path) -> None:
    for name, units in UNITS.items():
        words = " ".join(ElementTree.parse(files / f"{name}.svg").getroot().itertext())
        for unit in units:
            assert unit in words, (name, unit)


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    first = write_plots(tmp_path / "a", Run(few()))
    second = write_plots(tmp_path / "b", Run(few()[::-1]))
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_every_family_has_a_colour_and_a_marker_of_its_own() -> None:
    assert set(style.COLORS) == set(style.MARKERS) == set(FAMILIES)
    assert len(set(style.COLORS.values())) == len(set(style.MARKERS.values())) == len(FAMILIES)
    assert not set(style.COLORS.values()) & set(style.PARTS.values())


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("name", ["pareto-causal", "pareto-encoder", "adapting", "speed"])
def test_points_have_the_colour_of_their_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn for one family at a time, so that every coloured point must be of that one."""
    monkeypatch.setattr("bench.reports.plots.adapting.FEWEST", 1)
    for family in ("nf4", "pruning", "uniform"):
        records = [r for r in sample() if r["family"] == family]
        drawn = PLOTS[name](Run(records))
        assert drawn is not None
        points = [c for axes in drawn.figure.axes for c in axes.collections if len(c.get_offsets()) == 1]
        edges = {to_hex(c) for p in points for c in (*p.get_facecolor(), *p.get_edgecolor())} - {"#ffffff"}
        assert points
        assert edges == {style.COLORS[family].lower()}


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("name", ["pareto-causal", "pareto-encoder"])
def test_what_another_library_made_is_hollow_and_the_legend_says_so(name: str) -> None:
    def rings(records: list[dict[str, object]]) -> tuple[int, int, list[str]]:
        drawn = PLOTS[name](Run(records))
        assert drawn is not None
        points = [c for axes in drawn.figure.axes for c in axes.collections if len(c.get_offsets()) == 1]
        hollow = sum(len(c.get_facecolor()) == 0 for c in points)
        return hollow, len(points), [t.get_text() for t in drawn.figure.legends[0].get_texts()]

    ours = [r for r in sample() if r["cell"]["order"] == "beneath"]
    theirs = [r | {"cell": r["cell"] | {"method": "peer-" + r["cell"]["method"]}} for r in ours]
    hollow, points, texts = rings(ours)
    assert (hollow, "hollow: another library's" in texts) == (0, False)
    both, all_points, texts = rings([*ours, *theirs])
    assert both == points == all_points - points
    assert "hollow: another library's" in texts


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("name", ["pareto-causal", "pareto-encoder", "adapting"])
def test_names_of_points_do_not_overlap_and_stay_inside(name: str) -> None:
    drawn = PLOTS[name](Run(sample()))
    assert drawn is not None
    renderer = drawn.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found = 0
    for axes in drawn.figure.axes:
        boxes = []
        for text in (t for t in axes.texts if isinstance(t, Annotation)):
            text.update_positions(renderer)
            boxes.append(Text.get_window_extent(text, renderer))
        found += len(boxes)
        assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
        frame = axes.get_window_extent()
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)
    assert found >= 10


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("name", ["pareto-encoder", "pareto-causal"])
def test_no_name_is_cut_or_struck_through_by_the_front(name: str) -> None:
    drawn = PLOTS[name](Run(sample()))
    assert drawn is not None
    renderer = drawn.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for axes in drawn.figure.axes[:2]:
        (stair,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
        path = [axes.transData.transform(place) for place in zip(*stair.get_data(), strict=True)]
        boxes = []
        for text in (t for t in axes.texts if isinstance(t, Annotation)):
            assert not text.get_text().endswith("…")
            text.update_positions(renderer)
            boxes.append(Text.get_window_extent(text, renderer))
        assert boxes
        for (x0, y0), (x1, y1) in pairwise(path):
            level, upright = Bbox.from_extents(x0, y0, x1, y0), Bbox.from_extents(x1, min(y0, y1), x1, max(y0, y1))
            assert not [1 for box in boxes for piece in (level, upright) if box.overlaps(piece)]


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_text_is_smaller_than_eight_points(name: str) -> None:
    drawn = PLOTS[name](Run(sample()))
    assert drawn is not None
    texts = [t for t in drawn.figure.findobj(Text) if t.get_text().strip()]
    assert min(t.get_fontsize() for t in texts) >= 8


def test_quick_runs_carry_the_mark_in_the_figure_and_the_name(tmp_path: Path) -> None:
    written = write_plots(tmp_path, Run(few(quick=True)))
    assert all(p.stem.endswith("-quick") for p in written)
    for path in (p for p in written if p.suffix == ".svg"):
        assert "QUICK" in "".join(ElementTree.parse(path).getroot().itertext())


def test_hostile_names_do_not_reach_the_markup(tmp_path: Path) -> None:
    records = copy.deepcopy(few())
    for one in records:
        for part in ("model", "task", "method"):
            one["cell"][part] += "<script>$x^$ \u202e模" + "n" * 500  # type: ignore[index]
    for path in write_plots(tmp_path, Run(records)):
        if path.suffix == ".svg":
            assert "<script" not in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("styled")
@pytest.mark.parametrize("block", ["memory", "training_memory", "speed", "accuracy", "weights"])
def test_a_missing_block_leaves_out_points_and_never_fails(block: str) -> None:
    some = [one | {block: None} if i % 2 else one for i, one in enumerate(few())]
    half = [draw(Run(some)) for draw in PLOTS.values()]
    none = [draw(Run([one | {block: None} for one in few()])) for draw in PLOTS.values()]
    assert sum(d is not None for d in none) < sum(d is not None for d in half)


@pytest.mark.usefixtures("styled")
def test_training_memory_of_unequal_batches_is_not_in_one_panel() -> None:
    """Activations grow with the batch, so bars of two batches side by side would be read wrongly."""
    large, small = record("minilm", "lora", "fp32"), record("minilm", "qlora", "nf4")
    small["training_memory"]["batch"] = 2
    drawn = PLOTS["training-memory"](Run([large, small]))
    assert drawn is not None
    titles = [axes.get_title(loc="left") for axes in drawn.figure.axes]
    assert titles == ["minilm, batch 32, tokens 128000", "minilm, batch 2, tokens 128000"]


def test_nothing_to_show_writes_nothing(tmp_path: Path) -> None:
    assert write_plots(tmp_path, Run([])) == []
    assert write_plots(tmp_path, Run([record("minilm", "beneath", "nf4") | {"status": "oom"}])) == []


def test_the_front_by_hand() -> None:
    points = [(4.0, 0.3), (4.5, 0.2), (4.25, 0.4), (8.0, 0.01), (4.5, 0.2), (9.0, 0.01)]
    assert sorted(pareto_front(points)) == [0, 1, 3, 4]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_a_point_is_on_the_front_exactly_when_none_is_as_good_in_both_and_better_in_one(
    points: list[tuple[int, int]],
) -> None:
    def dominated(p: tuple[int, int]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    assert sorted(pareto_front(points)) == [i for i, p in enumerate(points) if not dominated(p)]


def test_the_front_in_the_data_is_that_of_its_own_columns(files: Path) -> None:
    data = pd.read_csv(files / "pareto-causal.csv")
    drawn = data[data["kl_wiki_nats_per_token"] > 0]
    pairs = list(zip(drawn["bits_per_weight"], drawn["kl_wiki_nats_per_token"], strict=True))
    assert set(drawn["method"].iloc[pareto_front(pairs)]) == set(data["method"][data["on_front"]])
    assert len(data) == len(METHODS)
    assert math.isclose(data.set_index("method").loc["nf4-dq", "bits_per_weight"], 4.127)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [("model.layers.12.mlp.up_proj", ("mlp.up_proj", 12)), ("lm_head", ("lm_head", 0)), ("h.3.c_fc", ("c_fc", 3))],
)
def test_layers_split_into_matrix_and_depth(layer: str, expected: tuple[str, int]) -> None:
    assert split(layer) == expected


def test_no_date_or_version_is_stored(files: Path) -> None:
    for name in NAMES:
        assert not re.search(rb"<dc:date>|matplotlib v|matplotlib version", (files / f"{name}.svg").read_bytes())
        assert b"Software" not in (files / f"{name}.png").read_bytes()
