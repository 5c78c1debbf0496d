"""From samples to graph: regressions, residual tests, recordings, the command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from spikedim.cli import main
from spikedim.errors import ConfigError, DataError, SpikedimWarning
from spikedim.neurons import LIF, record
from spikedim.order import (
    Recorded,
    ScoreConfig,
    Variables,
    causal_order,
    check_residuals,
    graph_of,
    hamming_distance,
    hsic_p_values,
    random_model,
    read_variables,
    recorded_variables,
    sparse_regressions,
)


def fails(capsys, *words):
    """Run a command that must fail as a user's mistake; return its one line."""
    with pytest.raises(SystemExit) as caught:
        main(["order", "--quiet", *map(str, words)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


@pytest.fixture
def linear():
    model = random_model(6, edges=1.5, seed=3)
    return model, model.sample(1500, seed=1)


@pytest.mark.parametrize("basis", ["linear", "spline"])
def test_true_order_gives_the_true_graph_of_linear_models(linear, basis):
    model, x = linear
    found = sparse_regressions(x, model.order(), basis)
    assert hamming_distance(graph_of([found[k] for k in range(6)]), model.graph) == 0
    for regression in found:
        noise = regression.noise_variance
        assert noise.low < noise.value < noise.high
        for edge in regression.edges:
            if basis == "linear":
                true = float(model.weights[edge.cause, edge.effect])
                assert abs(edge.weight.value - true) < 5 * (edge.weight.high - edge.weight.low) / 4
            else:
                assert edge.weight is None


@pytest.mark.parametrize(("basis", "unit"), [("linear", 1e-13), ("spline", 1e-8), ("linear", 1e12)])
def test_the_unit_of_the_data_changes_nothing_but_units(linear, basis, unit):
    model, x = linear
    x = x[:500]
    plain, scaled = (causal_order(v, estimator="gaussian", basis=basis) for v in (x, x * unit))
    assert len(plain.edges) == model.graph.sum()
    assert [(e.cause, e.effect) for e in scaled.edges] == [(e.cause, e.effect) for e in plain.edges]
    assert scaled.order == plain.order
    assert scaled.warnings == plain.warnings
    for one, other in zip(plain.variables, scaled.variables, strict=True):
        assert other.noise_variance.value == pytest.approx(one.noise_variance.value * unit**2)
        assert other.diagonal == pytest.approx(one.diagonal / unit**2)


def test_rows_of_a_period_are_not_mistaken_for_all():
    """Rows of T = 5 timesteps a sample: from the second one on, x1 causes x2."""
    x = np.random.default_rng(0).standard_normal((19_996, 2))
    x[np.arange(19_996) % 5 > 0, 1] += 2 * x[np.arange(19_996) % 5 > 0, 0]
    assert graph_of(sparse_regressions(x, [0, 1]))[0, 1]
    noise = sparse_regressions(x, [0, 1])[1].noise_variance.value
    whole = sparse_regressions(x, [0, 1], "linear")[1].noise_variance.value
    assert noise == pytest.approx(whole, rel=0.1)


def test_splines_see_what_a_line_does_not():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 2))
    x[:, 1] += 2 * x[:, 0] ** 2
    assert not graph_of(sparse_regressions(x, [0, 1], "linear", 1e-6)).any()
    assert graph_of(sparse_regressions(x, [0, 1], "spline")).tolist() == [
        [False, True],
        [False] * 2,
    ]


def test_counts_with_few_values_and_wide_tables_are_regressed():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.3, (200, 3)).astype(float)
    counts[:, 2] += 3 * counts[:, 0]
    assert graph_of(sparse_regressions(counts, [0, 1, 2]))[0, 2]
    wide = rng.standard_normal((70, 14))
    wide[:, 13] = wide[:, 0] * 3 + wide[:, 13]
    assert graph_of(sparse_regressions(wide, range(14)))[0, 13]


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_p_values_of_few_levels_are_those_of_the_analysis_of_variance(levels):
    rng = np.random.default_rng(levels)
    group = rng.integers(0, levels, 400)
    x = np.column_stack([group, 0.4 * (group == 1) + rng.standard_normal(400)])
    (edge,) = sparse_regressions(x, [0, 1], level=0.9)[1].edges
    groups = [x[group == k, 1] for k in range(levels)]
    assert edge.p_value == pytest.approx(stats.f_oneway(*groups).pvalue, rel=1e-5)
    assert edge.weight is None


