import gzip
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from spikedim.dimension import (
    estimator,
    get_estimator,
    growth_curve,
    list_estimators,
    measure,
    pca_count,
    pca_quantile,
    per_class,
    per_neighbourhood,
    published_protocol,
    ridge_dimension,
    spectrum,
)
from spikedim.dimension.arrays import as_samples
from spikedim.dimension.coverage import KEYS, CoverageCell, cover, coverage, heavy_tails, main
from spikedim.dimension.coverage_cases import growth, neighbourhoods, neighbours
from spikedim.dimension.estimators import corrected_traces, pca_share
from spikedim.dimension.growth import fit_growth
from spikedim.dimension.heldout import crossing, held_out
from spikedim.dimension.intervals import INTERVALS, MOSTLY_BIAS
from spikedim.dimension.moments import gram
from spikedim.dimension.populations import SHAPES, draw, population_value, true_eigenvalues
from spikedim.dimension.resampling import PLANS, Resampler
from spikedim.dimension.spectrum import Spectrum
from spikedim.errors import ConfigError, DataError

matplotlib.use("Agg")


def of(values, n=1000):
    values = np.asarray(values, float)
    return Spectrum(values, n, len(values), True, float(values.sum()))


def test_estimators_on_known_spectra():
    flat, single = of(np.ones(20)), of([5.0, 0, 0])
    for key in ("pr", "stable_rank", "entropy_rank"):
        assert_allclose(get_estimator(key).function(flat), 20)
        assert_allclose(get_estimator(key).function(single), 1)
    assert pca_count(flat) == 19
    assert pca_count(flat, 0.951) == 20
    assert_allclose(pca_quantile(flat, 0.33), 6.6)
    for d in (20, 80, 300, 2000, 100_000):  # the sum over 0.95·d of them is q but for rounding
        assert pca_count(of(np.ones(d))) == 0.95 * d
        assert pca_count(of(np.ones(d)), 0.95 + 1e-3 / d) == 0.95 * d + 1
    alike = np.concatenate([np.eye(80), -np.eye(80)])
    assert measure(alike, ["pca95"], interval="none")["pca95"].value == 76
    assert get_estimator("pca99.5").function(flat) == 20
    assert_allclose(ridge_dimension(of([3.0, 1.0]), 1.0), 0.75 + 0.5)
    assert_allclose(ridge_dimension(flat, 0.0), 20)
    geometric = of([4.0, 2.0, 1.0])
    assert_allclose(get_estimator("pr").function(geometric), 49 / 21)
    p = np.array([4, 2, 1]) / 7
    assert_allclose(get_estimator("entropy_rank").function(geometric), np.exp(stats.entropy(p)))


@pytest.mark.parametrize("centered", [True, False])
def test_corrected_traces_equal_their_u_statistics(centered):
    """The closed form against sums over all distinct index tuples."""
    from itertools import permutations

    n = 6
    x = np.random.default_rng(0).gamma(1.0, 1.0, (n, 3))
    z = x - x.mean(0) if centered else x
    degrees = n - 1 if centered else n
    s = z.T @ z / degrees
    fourth = float(((z**2).sum(1) ** 2).sum())
    found = corrected_traces(n, np.trace(s), (s * s).sum(), fourth, centered)
    if centered:
        quads = list(permutations(range(n), 4))
        pairs = [(x[i] - x[j], x[k] - x[m]) for i, j, k, m in quads]
        first = np.mean([(u @ u) * (v @ v) / 4 for u, v in pairs])
        second = np.mean([(u @ v) ** 2 / 4 for u, v in pairs])
    else:
        pairs = list(permutations(range(n), 2))
        first = np.mean([(x[i] @ x[i]) * (x[j] @ x[j]) for i, j in pairs])
        second = np.mean([(x[i] @ x[j]) ** 2 for i, j in pairs])
    assert_allclose(found, (first, second), rtol=1e-10)


def test_corrected_ratio_removes_the_sample_size_bias():
    values = true_eigenvalues("power-law", 100)
    truth = values.sum() ** 2 / (values @ values)
    rng = np.random.default_rng(0)
    reports = [
        measure(draw(values, 40, rng), ["pr", "pr_corrected"], interval="none") for _ in range(200)
    ]
    naive = np.mean([r["pr"].value for r in reports])
    fixed = 1 / np.mean([1 / r["pr_corrected"].value for r in reports])
    assert naive < 0.75 * truth
    assert abs(fixed / truth - 1) < 0.05


