"""T* statistics: hand-made cases, properties, parity with scikit-learn, coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from spikedim.errors import ConfigError, DataError
from spikedim.training.timestep import above_chance, accuracy_estimate, isotonic, t_star

accuracies = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def answers(*hits: int, n: int = 100, steps: list[int] | None = None) -> dict[int, np.ndarray]:
    """Nested right answers: the first ``hits`` samples are right."""
    grid = steps or list(range(1, len(hits) + 1))
    return {T: (np.arange(n) < h).astype(np.uint8) for T, h in zip(grid, hits, strict=True)}


def test_smallest_sufficient_t_by_hand():
    result = t_star(answers(60, 85, 93, 94, 94, n=100), tolerance=1.0)
    assert result.estimate.value == 3
    assert result.plateau.value == pytest.approx(94)
    assert result.fitted == pytest.approx((60, 85, 93, 94, 94))
    assert sum(result.probability) == pytest.approx(1)
    assert t_star(answers(60, 85, 93, 94, 94, n=100), tolerance=9.0).estimate.value == 2


def test_tolerance_is_inclusive():
    assert t_star(answers(90, 93, 94), tolerance=1.0).estimate.value == 2
    assert t_star(answers(90, 93, 94), tolerance=0.999).estimate.value == 3


def test_plateau_pools_a_lucky_peak_instead_of_chasing_it():
    result = t_star(answers(80, 96, 94, 95, 93), tolerance=1.0)
    assert result.plateau.value == pytest.approx((96 + 94 + 95 + 93) / 4)
    assert result.estimate.value == 2


def test_interval_covers_the_gap_below_on_a_coarse_grid():
    result = t_star(answers(500, 700, 990, 990, n=1000, steps=[1, 2, 4, 8]), tolerance=1.0)
    assert (result.estimate.value, result.estimate.low, result.estimate.high) == (4, 3, 4)
    assert any("between 2 and 4" in note for note in result.notes)


def test_censoring_at_both_edges_is_said():
    rising = t_star(answers(100, 300, 600, n=1000, steps=[2, 3, 5]))
    assert rising.censored
    assert rising.estimate.high is None
    assert rising.estimate.value == 5
    assert any(f"T* is {rising.estimate.low:g} or more" in note for note in rising.notes)
    assert "or more" in str(rising)
    flat = t_star(answers(900, 900, 900, n=1000, steps=[4, 6, 8]))
    assert (flat.estimate.value, flat.estimate.low, flat.estimate.high) == (4, 1, 4)
    assert not flat.censored
    assert any("may be smaller" in note for note in flat.notes)
    alone = t_star(answers(90, steps=[4]))
    assert alone.censored
    assert any("Only T=4" in note for note in alone.notes)


def test_a_fall_that_the_test_set_does_not_explain_is_said():
    failed = t_star(answers(800, 900, 890, 600, n=1000, steps=[1, 2, 4, 8]))
    assert "falls from 90 % at T=2 to 60 % at T=8" in failed.notes[0]
    noise = t_star(answers(800, 900, 890, 880, n=1000, steps=[1, 2, 4, 8]))
    assert not any("falls" in note for note in noise.notes)


def test_too_few_samples_for_the_tolerance_is_said():
    assert any("weighs" in note for note in t_star(answers(5, 9, n=10), tolerance=1.0).notes)


def test_paired_noise_does_not_widen_the_interval():
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.8).astype(int)
    same = t_star({1: base * 0, 2: base, 3: base, 4: base})
    assert same.probability == (0.0, 1.0, 0.0, 0.0)


@given(accuracies, st.floats(0, 20), st.floats(0, 20))
@settings(max_examples=60, deadline=None)
def test_t_star_does_not_grow_with_tolerance(hits, a, b):
    table = answers(*hits, n=40)
    low, high = sorted((a, b))
    strict = t_star(table, low, resamples=100)
    loose = t_star(table, high, resamples=100)
    assert loose.estimate.value <= strict.estimate.value
    assert loose.estimate.low <= strict.estimate.low
    assert strict.estimate.low <= strict.estimate.value
    assert strict.estimate.high is None or strict.estimate.value <= strict.estimate.high


@given(accuracies)
@settings(max_examples=60, deadline=None)
def test_isotonic_agrees_with_scikit_learn(hits):
    values = np.array(hits, dtype=float)
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), values)
    np.testing.assert_allclose(isotonic(values[None])[0], expected, atol=1e-9)


def test_pattern_bootstrap_equals_resampling_of_samples():
    rng = np.random.default_rng(1)
    n = 60
    ability = rng.random(n)
    table = {T: (rng.random(n) < ability + 0.1 * T).astype(int) for T in (1, 2, 3)}
    fast = t_star(table, tolerance=3.0, resamples=20000, seed=2)
    stacked = np.stack([table[T] for T in (1, 2, 3)])
    firsts = []
    for _ in range(4000):
        fitted = isotonic(100 * stacked[:, rng.integers(0, n, n)].mean(axis=1)[None])[0]
        firsts.append(int(np.argmax(fitted >= fitted[-1] - 3.0 - 1e-9)))
    slow = np.bincount(firsts, minlength=3) / 4000
    np.testing.assert_allclose(fast.probability, slow, atol=0.03)


def test_same_seed_same_interval():
    table = answers(80, 90, 92, 93)
    assert t_star(table, seed=3).to_dict() == t_star(table, seed=3).to_dict()


@pytest.mark.parametrize("truth", [(0.5, 0.75, 0.88, 0.90, 0.90), (0.6, 0.84, 0.86, 0.87, 0.87)])
def test_interval_covers_the_true_t_star(truth):
    """Samples of varying difficulty, so right answers are correlated over T."""
    rng = np.random.default_rng(5)
    population = np.random.default_rng(0).random(200_000)
    curve = np.array(truth)
    # P(right at T) of a sample of difficulty u rises around u = accuracy(T).
    chance = 1 / (1 + np.exp((population[:, None] - curve) / 0.03))
    exact = 100 * chance.mean(axis=0)
    tolerance = 2.5
    want = 1 + int(np.argmax(exact >= exact[-1] - tolerance))
    covered = 0
    for trial in range(120):
        chosen = chance[rng.integers(0, len(chance), 400)]
        right = rng.random(chosen.shape) < chosen
        table = {T + 1: right[:, T].astype(int) for T in range(len(curve))}
        estimate = t_star(table, tolerance, resamples=300, seed=trial).estimate
        covered += estimate.low <= want and (estimate.high is None or want <= estimate.high)
    assert covered / 120 >= 0.92


def test_wilson_accuracy_in_percent():
    estimate = accuracy_estimate(np.array([1, 1, 1, 0]))
    assert estimate.value == 75
    assert 0 < estimate.low < 75 < estimate.high < 100
    assert estimate.n == 4


@pytest.mark.parametrize(("n", "chance"), [(10, 0.5), (60, 0.5), (360, 0.1)])
def test_guesses_are_seldom_taken_for_learned(n, chance):
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        guesses = {T: (rng.random(n) < chance).astype(int) for T in (1, 2, 4, 8)}
        found = t_star(guesses, resamples=100)
        passed += above_chance(found.accuracy, 100 * chance)
    assert passed / 400 <= 0.05  # 2.5 % nominal; by the plateau it would be 8 to 13 %


@pytest.mark.parametrize(("hits", "value"), [((2, 2), 100), ((2, 0), 50), ((0, 0), 0)])
def test_the_plateau_of_answers_that_are_all_alike_is_not_certain(hits, value):
    plateau = t_star(answers(*hits, n=2)).plateau
    assert (plateau.value, plateau.method) == (value, "Wilson")
    assert plateau.low <= value <= plateau.high
    assert plateau.high - plateau.low > 50


def test_prints_and_exports():
    result = t_star(answers(60, 93, 94))
    assert "T* = 2" in str(result)
    assert result.to_dict()["estimate"]["value"] == 2


@pytest.mark.parametrize(
    ("correct", "error", "message"),
    [
        ({}, ConfigError, "at least one T"),
        ({0: np.ones(3)}, ConfigError, "T=0"),
        ({1: np.ones(3), 2: np.ones(4)}, DataError, "same samples"),
        ({1: np.array([0, 2])}, DataError, "other than 0 and 1"),
        ({1: np.ones((2, 2))}, DataError, "shape"),
        ({1: np.ones(0)}, DataError, "shape"),
    ],
)
def test_bad_input_is_refused(correct, error, message):
    with pytest.raises(error, match=message):
        t_star(correct)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_bad_tolerance_is_refused(tolerance):
    with pytest.raises(ConfigError, match="tolerance"):
        t_star(answers(90), tolerance)