def test_groups_coded_as_zeros_and_ones_and_rare_values_are_regressed():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 9001)
    y = 2.0 * (group == 1) + rng.standard_normal(9001)
    rare = np.zeros(9001)
    rare[1] = 1  # not among the rows that splines take
    x = np.column_stack([rare, *(group == k for k in range(3)), y])
    found = sparse_regressions(x, range(5))
    assert found[4].causes in ((2,), (1, 3), (3, 1))
    assert found[4].noise_variance.value == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("estimator", ["network", "gaussian", "stein"])
@pytest.mark.parametrize("marginal", ["schur", "refit"])
def test_columns_of_two_values_are_ordered(estimator, marginal):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    x[:, 0] = x[:, 0] > 0
    x[:, 1] += 2 * x[:, 0]
    x[:, 3] = x[:, 3] + x[:, 1] > 0
    found = causal_order(
        x, estimator=estimator, marginal=marginal, basis="spline", config=ScoreConfig(steps=20)
    )
    assert all(0 < v.diagonal < 1e3 for v in found.variables)
    assert {"x1", "x2"} in [{e.cause, e.effect} for e in found.edges]


def test_hamming_distance_counts_a_reversal_once():
    graph = np.zeros((3, 3), bool)
    graph[0, 1] = graph[1, 2] = True
    assert hamming_distance(graph, graph) == 0
    assert hamming_distance(graph.T, graph) == 2
    assert hamming_distance(np.zeros((3, 3), bool), graph) == 2


def test_hsic_level_power_and_permutation_parity():
    rng = np.random.default_rng(1)
    null = np.concatenate(
        [hsic_p_values(rng.standard_normal(150), rng.standard_normal((150, 4))) for _ in range(40)]
    )
    assert (null < 0.05).mean() == pytest.approx(0.05, abs=0.05)
    x = rng.uniform(-1, 1, 200)
    assert hsic_p_values(x**2 + 0.1 * rng.standard_normal(200), x[:, None])[0] < 1e-6
    y = 0.15 * x + 0.3 * rng.standard_normal(200)

    def statistic(y):
        kernels = []
        for v in (y, x):
            squared = (v[:, None] - v) ** 2
            kernels.append(np.exp(-squared / 2 / np.median(squared[squared > 0])))
        centre = np.eye(200) - 1 / 200
        return float((centre @ kernels[0] @ centre * kernels[1]).sum())

    permuted = np.array([statistic(rng.permutation(y)) for _ in range(200)])
    by_permutation = (1 + (permuted >= statistic(y)).sum()) / 201
    assert hsic_p_values(y, x[:, None])[0] == pytest.approx(by_permutation, abs=0.06)
    assert hsic_p_values(np.ones(50), rng.standard_normal((50, 1)))[0] == 1
    assert hsic_p_values(rng.standard_normal(50), np.ones((50, 1)))[0] == 1


def test_post_nonlinear_noise_fails_the_residual_test_and_additive_noise_does_not():
    rng = np.random.default_rng(2)
    cause, noise = rng.standard_normal((2, 1000))
    post_nonlinear = np.exp(1.5 * np.sin(1.5 * cause) + 0.7 * noise)
    for effect, dependent in ((np.sin(cause) * 2 + noise, False), (post_nonlinear, True)):
        x = np.column_stack([cause, effect])
        checks = check_residuals(x, sparse_regressions(x, [0, 1]), level=0.01)
        assert checks[0].p_value is None
        assert checks[1].dependent is dependent
    found = causal_order(
        Variables(("a", "b"), np.column_stack([cause, post_nonlinear])), estimator="stein"
    )
    assert any("not additive" in text for text in found.warnings)


