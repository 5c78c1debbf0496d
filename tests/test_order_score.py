"""Score networks and the other estimators of the information matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikedim.errors import ConfigError, DataError
from spikedim.order import (
    GaussianScore,
    NetworkScore,
    ScoreConfig,
    ScoreNetwork,
    SteinScore,
    estimate,
    information,
    order_violations,
    random_model,
    refit_sort,
    schur_sort,
)
from spikedim.order.estimators import positive
from spikedim.order.score import held_out, train

FAST = ScoreConfig(steps=200, units=8)


def network(d=5, units=6, seed=0):
    """A network away from its start."""
    made = ScoreNetwork(torch.eye(d), units, seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return made


def points(n=40, d=5, seed=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_closed_jacobian_and_trace_are_those_of_autograd():
    made, x = network(), points()
    jacobian = torch.func.vmap(torch.func.jacrev(made))(x)
    np.testing.assert_allclose(made.information(x), information(made, x), rtol=1e-10, atol=1e-12)
    loss = (made(x) ** 2).sum(-1) / 2 + jacobian.diagonal(dim1=1, dim2=2).sum(-1)
    assert float(made.implicit_loss(x).detach()) == pytest.approx(
        float(loss.mean().detach()), rel=1e-10
    )


def test_sliced_matching_is_implicit_matching_on_average():
    made, x = network(), points(4000)
    generator = torch.Generator().manual_seed(0)
    found = [made.sliced_loss(x, generator).item() for _ in range(20)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - made.implicit_loss(x).item()) < 4 * error


def test_denoising_matching_is_least_at_the_score_of_noisy_data():
    """For standard normal data plus noise σ the score is −x/(1 + σ²)."""
    x, sigma = points(20_000, 2), 0.5
    losses = {}
    for slope in (0.6, 1 / (1 + sigma**2), 1.0):
        made = ScoreNetwork(slope * torch.eye(2), 2).double()
        loss = made.denoising_loss(x, sigma, torch.Generator().manual_seed(0))
        losses[slope] = loss.item()
    assert min(losses, key=losses.get) == 1 / (1 + sigma**2)


@pytest.mark.parametrize("objective", ["implicit", "sliced", "denoising"])
def test_every_objective_lowers_the_held_out_loss(objective):
    model = random_model(5, "gp-add", edges=1.5, seed=2)
    x = model.sample(1000, seed=1)
    config = ScoreConfig(objective=objective, steps=300, noise=0.3)
    score = NetworkScore(x, config)
    start = NetworkScore(x, ScoreConfig(steps=1))
    assert score.loss < start.loss
    matrix = score.information()
    assert np.linalg.eigvalsh(matrix)[0] > 0
    np.testing.assert_allclose(matrix, matrix.T)


def test_training_repeats():
    x = random_model(4, seed=0).sample(400)
    first, again = NetworkScore(x, FAST), NetworkScore(x, FAST)
    np.testing.assert_array_equal(first.information(), again.information())


def test_samples_of_every_phase_of_a_period_are_held_out():
    """Rows of T = 5 timesteps a sample: a fifth of the rows, not one timestep of all."""
    phases = np.bincount(np.flatnonzero(held_out(5000)) % 5, minlength=5)
    assert phases.sum() == 1000
    assert (np.abs(phases - 200) < 60).all()
    assert (held_out(5000) != held_out(5000, seed=1)).any()


def test_held_out_samples_do_not_enter_the_start():
    x = random_model(4, seed=0).sample(400)
    x[held_out(400)] *= 5
    start = NetworkScore(x, ScoreConfig(steps=1, learning_rate=1e-9)).information()
    expected = np.linalg.inv(np.cov(x[~held_out(400)], rowvar=False))
    np.testing.assert_allclose(start, expected, rtol=1e-4, atol=1e-5)


def test_group_lasso_removes_inputs_that_do_not_matter():
    """A chain: the score of an end reads one neighbour only."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((120, 4))).float()
    x = x.cumsum(1)  # x₁ → x₂ → x₃ → x₄
    far = [(0, 2), (2, 0), (0, 3), (3, 0), (1, 3), (3, 1)]
    sums, losses = {}, {}
    for strength in (0.0, 0.2):
        made = ScoreNetwork(torch.linalg.inv(torch.cov(x.T)) + 0.3, 2)
        config = ScoreConfig(steps=400, group_lasso=strength, learning_rate=1e-2)
        losses[strength] = train(made, x, config)
        groups = made.groups().detach().numpy()
        sums[strength] = sum(groups[pair] for pair in far)
    assert sums[0.2] < 0.7 * sums[0.0]
    assert losses[0.2] < losses[0.0]


