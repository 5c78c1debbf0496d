import numpy as np
import pytest

from spikedim.data import load_dataset
from spikedim.design.dimension_effect import _firsts, dimension_effect
from spikedim.design.dimension_study import BAYES, dimension_study, synthetic, truncated
from spikedim.dimension import measure
from spikedim.errors import ConfigError, DataError
from spikedim.storage import Run
from spikedim.training import TrainConfig
from spikedim.training.study import run_study
from study_cases import row


def dimension(data):
    return measure(data.features("train"), ["pca95"], interval="none").estimates["pca95"].value


def test_truncation_is_the_projection_on_the_leading_components():
    data = load_dataset("digits").limited(200, 50)
    cut = truncated(data, 5)
    x, z = data.features("train").astype(float), cut.features("train").astype(float)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assert np.linalg.matrix_rank(z - z.mean(0), tol=1e-3) == 5
    assert ((x - z) ** 2).sum() == pytest.approx((singular[5:] ** 2).sum(), rel=1e-4)
    assert np.array_equal(cut.test.labels, data.test.labels)
    again = truncated(cut, 5)
    assert np.allclose(again.features("test"), cut.features("test"), atol=1e-4)
    assert truncated(data, None) is data
    with pytest.raises(ConfigError, match="components"):
        truncated(data, 0)


@pytest.mark.parametrize("k", [2, 8, 32])
def test_synthetic_tasks_have_their_dimension_and_equal_difficulty(k):
    data = synthetic(k, 1000, 2000)
    x, y = data.features("train"), data.train.labels
    assert np.linalg.matrix_rank(x - x.mean(0), tol=1e-3) == k
    assert 0.7 * k <= dimension(data) <= k
    means = np.stack([x[y == c].mean(0) for c in range(10)])
    test = data.features("test")
    nearest = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == data.test.labels).mean() == pytest.approx(BAYES, abs=0.025)
    with pytest.raises(ConfigError, match="intrinsic"):
        synthetic(33)


def test_study_trains_every_cell_once_and_writes_a_table(tmp_path):
    config = TrainConfig(epochs=1, validation=0.0)
    options = {
        "components": (2,), "intrinsic": (2,), "timesteps": (1, 2), "seeds": (0,), "samples": 60,
    }  # fmt: skip
    study = dimension_study(config=config, **options)
    for _ in range(2):
        with Run(tmp_path, {}) as run:
            table = run_study(study, run).table
    assert len(table) == 2 * 3
    assert {r.components for r in table} == {2}
    assert {r.v_th for r in table} == {0.5}
    assert all(len(r.hits) == r.test_samples for r in table)
    assert len({r.key for r in table}) == 4


def rows_of(loss_of, seeds=(0, 1), n=1000):
    """A study whose accuracy at T = 1 lies ``loss_of(k)`` points below 90 %."""
    rng = np.random.default_rng(0)
    table = []
    for k in (2, 4, 8, 16):
        for seed in seeds:
            for T, share in ((1, 1.0), (2, 0.5), (4, 0.0)):
                right = (rng.random(n) < 0.9 - share * loss_of(k) / 100).astype(np.uint8)
                table.append(row(f"gaussian-{k}d", "m", seed, T, T, right, float(k)))
    return table


def test_slope_is_found_where_it_is_and_not_where_it_is_not():
    rising = dimension_effect(rows_of(lambda k: 4 * np.log2(k)))
    slope = rising.slope("synthetic", "points lost at T = 1").estimate
    assert slope.low <= 4 <= slope.high
    assert slope.low > 0
    flat = dimension_effect(rows_of(lambda k: 10.0))
    slope = flat.slope("synthetic", "points lost at T = 1").estimate
    assert slope.low <= 0 <= slope.high
    with pytest.raises(DataError, match="no slope"):
        flat.slope("truncated digits", "log2 T*")


def test_one_point_below_the_plateau_is_within_the_tolerance_whatever_rounding_does():
    low = np.arange(100, 900)
    rows = 100 * (np.stack([low, low + 10], axis=1) @ np.eye(2) / 1000)
    assert (_firsts(rows, (1, 4)) == 1).all()
    assert (_firsts(rows + np.array([0, 0.1]), (1, 4)) == 4).all()


def test_unfinished_seeds_do_not_count():
    table = rows_of(lambda k: 10.0)
    partial = [r for r in table if r.seed == 0 or r.train_T < 4]
    effect = dimension_effect(partial)
    assert {p.seeds for p in effect.points} == {1}
    with pytest.raises(DataError, match="fewer than two"):
        dimension_effect(table[:6])


def test_effect_is_drawn(tmp_path):
    axes = dimension_effect(rows_of(lambda k: 5.0)).plot()
    axes.get_figure().savefig(tmp_path / "x.png")
    assert axes.get_xlabel()