def regressions_of(graph, order):
    """Who causes whom, as in the true graph."""
    return [
        SimpleNamespace(variable=j, causes=tuple(np.flatnonzero(graph[:, j]).tolist()))
        for j in order
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "basis", "d"), [("linear", "linear", 10), ("linear", "spline", 5)]
)
def test_the_residual_test_keeps_its_level_for_all_variables_together(kind, basis, d):
    """Right models: at most the 99.9 % quantile of a binomial count is rejected at each level."""
    least = []
    for seed in range(100):
        model = random_model(d, kind, seed=seed)
        x = model.sample(2000, seed=1000 + seed)
        checks = check_residuals(x, regressions_of(model.graph, model.order()), basis, seed=seed)
        least.append(min(check.p_value for check in checks[1:]))
    for level in (0.01, 0.05, 0.2):
        assert (np.array(least) <= level).sum() <= stats.binom.ppf(0.999, 100, level)


def test_a_left_out_cause_is_found_and_right_ones_are_not():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 4))
    x[:, 3] += x[:, 0] + np.sin(2 * x[:, 1])
    graph = np.zeros((4, 4), bool)
    graph[[0, 1], 3] = True
    right = check_residuals(x, regressions_of(graph, range(4)))
    assert not any(check.dependent for check in right)
    assert all(1e-3 <= check.p_value <= 1 for check in right[1:])
    assert check_residuals(x, regressions_of(graph, range(4))) == right
    graph[1, 3] = False
    assert [c.dependent for c in check_residuals(x, regressions_of(graph, range(4)))][3]
    with pytest.raises(ConfigError, match=r"from 0\.0001"):
        check_residuals(x, regressions_of(graph, range(4)), level=1e-5)


def test_a_linear_model_with_names_noise_and_edges(linear):
    model, x = linear
    found = causal_order(x, estimator="gaussian")
    assert found.warnings == ()
    place = {name: k for k, name in enumerate(found.order)}
    causes, effects = np.nonzero(model.graph)
    edges = {(f"x{i + 1}", f"x{j + 1}") for i, j in zip(causes, effects, strict=True)}
    assert {(e.cause, e.effect) for e in found.edges} == edges
    assert all(place[cause] < place[effect] for cause, effect in edges)
    assert not np.tril(found.adjacency).any()
    assert found.variables[0].causes == ()
    plain = found.to_dict()
    assert plain == json.loads(json.dumps(plain))
    assert "Causal order of 6 variables" in str(found)
    assert "x1" in found._repr_html_()


def test_what_the_data_contradict_is_told(linear):
    _, x = linear
    told = causal_order(x[:60], estimator="gaussian").warnings
    assert any(text.startswith("few samples") for text in told)
    told = causal_order(x / x.std(0), estimator="gaussian").warnings
    assert any("standardised" in text for text in told)
    unequal = random_model(6, edges=1.5, noise=np.array([1, 4, 1, 0.3, 1, 2]), seed=3)
    sample = unequal.sample(1500, seed=1)
    assert any(
        "noise variances differ" in t for t in causal_order(sample, estimator="gaussian").warnings
    )
    known = causal_order(sample, estimator="gaussian", noise_variance=unequal.noise**2)
    assert known.warnings == ()
    curved = random_model(5, "gp-add", edges=1.5, seed=2).sample(800)
    assert any("expectation gap" in t for t in causal_order(curved, estimator="stein").warnings)
    refit = causal_order(curved, estimator="stein", marginal="refit")
    assert not any("expectation gap" in t for t in refit.warnings)
    steps = Variables(("a", "b"), x[:, :2], rows_per_sample=4)
    assert any("4 timesteps" in t for t in causal_order(steps, estimator="gaussian").warnings)


def test_only_the_ratios_of_known_noise_variances_count():
    model = random_model(4, "gp-add", edges=1.5, noise=np.array([1, 2, 1, 0.5]), seed=2)
    x = model.sample(500)
    known = model.noise**2
    small, large = (
        causal_order(x, estimator="stein", noise_variance=factor * known) for factor in (1e-3, 1e3)
    )
    assert any("expectation gap" in text for text in small.warnings)
    assert small.warnings == large.warnings
    for one, other in zip(small.variables, large.variables, strict=True):
        assert other.diagonal == pytest.approx(one.diagonal, rel=1e-9)
    metres = causal_order(x / 1000, estimator="stein", noise_variance=known)
    assert metres.variables[0].diagonal == pytest.approx(1e6 * small.variables[0].diagonal)
    assert list(large.to_dict()["noise_variance"].values()) == pytest.approx(list(1e3 * known))
    assert "noise variances known (x1 0.001, " in str(small)
    # equal ones are those that are assumed
    plain = causal_order(x, estimator="stein")
    same = causal_order(x, estimator="stein", noise_variance=np.full(4, 7.0))
    assert same.variables == plain.variables
    assert plain.noise_variance is None