def test_report_is_complete_reproducible_and_renders():
    x = draw(true_eigenvalues("power-law", 30), 300, np.random.default_rng(0))
    report = measure(x, seed=4)
    assert list(report.estimates) == [
        "pca95", "pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge", "two_nn", "mle",
    ]  # fmt: skip
    assert report.to_dict() == measure(x, seed=4).to_dict()
    assert (report.n, report.d, report.centered) == (300, 30, True)
    for e in report.estimates.values():
        assert e.low <= e.value
        assert e.high is None or e.value <= e.high
        assert e.n == 300
    with pytest.raises(ConfigError, match=r"'nosuch' was not measured; choose from pca95, pr, "):
        report["nosuch"]
    assert "pca95" in str(report)
    assert "<table>" in report._repr_html_()
    ax = report.plot()
    assert len(ax.get_legend_handles_labels()[0]) == 6
    assert "rank 30" in str(report.spectrum)
    report.spectrum.plot()
    assert "pca90" in measure(x, quantile=0.9, interval="none").estimates


@pytest.mark.parametrize("interval", [i for i in INTERVALS if i != "none"])
@pytest.mark.parametrize("n", [60, 800])
def test_every_interval_holds_the_population_value_when_n_suffices(interval, n):
    d = 80 if n == 60 else 10
    values = true_eigenvalues("power-law", d) ** (2 if n == 60 else 1)
    truth = of(values)
    keys = ["pr", "stable_rank", "pr_corrected"] + (["pca80"] if n == 800 else [])
    inside = total = 0
    for seed in range(8):
        x = draw(values, n, np.random.default_rng(seed))
        report = measure(x, keys, interval=interval, seed=seed)
        for key in keys:
            want = get_estimator("pr" if key == "pr_corrected" else key).function(truth)
            e = report[key]
            assert e.confidence == 0.95
            inside += e.low <= want <= e.high
            total += 1
    assert inside >= 0.8 * total


def test_counts_warn_when_samples_are_too_few_and_not_otherwise():
    values = true_eigenvalues("power-law", 100)
    rng = np.random.default_rng(0)
    few = measure(draw(values, 80, rng), ["pca95"])
    assert any("pca95 is limited by n" in w for w in few.warnings)
    quick = measure(draw(values, 80, rng), ["pca95", "pr"], interval="none")
    assert any("limited by n" in w for w in quick.warnings)
    many = measure(draw(values[:20], 4000, rng), ["pca95", "pr"])
    assert many.warnings == ()
    naive = measure(draw(np.ones(100), 30, rng), ["pr"])
    assert any("see pr_corrected" in w for w in naive.warnings)


def test_a_count_is_limited_where_whole_components_are_missing():
    x = draw(true_eigenvalues("steep", 20), 600, np.random.default_rng(0))
    report = measure(x, ["pca95", "pca95_real"])
    assert [w.split(" ", 1)[0] for w in report.warnings] == ["pca95_real"]
    assert report["pca95"].value == 8
    few = draw(true_eigenvalues("power-law", 40), 400, np.random.default_rng(0))
    for interval in ("auto", "halves", "subsample", "bootstrap"):
        report = measure(few, ["pca95"], interval=interval)
        (note,) = report.warnings
        words = note.partition("about ")[2].split(" to ")
        assert all(word == f"{int(word)}" for word in words), interval
        assert int(words[-1]) > report["pca95"].value, interval


