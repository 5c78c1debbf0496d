import json
import re

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikedim.report import figures
from spikedim.report.plot import DARK, LIGHT, log_ticks, thin
from spikedim.report.wording import amount, full, text, tidy, timesteps
from spikedim.results import Estimate, plain

positive = st.floats(1e-9, 1e9, allow_nan=False)


@st.composite
def estimates(draw, values=positive):
    value = draw(values)
    spread = draw(st.floats(0, 0.9))
    bounded = draw(st.booleans())
    low, high = (value * (1 - spread), value * (1 + spread)) if bounded else (None, None)
    return plain(Estimate(value, low, high, draw(st.integers(1, 10**6)), "mJ"))


percents = estimates(st.floats(0, 100))
grids = st.lists(st.integers(1, 64), min_size=1, max_size=6, unique=True)


def drawable(figure: figures.Figure) -> go.Figure:
    """Plotly accepts it, it is JSON, it uses only colours that have a dark twin."""
    content = json.dumps(figure.spec, allow_nan=False)
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", content)) <= set(LIGHT.values())
    assert figure.caption.endswith(".")
    assert figure.description
    assert all(key.colour in LIGHT for key in figure.key)
    return go.Figure(figure.spec)


def estimate(value, low=None, high=None, unit=""):
    return plain(Estimate(value, low, high, 360, unit))


POINTS = [(1, estimate(93.6, 90.6, 95.7, "%")), (4, estimate(97.5, 95.3, 98.7, "%"))]


@given(grids, st.data())
def test_accuracy_is_drawable_for_any_sweep(steps, data):
    points = [(t, data.draw(percents)) for t in steps]
    figure = figures.accuracy(
        points,
        t_star=estimate(float(steps[0]), 1.0, None),
        plateau=estimate(95.0, 94.0, 96.0, "%"),
        tolerance=1.0,
        predictions=[("rule", data.draw(estimates()))],
    )
    layout = drawable(figure).layout
    assert list(layout.xaxis.tickvals) == sorted(steps)
    low, high = layout.yaxis.range
    assert low < min(a["value"] for _, a in points) + 1e-9
    assert high >= max(a["value"] for _, a in points)


@given(st.lists(estimates(), min_size=1, max_size=5), st.data())
def test_energy_and_tradeoff_are_drawable(energies, data):
    bars = [(f"convention {i}", e) for i, e in enumerate(energies)]
    drawable(figures.energy(bars, ("dense-ann", data.draw(estimates()))))
    series = {name: [(1, e, data.draw(percents)), (2, e, data.draw(percents))] for name, e in bars}
    drawable(figures.tradeoff(series, 2, data.draw(estimates())))


@given(st.lists(positive, min_size=1, max_size=40), estimates(st.floats(0.1, 80)))
def test_spectrum_figures_are_drawable(values, mark):
    values = sorted(values, reverse=True)
    drawable(figures.scree([*values, 0.0], [("PCA-95 %", mark)]))
    figure = drawable(figures.cumulative(values, sum(values), [("PCA-95 %", mark)]))
    assert figure.data[0].y[-1] == pytest.approx(100)


def test_prediction_on_the_scale_is_a_line_and_beyond_it_an_arrow():
    near = figures.accuracy(POINTS, predictions=[("rule", estimate(3.0, 2.0, 4.0))])
    far = figures.accuracy(POINTS, predictions=[("rule", estimate(26000.0, 2.1e4, 3.2e4))])
    assert [s["line"].get("dash") for s in near.spec["layout"]["shapes"]] == [None, "dash"]
    assert far.spec["layout"]["shapes"] == []
    assert far.spec["layout"]["annotations"][0]["text"] == "<b>rule: T = 26,000 →</b>"
    assert near.spec["layout"]["xaxis"]["range"] == far.spec["layout"]["xaxis"]["range"]
    assert "off this scale" in far.key[-1].text