def test_the_expectation_gap_is_told_of_bent_functions_only():
    def gap_told(kind, seed):
        x = random_model(5, kind, edges=1.5, seed=seed).sample(1000, seed=seed + 100)
        found = causal_order(x, estimator="gaussian", basis="spline")
        assert all((v.gap_p_value is None) == (not v.causes) for v in found.variables)
        return any(text.startswith("expectation gap") for text in found.warnings)

    assert sum(gap_told("linear", seed) for seed in range(8)) <= 1
    assert all(gap_told("gp-add", seed) for seed in range(2))


def test_rows_that_splines_leave_out_are_told():
    x = random_model(3, seed=0).sample(4001)
    told = causal_order(x, estimator="stein")
    assert any("4,000 of the 4,001 rows" in text for text in told.warnings)
    assert told.variables[0].noise_variance.n == 4000
    for all_rows in (
        causal_order(x[:4000], estimator="stein"),
        causal_order(x, estimator="gaussian"),
    ):
        assert not any("drawn at random" in text for text in all_rows.warnings)


def test_the_order_of_populations_comes_back_from_their_potentials():
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleDict({"c": LIF(), "a": LIF(), "b": LIF()})
    before, gain = torch.zeros(6, 800, 1), 0.0
    with record(layers, what=("potential", "spikes")) as recording:
        for name in ("a", "b", "c"):
            own = torch.randn(1, 800, 1, generator=generator) * 0.2
            drive = own + gain * before + 0.02 * torch.randn(6, 800, 10, generator=generator)
            layers[name](drive)
            before = recording.potential[name].mean(-1, keepdim=True)
            gain = 1.5
    table = recorded_variables(recording)
    assert table.names == ("a", "b", "c")
    assert table.values.shape == (800, 3)
    found = causal_order(table, estimator="gaussian")
    assert found.order == ("a", "b", "c")
    assert {("a", "b"), ("b", "c")} <= {(e.cause, e.effect) for e in found.edges}
    assert found.backward == 0
    channels = recorded_variables(recording, units="channels", time="samples")
    assert channels.values.shape == (4800, 30)
    assert channels.names[:2] == ("a[0]", "a[1]")
    assert channels.rows_per_sample == 6
    with pytest.raises(ConfigError, match="units"):
        recorded_variables(recording, units="cells")
    with pytest.raises(ConfigError, match="time"):
        recorded_variables(recording, time="never")


def test_tables_are_read_from_every_format(tmp_path, linear):
    _, x = linear
    names = list("abcdef")
    np.savetxt(tmp_path / "t.csv", x, delimiter=",", header=",".join(names), comments="")
    np.savetxt(tmp_path / "t.tsv", x, delimiter="\t", header="\t".join(names), comments="")
    np.save(tmp_path / "t.npy", x)
    np.savez(tmp_path / "t.npz", x=x, names=np.array(names))
    for file in ("t.csv", "t.tsv", "t.npz", "t.npy"):
        table = read_variables(tmp_path / file)
        np.testing.assert_allclose(table.values, x)
        assert table.names == (tuple(names) if file != "t.npy" else table.names)
    assert read_variables(tmp_path / "t.npy").names[0] == "x1"