samples_of_any_kind = st.tuples(
    st.integers(4, 60), st.integers(1, 40), st.integers(0, 10_000), st.sampled_from([0, 1, 3]),
    st.sampled_from([np.float64, np.float32, np.int64, bool]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(samples_of_any_kind, st.sampled_from([i for i in INTERVALS if i != "none"]), st.booleans())
def test_every_interval_holds_its_own_value(kind, interval, center):
    """Whatever the data: few or many samples, heavy tails, ties, constant and low-rank ones."""
    n, d, seed, decay, dtype = kind
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.arange(1, d + 1.0) ** -decay
    if seed % 3 == 0:
        x = 5 * rng.standard_t(2, (n, d)).clip(-1e6, 1e6)
    if seed % 7 == 0:
        x[:, 0] = 1.0
    if seed % 11 == 0:
        x = x[:, :1] @ np.ones((1, d))
    report = measure(x.astype(dtype), center=center, interval=interval, seed=seed)
    for key, e in report.estimates.items():
        if e.low is not None:
            assert np.isfinite(e.low), key
            assert e.low <= e.value, key
            assert e.low >= min(get_estimator(key).least, e.value), key
        if report.spectrum.total_variance > 0 and not np.isnan(e.value):
            assert e.value >= get_estimator(key).least * (1 - 1e-9), key
        if e.high is not None:
            assert e.low is not None, key
            assert e.value <= e.high <= max(d, e.value) or key in ("two_nn", "mle"), key
        if e.low is not None and e.high is None:
            assert any(w.startswith(f"{key} is limited by n") for w in report.warnings), key


def test_no_interval_reaches_below_the_least_dimension_there_is():
    x = draw(np.arange(1, 7.0) ** -6, 10, np.random.default_rng(0))
    keys = ("pr", "pr_corrected", "stable_rank", "entropy_rank", "ridge", "pca95")
    least = {key: get_estimator(key).least for key in keys}
    assert least == {**dict.fromkeys(keys, 1.0), "ridge": 1 / 1.01}
    for interval in PLANS:
        found = measure(x, keys, interval=interval).estimates.items()
        lows = {key: e.low for key, e in found if e.low is not None}
        assert len(lows) >= 5
        assert all(low >= least[key] for key, low in lows.items()), interval
    single = of([7.0, 0, 0])
    for key in keys[2:]:
        assert get_estimator(key).function(single) == pytest.approx(least[key])


@pytest.mark.parametrize("shape", ["isotropic", "power-law", "spiked"])
def test_coverage_of_the_corrected_ratio(shape):
    for n, d in ((40, 150), (400, 40)):
        (cell,) = cover(shape, n, d, 80, estimators=("pr_corrected",))
        assert 0.86 <= cell.covered <= 1.0
        assert cell.width < 1.2


def too_rare(share, repetitions, nominal=0.95):
    """Fewer hits than a nominal interval has in all but one of 10,000 such experiments."""
    return round(share * repetitions) < stats.binom.ppf(1e-4, repetitions, nominal)


@pytest.mark.parametrize(
    ("shape", "n", "d"),
    [("isotropic", 200, 20), ("isotropic", 60, 20), ("spiked", 120, 20), ("power-law", 300, 10)],
)
def test_intervals_of_every_estimator_cover(shape, n, d):
    cells = cover(shape, n, d, 50)
    assert [c.key for c in cells] == list(KEYS)
    for cell in cells:
        assert not too_rare(cell.covered, 50), cell


@pytest.mark.parametrize("interval", ["subsample", "bootstrap", "jackknife"])
def test_intervals_of_the_other_plans_cover(interval):
    keys = ("pca95", "stable_rank", "entropy_rank", "ridge")
    for shape, n, d in (("isotropic", 150, 15), ("spiked", 120, 20)):
        for cell in cover(shape, n, d, 25, estimators=keys, interval=interval):
            assert not too_rare(cell.covered, 25), (interval, cell)


def test_intervals_are_as_wide_as_sampling_error_where_it_decides():
    """2·1.96 standard errors or a little more, not a bound that always covers."""
    values, rng = true_eigenvalues("power-law", 5) ** 2, np.random.default_rng(0)
    keys = ["stable_rank", "entropy_rank", "ridge"]
    reports = [measure(draw(values, 2000, rng), keys, seed=k) for k in range(30)]
    for key in keys:
        spread = np.std([r[key].value for r in reports], ddof=1)
        width = np.mean([r[key].high - r[key].low for r in reports])
        assert 3.0 * spread < width < 6.5 * spread, key
        assert not any(MOSTLY_BIAS in r[key].method for r in reports)


def test_what_is_not_bounded_by_the_samples_has_no_upper_end():
    x = draw(np.ones(500), 50, np.random.default_rng(0))
    report = measure(x, ["pca95", "stable_rank", "entropy_rank", "ridge"])
    for key, e in report.estimates.items():
        assert e.low <= e.value
        assert e.high is None
        assert any(w.startswith(f"{key} is limited by n") for w in report.warnings)
    assert f"{report['pca95'].low:g} or more" in str(report)
    assert report["pca95"].value == pca_count(report.spectrum)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("plan", ["halves", "jackknife"])
def test_a_bias_of_known_rate_is_found_exactly(plan, power):
    """1/θ = 0.1 + 0.3·n^-p is extrapolated to 0.1 by the weight of that p."""
    source = Resampler.of(as_samples(np.random.default_rng(0).standard_normal((80, 4))), True)
    found = PLANS[plan](
        source, source.spectrum(), [lambda s: 1 / (0.1 + 0.3 * s.n**-power)], 20,
        np.random.default_rng(0),
    )  # fmt: skip
    place = (0.5, 1.0).index(power)
    assert_allclose(found.at_n - found.missing[place], 0.1, rtol=1e-9)
    assert_allclose(found.spread, 0, atol=1e-9)


@pytest.mark.parametrize("center", [True, False])
def test_resamples_equal_spectra_of_their_rows_by_the_smaller_side(center):
    x = np.random.default_rng(0).standard_normal((50, 30)) + 1
    source = Resampler.of(as_samples(x), center)
    index = np.arange(0, 50, 2)
    chosen, others = source.split(index)
    assert (chosen.method, others.method) == ("gram", "gram")
    for found, rows in (
        (chosen, x[index]), (others, x[1::2]),
        (source.without(index[:5]), np.delete(x, index[:5], 0)),
        (source.split(index[:4])[1], np.delete(x, index[:4], 0)),
    ):  # fmt: skip
        want = spectrum(rows, center)
        assert_allclose(found.eigenvalues[:20], want.eigenvalues[:20], rtol=1e-9)
        assert_allclose(found.fourth, want.fourth, rtol=1e-9)


def test_coverage_of_counts_where_they_are_not_limited():
    (cell,) = cover("power-law", 3000, 20, 12, estimators=("pca95",))
    assert cell.warned == 0
    assert cell.covered >= 0.8
    assert cover("spiked", 60, 50, 5, estimators=("pca95",))[0].warned == 1


def test_coverage_command_writes_its_table(tmp_path, capsys):
    out = tmp_path / "coverage.md"
    only = ["--parts", "spectra", "--ratios", "3", "--shapes", "isotropic"]
    main(["--repetitions", "2", "--out", str(out), *only])
    text = out.read_text()
    assert text.count("\n| isotropic") == len(KEYS)
    assert "2 repetitions" in text
    with pytest.raises(ConfigError, match="shape"):
        true_eigenvalues("round", 3)


@pytest.mark.parametrize(("name", "n"), [("circle", 200), ("cube-10", 200), ("torus-5", 500)])
def test_intrinsic_dimensions_have_the_interval_of_their_own_mean(name, n):
    """Not of the dimension, of which a nearest-neighbour value is biased."""
    rows = neighbours(60, 0, (name,), (n,)).table.rows
    assert [row[0] for row in rows] == ["two_nn", "mle"]
    for row in rows:
        assert not too_rare(row[6] / 100, 60), row
    if name != "circle":
        assert rows[1][7] < 50


def test_means_over_neighbourhoods_cover():
    """Neighbourhoods of 30 among 150 samples overlap: independent values would be too narrow."""
    (row,) = neighbourhoods(16, 0, [("gaussian", 150, 30)], 60).table.rows
    assert not too_rare(row[-1] / 100, 16), row
    x = draw(true_eigenvalues("power-law", 20), 150, np.random.default_rng(0))
    found = per_neighbourhood(x, 30, limit=None)
    naive = 2 * 1.98 * found.values.std(ddof=1) / np.sqrt(150)
    assert found.mean.high - found.mean.low > 1.5 * naive
    assert per_neighbourhood(x, 30, limit=5).mean.low is None
    every = per_neighbourhood(x[:40], 40, limit=None)
    assert_allclose(every.values, measure(x[:40], ["pr_corrected"])["pr_corrected"].value)
    assert every.mean.low < every.mean.value < every.mean.high


@pytest.mark.parametrize("key", ["pca95", "pr", "stable_rank"])
def test_limits_of_growth_curves_cover(key):
    (row,) = growth(25, 0, (key,), (("gaussian", 200),)).table.rows
    assert not too_rare(row[-1] / 100, 25), row


def test_intervals_on_sparse_factors_cover_as_documented():
    """Three events per factor: the top direction is often missed, and a linear end with it."""
    keys = ("pr", "stable_rank", "entropy_rank")
    for cell in cover("power-law", 150, 50, 60, estimators=keys, law="sparse"):
        assert not too_rare(cell.covered, 60, 0.92), cell
    with pytest.raises(ConfigError, match="law"):
        draw(np.ones(3), 5, np.random.default_rng(0), "cauchy")


@pytest.mark.parametrize("center", [True, False])
def test_variance_held_out_is_the_same_from_both_sides(center):
    x = draw(true_eigenvalues("power-law", 12), 61, np.random.default_rng(0))
    samples = as_samples(x)
    wide = Resampler(samples, center, gram(samples, center))
    tall = Resampler.of(samples, center)
    found = [held_out(s, s.spectrum(), 3, np.random.default_rng(1)) for s in (wide, tall)]
    for name in ("inside", "outside", "middle", "error"):
        ends = [getattr(f, name)[:13] for f in found]
        assert_allclose(*ends, rtol=1e-8, atol=1e-8)
    order = np.random.default_rng(1).permutation(61)
    sums = total = 0.0
    for chosen, others in ((order[:30], order[30:]), (order[30:], order[:30])):
        mean = x[chosen].mean(axis=0) * center
        _, _, axes = np.linalg.svd(x[chosen] - mean)
        sums = sums + np.cumsum((((x[others] - mean) @ axes.T) ** 2).sum(axis=0))
        total += ((x[others] - mean) ** 2).sum()
    one = held_out(tall, tall.spectrum(), 1, np.random.default_rng(1))
    assert_allclose(one.outside[1:], sums / total, rtol=1e-9)
    assert_allclose(one.inside[-1], 1)


def test_the_population_lies_between_variance_inside_and_held_out():
    for shape in SHAPES:
        values = true_eigenvalues(shape, 20)
        share = np.concatenate([[0], np.cumsum(values) / values.sum()])
        rng = np.random.default_rng(0)
        inside, outside = np.zeros(21), np.zeros(21)
        for _ in range(60):
            source = Resampler.of(as_samples(draw(values, 100, rng)), True)
            held = held_out(source, source.spectrum(), 1, rng)
            inside, outside = inside + held.inside / 60, outside + held.outside / 60
        assert (inside >= share - 3e-3).all()
        assert (outside <= share + 3e-3).all()


def test_crossing_is_linear_between_components_and_infinite_where_not_reached():
    shares = np.array([0.0, 0.5, 0.4, 0.9])
    assert_allclose([crossing(shares, q) for q in (0.25, 0.5, 0.7, 0.9)], [0.5, 1, 2.5, 3])
    assert crossing(shares, 0.95) == np.inf
    assert crossing(np.array([0.3, 1.0]), 0.2) == 0


def test_the_count_and_its_interval_are_the_real_valued_one_rounded_up():
    x = draw(true_eigenvalues("steep", 200), 800, np.random.default_rng(0))
    report = measure(x, ["pca95", "pca95_real", "pca99_real"])
    count, real = report["pca95"], report["pca95_real"]
    assert real.value == pca_quantile(report.spectrum)
    for name in ("value", "low", "high"):
        assert getattr(count, name) == np.ceil(getattr(real, name) - 1e-9)
    assert real.low < real.value < real.high
    assert report["pca99_real"].value == pca_quantile(report.spectrum, 0.99)
    halves = measure(x, ["pca95_real"], interval="halves")["pca95_real"]
    assert halves.low <= real.value <= halves.high
    with pytest.raises(ConfigError, match="reserved"):
        estimator("pca80_real")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, ""),
        ({"covered": 0.85}, "covers too rarely"),
        ({"covered": 1.0, "warned": 0.6}, "limited by n"),
        ({"covered": 1.0, "key": "pca95"}, "whole components"),
        ({"covered": 1.0, "truth": 20.0}, "truth is d, the upper limit"),
        ({"covered": 1.0}, "holds its own value"),
        ({"covered": 1.0, "key": "ridge", "biased": 0.9}, "mostly bias"),
        ({"covered": 1.0, "key": "ridge"}, "covers too often"),
    ],
)
def test_coverage_outside_what_is_wanted_has_a_reason(changes, note):
    cell = CoverageCell("spiked", 200, 20, "pr", 9.0, 0.1, 0.95, 0.1, 0.0, 0.0, 0.0)
    assert replace(cell, **changes).note == note