def test_fewer_variables_start_at_the_exact_marginal_of_the_linear_part():
    x = random_model(6, seed=1).sample(3000)
    precision = np.linalg.inv(np.cov(x, rowvar=False))
    kept = ScoreNetwork(torch.from_numpy(precision), 3).double().keep([0, 2, 5])
    expected = np.linalg.inv(np.cov(x[:, [0, 2, 5]], rowvar=False))
    np.testing.assert_allclose(kept.linear.detach(), expected, rtol=1e-6)


@pytest.mark.parametrize("d", [20, 50])
def test_gaussian_estimate_orders_linear_models(d):
    for seed in range(2):
        model = random_model(d, seed=seed)
        score = GaussianScore(model.sample(5000, seed=seed))
        found = schur_sort(score.information())
        assert order_violations(found.order, model.graph) == 0


def test_refitting_a_gaussian_is_the_schur_complement():
    model = random_model(12, seed=3)
    score = GaussianScore(model.sample(500, seed=0))
    schur, refit = schur_sort(score.information(), 0.0), refit_sort(score, 0.0)
    assert schur.removed == refit.removed
    np.testing.assert_allclose(schur.pivots, refit.pivots, rtol=1e-6)
    np.testing.assert_allclose(
        score.keep([1, 4]).information(),
        np.linalg.inv(np.linalg.inv(score.information())[np.ix_([1, 4], [1, 4])]),
    )


def test_the_linear_network_keeps_the_gaussian_order():
    model = random_model(8, seed=5)
    x = model.sample(2000, seed=1)
    found = schur_sort(NetworkScore(x, FAST).information())
    assert order_violations(found.order, model.graph) == 0


def test_stein_score_of_a_gaussian():
    x = np.random.default_rng(0).standard_normal((800, 2)) * 2
    scores = SteinScore(x).scores()
    middle = (np.abs(x) < 2).all(1)
    assert np.corrcoef(scores[middle, 0], -x[middle, 0] / 4)[0, 1] > 0.95
    assert np.polyfit(x[middle, 0], scores[middle, 0], 1)[0] == pytest.approx(
        -0.25, rel=0.25
    )  # shrunk by its ridge


def test_refit_beats_schur_where_the_expectation_gap_misleads():
    wrong = {"schur": 0, "refit": 0}
    for seed in range(3):
        model = random_model(10, "gp-add", seed=seed)
        score = SteinScore(model.sample(600, seed=seed))
        true = information(model.score, torch.from_numpy(model.sample(300, seed=9)))
        wrong["schur"] += order_violations(schur_sort(true).order, model.graph)
        wrong["refit"] += order_violations(refit_sort(score, 0.0).order, model.graph)
    assert wrong["refit"] < wrong["schur"]


def test_a_network_is_refitted_with_fewer_steps():
    x = random_model(4, "gp", seed=0).sample(500)
    score = NetworkScore(x, FAST)
    kept = score.keep([0, 1, 3]).keep([0, 2])
    assert kept.config.steps == FAST.steps // 10
    assert kept.information().shape == (2, 2)
    assert sorted(refit_sort(score).removed) == [0, 1, 2, 3]


def test_positive_mends_only_what_is_not():
    good = np.array([[2.0, 0.5], [0.5, 1.0]])
    assert positive(good) is good
    mended = positive(np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert np.linalg.eigvalsh(mended)[0] == pytest.approx(1e-6)


def test_unknown_estimator_and_bad_settings():
    with pytest.raises(ConfigError, match="gaussian"):
        estimate(np.zeros((10, 2)), "magic")
    for wrong in ({"objective": "x"}, {"steps": 0}, {"noise": -1.0}, {"group_lasso": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ScoreConfig(**wrong)


def test_too_few_or_dependent_samples_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="at least 22"):
        GaussianScore(rng.standard_normal((15, 20)))
    x = rng.standard_normal((100, 2))
    with pytest.raises(DataError, match="singular"):
        GaussianScore(np.column_stack([x, x.sum(1)])).information()
    with pytest.raises(DataError, match="at least 10"):
        train(ScoreNetwork(torch.eye(2), 2), torch.zeros(3, 2), FAST)


def test_divergence_is_told(monkeypatch):
    x = torch.full((50, 2), 1e30)
    with pytest.raises(DataError, match="diverged"):
        train(ScoreNetwork(torch.eye(2), 2), x, FAST)