def test_constant_columns_are_left_out_with_a_warning():
    x = np.random.default_rng(0).standard_normal((100, 3))
    x[:, 1] = 7
    with pytest.warns(SpikedimWarning, match="x2"):
        found = causal_order(x, estimator="gaussian")
    assert sorted(found.order) == ["x1", "x3"]
    with pytest.raises(DataError, match="fewer than 2"):
        causal_order(np.ones((100, 3)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n3\n", "line 3"),
        ("a,b\n1,2\n3,red\n", "'red' in column 'b', line 3"),
        ("1,2\n3,4\n", "no header"),
        ("a,b\n", "header and lines"),
        ("a,a\n1,2\n3,4\n", "different"),
        ("a,b\n1,nan\n2,3\n", "NaN"),
        ("a\n1\n2\n", "at least 2 variables"),
    ],
)
def test_bad_tables_give_one_line(tmp_path, capsys, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert words in fails(capsys, "--data", path)


def test_bad_options_give_one_line(tmp_path, capsys, linear):
    _, x = linear
    path = tmp_path / "t.npy"
    np.save(path, x)
    assert "--model" in fails(capsys, "--data", path, "--layers", "block.*")
    assert "noise-variance" in fails(capsys, "--data", path, "--noise-variance", "1,a")
    assert "6 variables are ordered" in fails(
        capsys, "--data", path, "--noise-variance", "1,2", "--estimator", "gaussian"
    )
    assert "level" in fails(capsys, "--data", path, "--level", 2, "--estimator", "gaussian")
    assert "ridge" in fails(capsys, "--data", path, "--marginal", "refit", "--ridge", 0.5)
    for option, value in (("--steps", 7), ("--objective", "sliced")):
        words = ("--data", path, "--estimator", "stein", option, value)
        assert f"{option} {value} trains a score network" in fails(capsys, *words)
    assert "does not exist" in fails(capsys, "--data", tmp_path / "none.csv")
    np.savez(tmp_path / "k.npz", other=x)
    assert "expected a table called" in fails(capsys, "--data", tmp_path / "k.npz")
    np.save(path, x[:20])
    assert "at least 50" in fails(capsys, "--data", path)
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    assert "corrupt" in fails(capsys, "--data", tmp_path / "torn.npz")


def test_the_command_writes_json_picture_and_edges(tmp_path, capsys, linear):
    _, x = linear
    np.save(tmp_path / "t.npy", x)
    words = ["--data", tmp_path / "t.npy", "--estimator", "gaussian", "--out", tmp_path / "o"]
    with pytest.raises(SystemExit) as caught:
        main(["order", "--quiet", "--json", *map(str, words)])
    assert not caught.value.code
    found = json.loads(capsys.readouterr().out)
    assert len(found["variables"]) == 6
    assert json.loads((tmp_path / "o" / "order.json").read_text()) == found
    assert (tmp_path / "o" / "order.png").stat().st_size > 5000
    lines = (tmp_path / "o" / "edges.csv").read_text().splitlines()
    assert lines[0] == "cause,effect,weight,p"
    assert len(lines) == 1 + len(found["edges"])


def test_layers_of_a_network_from_the_command(capsys):
    words = ["--model", "spikformer_nano", "-T", "2", "--limit", "80", "--layers", "block.0.*"]
    with pytest.raises(SystemExit) as caught:
        main(["order", "--quiet", "--json", "--steps", "50", *words])
    assert not caught.value.code
    found = json.loads(capsys.readouterr().out)
    assert all(variable["name"].startswith("block.0.") for variable in found["variables"])
    assert 0 <= found["backward"] <= len(found["edges"])
    assert (found["training"]["steps"], found["training"]["objective"]) == (50, "implicit")
    recorded = found["recorded"]
    assert (recorded["T"], recorded["time"], recorded["split"]) == (2, "mean", "train")
    assert recorded["trained"] is False
    assert "untrained" in recorded["weights"]


def test_a_table_tells_how_a_network_was_recorded():
    x = random_model(3, seed=0).sample(200)
    recorded = Recorded(3, "samples", "train", True, "weights of a checkpoint")
    found = causal_order(Variables(("a", "b", "c"), x, recorded=recorded), estimator="gaussian")
    assert "T = 3, every timestep a row, train split; weights of a checkpoint" in str(found)
    assert causal_order(x, estimator="gaussian").to_dict()["recorded"] is None


def test_no_timesteps_are_refused(capsys):
    assert "T=0" in fails(capsys, "--model", "spikformer_nano", "-T", 0, "--limit", 50)


def test_a_large_graph_is_drawn_as_a_matrix():
    found = causal_order(random_model(31, edges=0.5, seed=0).sample(200), estimator="gaussian")
    axes = found.plot()
    assert len(axes.images) == 1