@pytest.mark.slow
def test_coverage_table():
    """docs/coverage.md is what the code gives, and its intervals cover 90 to 99 % or say why not.

    The keys the promise is for, on the whole grid and with all 500 repetitions.
    """
    found = coverage(estimators=("pca95", "pca95_real", "pr", "pr_corrected"))
    written = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text(encoding="utf-8")
    for table in found.tables():
        section = written.split(f"## {table.title}\n")[1].split("\n## ")[0]
        for row in table.cells():
            assert "| " + " | ".join(row) + " |" in section
    for cell in found.cells:
        assert cell.covered >= 0.9, cell
        if cell.key in ("pca95", "pca95_real") and cell.n <= 3 * cell.d:
            assert cell.warned > 0.9, cell
        if cell.key in ("pca95_real", "pr_corrected"):
            assert cell.note in ("", "limited by n", "truth is d, the upper limit"), cell
    assert sum(c.sufficient and c.note == "" for c in found.cells if c.key == "pca95_real") >= 4
    assert all(c.sufficient for c in found.cells if c.key == "pr_corrected")


@pytest.mark.slow
def test_coverage_of_further_cases_is_as_written():
    """A case of every further table of docs/coverage.md, in full."""
    written = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text(encoding="utf-8")
    for found in (
        neighbours(200, 0, ("circle",), (200,)),
        neighbourhoods(40, 0, (("gaussian", 300, 20),)),
        growth(60, 0, ("stable_rank",), (("gaussian", 320),)),
        heavy_tails(200, 0, ("sparse",), ("power-law",), ((150, 50),)),
    ):
        section = written.split(f"## {found.table.title}\n")[1].split("\n## ")[0]
        for line in found.table.to_markdown():
            assert line in section