@pytest.mark.parametrize(("dense", "lines"), [(1.2, 1), (40.0, 0)])
def test_dense_network_is_a_line_or_an_arrow_where_it_would_squeeze_the_rest(dense, lines):
    one = [(1, estimate(0.5, unit="mJ"), POINTS[0][1]), (2, estimate(1.0, unit="mJ"), POINTS[1][1])]
    figure = figures.tradeoff({"paper-sop": one}, 1, estimate(dense, unit="mJ"))
    assert len(figure.spec["layout"]["shapes"]) == lines
    assert len(figure.spec["layout"]["annotations"]) == 1 - lines
    assert ("off this scale" in figure.key[-1].text) is (lines == 0)


def test_open_ended_t_star_shades_to_the_edge():
    figure = figures.accuracy(POINTS, t_star=estimate(4.0, 2.0, None))
    band = figure.spec["layout"]["shapes"][0]
    assert (band["x0"], band["x1"]) == (2.0, 4 * 1.25)
    assert "4 [2 or more]" in figure.key[1].text


def test_dead_and_saturated_layers_are_named_and_hatched():
    layers = [
        ("a", estimate(0.2), "ok"),
        ("b", estimate(0.0), "dead"),
        ("c", estimate(0.99), "saturated"),
    ]
    spec = figures.rates(layers).spec
    bar = spec["data"][0]["marker"]
    assert bar["pattern"]["shape"] == ["", "/", "/"]
    assert len(set(bar["color"])) == 3
    words = [note["text"] for note in spec["layout"]["annotations"]]
    assert words == ["0.2", "0 <b>dead</b>", "0.99 <b>saturated</b>"]
    assert max(spec["layout"]["xaxis"]["tickvals"]) == 1.0


@pytest.mark.parametrize(("ratio", "kind"), [(5.0, "linear"), (20.0, "log")])
def test_energy_axis_is_logarithmic_beyond_a_factor_of_ten(ratio, kind):
    bars = [("a", estimate(1.0, unit="mJ")), ("b", estimate(ratio, unit="mJ"))]
    axis = figures.energy(bars).spec["layout"]["xaxis"]
    assert axis["type"] == kind
    assert ("log scale" in axis["title"]["text"]) is (kind == "log")


def test_neuron_settings_ring_the_ones_in_use():
    rows = [(str(i), estimate(90.0 + i, unit="%")) for i in range(3)]
    spec = drawable(figures.neurons(rows, [1]))
    assert list(spec.data[0].marker.line.width) == [0, 2, 0]


@given(st.integers(1, 10**5))
def test_thinning_keeps_both_ends_and_the_order(count):
    kept = thin(count)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))
    assert len(kept) <= min(count, 602)


@given(positive, st.floats(1.5, 1e12))
def test_log_ticks_lie_in_their_range(low, ratio):
    axis = log_ticks(low, low * ratio)
    assert all(low <= tick <= low * ratio * (1 + 1e-9) for tick in axis["tickvals"])
    assert len(axis["tickvals"]) == len(axis["ticktext"]) <= 10


def _luminance(code):
    parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_contrast_meets_wcag(palette):
    def contrast(name):
        pair = sorted((_luminance(palette[name]), _luminance(palette["paper"])))
        return (pair[1] + 0.05) / (pair[0] + 0.05)

    assert all(contrast(name) >= 4.5 for name in ("ink", "muted", "alert", "purple"))
    assert all(contrast(name) >= 3 for name in palette if name not in ("grid", "paper"))


def test_palettes_can_be_swapped_by_replacing_codes():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)
    assert not set(LIGHT.values()) & set(DARK.values())


def test_wording():
    assert text(estimate(2.0, 1.0, 4.0, "timesteps")) == "2 [1, 4] timesteps"
    assert text(estimate(None)) == "?"
    assert timesteps(estimate(2.0, 1.0, None)) == "2 [1 or more]"
    assert full(estimate(96.944, 94.61, 98.28, "%")) == "96.94 %\n94.6 to 98.3, n = 360"
    assert full(estimate(8.0, 4.0, None)) == "8\n4 or more, n = 360"
    assert [amount(v) for v in (0.0, 940.0, 15744.0, 1.05e7, 2e9)] == [
        "0",
        "940",
        "15.7 k",
        "10.5 M",
        "2 G",
    ]
    assert tidy("T = 2 costs 3 mJ, 5 % less") == "T\xa0=\xa02 costs 3\xa0mJ, 5\xa0% less"