def test_user_estimators_take_part():
    @estimator("above_mean_test")
    def above_mean(spectrum):
        """Kaiser's rule."""
        return float((spectrum.eigenvalues > spectrum.total_variance / spectrum.d).sum())

    @estimator("samples_test", needs="samples")
    def widest(x, rng):
        """Feature with the largest range."""
        return float(np.argmax(np.ptp(x, axis=0)))

    x = np.random.default_rng(0).standard_normal((100, 5)) * [1, 1, 9, 1, 1]
    report = measure(x, ["above_mean_test", "samples_test"])
    assert report["above_mean_test"].value == 1
    assert report["samples_test"].value == 2
    assert "above_mean_test" in [e.key for e in list_estimators()]
    with pytest.raises(ConfigError, match="registered already"):
        estimator("pr")(lambda s: 0.0)
    with pytest.raises(ConfigError, match="reserved"):
        estimator("pca80")
    with pytest.raises(ConfigError, match="needs"):
        estimator("a", needs="labels")


@pytest.mark.parametrize(
    "arguments",
    [
        {"estimators": ["pca100"]},
        {"estimators": ["nope"]},
        {"interval": "magic"},
        {"quantile": 1.5},
        {"confidence": 0},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ConfigError):
        measure(np.eye(5), **arguments)
    with pytest.raises(ConfigError):
        ridge_dimension(of([1.0]), float("nan"))


def test_intrinsic_dimensions_of_a_curved_surface():
    rng = np.random.default_rng(0)
    u = rng.uniform(0, 1, (1500, 2))
    x = np.stack([u[:, 0], u[:, 1], np.sin(3 * u[:, 0]), u[:, 0] * u[:, 1]], axis=1)
    report = measure(x, ["two_nn", "mle", "pr"], interval="none")
    assert abs(report["two_nn"].value - 2) < 0.25
    assert abs(report["mle"].value - 2) < 0.25
    still = measure(rng.standard_normal((400, 30)), ["two_nn", "mle"])
    for key in ("two_nn", "mle"):
        assert still[key].low < still[key].value < still[key].high < 30
        assert "its bias not included" in still[key].method
    assert any(w.startswith("mle is limited by n") for w in still.warnings)
    angles = 2 * np.pi * rng.random((1000, 5))
    torus = measure(np.hstack([np.cos(angles), np.sin(angles)]), ["mle"])
    assert torus["mle"].low > 5
    assert any(w.startswith("mle is limited by n") for w in torus.warnings)
    line = measure(u[:, :1], ["two_nn", "mle"])
    assert line["mle"].low < 1 < line["mle"].high
    assert abs(line["two_nn"].value - 1) < 0.2
    wide = measure(np.tile(x[:300], (1, 40_000)), ["two_nn"], interval="none")
    assert wide["two_nn"].n == 209
    capped = measure(rng.standard_normal((5200, 2)), ["mle"], interval="none")
    assert any("5,000 of 5,200" in w for w in capped.warnings)


@pytest.mark.filterwarnings("error")
def test_points_that_are_all_equally_far_have_no_finite_intrinsic_dimension():
    report = measure(np.eye(60), ["mle", "two_nn", "pr"])
    for key in ("mle", "two_nn"):
        corners = report[key]
        assert corners.value == np.inf
        assert (corners.low, corners.high, corners.method) == (None, None, "no interval")
    assert any("100 % of the samples are equally far" in note for note in report.warnings)


def test_tied_neighbours_are_told_and_give_no_interval_of_no_width():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(15), np.arange(15)), axis=-1).reshape(-1, 2)
    assert measure(grid, ["two_nn"])["two_nn"].value == np.inf
    counts = measure(rng.integers(0, 9, (300, 1)), ["two_nn", "mle"])
    for key in ("two_nn", "mle"):
        assert (counts[key].low, counts[key].method) == (None, "no interval")
    assert any(note.startswith("two_nn and mle are for points") for note in counts.warnings)
    smooth = measure(rng.standard_normal((300, 3)).astype(np.float32), ["two_nn", "mle"])
    assert not any("continuum" in note for note in smooth.warnings)


@pytest.mark.parametrize("q", [0.9999999, 1e-7, 1 / 3, 0.07])
def test_the_default_count_is_at_the_quantile_to_its_last_digit(q):
    x = np.random.default_rng(0).standard_normal((30, 4))
    key = next(key for key in measure(x, quantile=q, interval="none").estimates if "pca" in key)
    assert pca_share(key) == pytest.approx(q, rel=1e-14)
    assert get_estimator(key).summary.startswith(f"components that reach {key[3:]} %")


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 3e7), (1.0, 1e9), (1e-69, 0.0), (1e70, 0.0)])
def test_neighbours_do_not_depend_on_the_mean_or_the_unit(factor, shift):
    x = np.random.default_rng(0).standard_normal((120, 20))
    plain, moved = (measure(v, ["two_nn", "mle"]) for v in (x, factor * x + shift))
    for key in ("two_nn", "mle"):
        for end in ("value", "low", "high"):
            found = getattr(moved[key], end)
            assert found == pytest.approx(getattr(plain[key], end), rel=1e-4)


def test_published_protocol_on_subsamples():
    x = draw(true_eigenvalues("power-law", 40), 500, np.random.default_rng(0))
    found = published_protocol(x)
    assert found.n == 400
    assert found.low <= found.value <= found.high
    assert abs(found.value - pca_count(spectrum(x))) < 3
    assert published_protocol(x, seed=0) == found
    with pytest.raises(ConfigError, match="repeats"):
        published_protocol(x, repeats=1)
    with pytest.raises(ConfigError, match="quantile"):
        published_protocol(x, quantile=0)


def test_growth_curve_extrapolates():
    values = true_eigenvalues("power-law", 30)
    truth = pca_quantile(of(values))
    curve = growth_curve(draw(values, 3000, np.random.default_rng(1)))
    assert (np.diff(curve.values) > 0).all()
    assert not curve.limited
    assert curve.limit.low <= truth <= curve.limit.high
    assert_allclose(curve.fit(curve.sizes[-1]), curve.values[-1], rtol=0.02)
    assert "∞" in str(curve)
    curve.plot()
    few = growth_curve(draw(values, 17, np.random.default_rng(1)), "pr_corrected", sizes=[4, 5, 6])
    assert few.limit.low <= few.limit.value <= few.limit.high
    short = growth_curve(draw(values, 40, np.random.default_rng(1)))
    assert short.limited
    sizes = np.array([10.0, 40, 160, 640])
    assert_allclose(fit_growth(sizes, 20 - 6 / np.sqrt(sizes) - 30 / sizes), (20, 6, 30), rtol=1e-6)
    with pytest.raises(ConfigError, match="sizes"):
        growth_curve(np.zeros((50, 2)), sizes=[5, 10])
    with pytest.raises(ConfigError, match="spectrum"):
        growth_curve(np.zeros((50, 2)), "mle")


def test_growth_curve_names_what_it_counts_and_where_its_fit_holds():
    values = true_eigenvalues("power-law", 30)
    curve = growth_curve(draw(values, 200, np.random.default_rng(1)))
    assert curve.estimator == "pca95_real"
    assert curve.values[-1] != round(curve.values[-1])
    assert curve.sizes[0] == 6
    assert abs(curve.fit(6) - curve.values[0]) > 5 * curve.spread[0]
    assert curve.fits_from > 6
    later = curve.sizes >= curve.fits_from
    off = np.abs(curve.fit(curve.sizes) - curve.values)
    assert (off <= np.fmax(curve.spread, 0.05 * curve.values))[later].all()
    (table,) = curve.tables()
    assert table.columns[1] == "pca95_real"
    assert f"from n = {curve.fits_from:.0f} on" in table.notes[-2]
    assert "θ_∞ − a/√n − b/n" in table.notes[-1]
    assert curve.limit.method in table.notes[-1]
    assert table.columns[-1] == "n → ∞, 95 % interval"
    assert np.isnan(curve.spread[-1])
    assert [row[2] is None for row in table.rows] == [False] * 5 + [True] * 2
    assert [row[3] for row in table.rows] == [None] * 6 + [curve.limit]
    assert table.cells()[-2][2] == "–"
    axes = curve.plot()
    line = next(line for line in axes.lines if len(line.get_xdata()) == 200)
    assert line.get_xdata()[0] == pytest.approx(curve.fits_from)
    assert line.get_ydata().min() > 0
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"mean of subsets ± s.d.", "n → ∞, 95 % interval"} <= set(labels)


@pytest.mark.parametrize(
    ("shape", "d", "n", "key"),
    [
        ("isotropic", 100, 30, "pca95"),
        ("power-law", 100, 100, "pca95"),
        ("isotropic", 100, 200, "stable_rank"),
        ("spiked", 100, 30, "entropy_rank"),
    ],
)
def test_without_a_law_a_growth_curve_gives_a_lower_end_alone(shape, d, n, key):
    values = true_eigenvalues(shape, d)
    population = Spectrum(values, 1, d, True, float(values.sum()))
    curve = growth_curve(draw(values, n, np.random.default_rng(0)), key)
    truth = population_value(curve.estimator, population)
    assert not curve.seen
    assert curve.limited
    assert curve.limit.high is None
    assert curve.limit.low < curve.limit.value == curve.values[-1] < truth
    assert_allclose(curve.fit(1e18), curve.asymptote)
    (table,) = curve.tables()
    assert table.rows[-1][0] == "∞"
    assert table.cells()[-1][-1].endswith("or more]")
    assert any("no law is seen to hold" in note for note in table.notes)
    assert not any("holds from" in note for note in table.notes)
    labels = [text.get_text() for text in curve.plot().get_legend().get_texts()]
    assert any(label.endswith("or more") for label in labels)
    assert not any(label.startswith("fit") for label in labels)


@pytest.mark.parametrize("key", ["pca95", "pr", "stable_rank", "entropy_rank"])
@pytest.mark.parametrize("n", [320, 1000])
def test_where_a_law_holds_a_growth_curve_has_two_ends(key, n):
    """Cases of the table of docs/coverage.md."""
    x = draw(true_eigenvalues("power-law", 30), n, np.random.default_rng([0, n]))
    curve = growth_curve(x, key)
    assert curve.seen
    assert curve.limit.low < curve.limit.value < curve.limit.high
    assert curve.limit.value == curve.asymptote


def test_samples_without_variance_have_a_growth_curve():
    assert "∞" in str(growth_curve(np.ones((40, 3)), "pr"))


def test_dimension_per_class_and_per_neighbourhood():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((400, 10)) * np.r_[np.ones(3), np.zeros(7)]
    full = rng.standard_normal((400, 10)) + 50
    x, labels = np.vstack([flat, full]), np.repeat(["flat", "full"], 400)
    found = per_class(x, labels)
    assert_allclose(found.estimates["flat"].value, 3, rtol=0.05)
    assert_allclose(found.estimates["full"].value, 10, rtol=0.05)
    assert found.estimates["flat"].high < found.estimates["full"].low
    assert "flat" in str(found)
    found.plot()
    near = per_neighbourhood(x, 50, limit=200)
    low = near.values[near.index < 400]
    assert low.mean() < 4 < near.values[near.index >= 400].mean()
    assert near.mean.low < near.mean.value < near.mean.high
    assert "median" in str(near)
    near.plot()
    with pytest.raises(DataError, match="labels"):
        per_class(x, labels[:-1])
    with pytest.raises(DataError, match="class"):
        per_class(x[:401], labels[:401])
    with pytest.raises(DataError, match="fewer"):
        per_neighbourhood(x[:20], 50)
    with pytest.raises(ConfigError, match="neighbours"):
        per_neighbourhood(x, 2)
    with pytest.raises(ConfigError, match="spectrum"):
        per_class(x, labels, "two_nn")


def test_sparse_text_is_measured_without_densifying(shared):
    import tracemalloc

    from sklearn.feature_extraction.text import TfidfVectorizer

    with gzip.open(shared / "data" / "sst2.tsv.gz", "rt", encoding="utf-8") as handle:
        lines = [line.rstrip("\n") for line in handle][1:1501]
    x = TfidfVectorizer().fit_transform(lines)
    assert sp.issparse(x)
    tracemalloc.start()
    report = measure(x, ["pr", "pr_corrected"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.75 * 8 * x.shape[0] * x.shape[1] + (64 << 20)
    assert report["pr_corrected"].low <= report["pr_corrected"].value


def test_the_floor_stands_alone():
    import subprocess
    import sys

    code = (
        "import sys, spikedim.dimension as d; "
        "heavy = {'torch', 'sklearn', 'skdim', 'matplotlib', 'plotly', 'lightning'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("shape", ["power-law", "spiked"])
def test_corrected_ratio_agrees_with_an_independent_package(shape):
    package = pytest.importorskip("dimensionality")
    x = draw(true_eigenvalues(shape, 80), 60, np.random.default_rng(0))
    want = float(package.participation_ratio(x, return_all=True)["row"])
    found = measure(x, ["pr_corrected"])["pr_corrected"]
    assert found.low <= want <= found.high
    assert_allclose(found.value, want, rtol=1e-6)


def test_a_half_of_equal_samples_does_not_stop_the_measurement():
    """One sample differs from all the others: half of the data has no variance at all."""
    x = np.zeros((40, 7))
    x[3] = np.arange(7)
    report = measure(x, ["pca95", "pr"])
    assert report["pca95"].value == 1
    assert report["pca95"].low <= 1
