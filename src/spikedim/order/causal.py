"""From samples to a causal order and graph, with what speaks against it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from scipy import stats

from spikedim.errors import ConfigError, DataError
from spikedim.order import residuals
from spikedim.order.edges import Regression, rows_regressed, sparse_regressions
from spikedim.order.estimators import ESTIMATORS, NetworkScore, estimate, refit_sort
from spikedim.order.residuals import ResidualCheck, check_residuals
from spikedim.order.result import CausalOrder, Link, OrderedVariable
from spikedim.order.score import ScoreConfig
from spikedim.order.sort import TOLERANCE, Array, Extraction, checked_variances, schur_sort
from spikedim.order.tables import Variables, made

MARGINALS = ("schur", "refit")
_EQUAL = 1.5
_CURVED = 0.05


def causal_order(
    data: Variables | Array,
    *,
    estimator: str = "network",
    marginal: str = "schur",
    tolerance: float = TOLERANCE,
    ridge: float = 0.0,
    noise_variance: Sequence[float] | Array | None = None,
    basis: str | None = None,
    level: float = residuals.LEVEL,
    config: ScoreConfig | None = None,
    seed: int = 0,
) -> CausalOrder:
    """Causal order, edges, noise variances and residual tests of samples.

    The model is x_j = f_j(parents) + noise, the noise independent, Gaussian and of equal variance
    (or of known ratio of variances), and no common cause left out. What of it the data contradict
    is told in ``warnings``.

    Args:
        data: :class:`~spikedim.order.tables.Variables` or samples [n, d]. Do not standardise the
            columns: the order is read from the equal variance of the noise.
        estimator: of the information matrix, one of ``network``, ``gaussian``, ``stein``.
        marginal: ``"schur"``, the published sort, exact for linear models; ``"refit"`` estimates
            the score again after every block, for non-linear ones.
        tolerance, ridge, noise_variance: see :func:`~spikedim.order.sort.schur_sort`.
        basis: of the regressions, ``"linear"`` (the default for ``gaussian``) or ``"spline"``.
        level: of the residual tests together.
        config: of the score network.
        seed: of every random draw.

    Raises:
        ConfigError: an argument out of its domain.
        DataError: data that are not a table of finite numbers, or too few of them.

    Example:
        >>> from spikedim.order import causal_order, random_model
        >>> x = random_model(5, seed=0).sample(2000)
        >>> causal_order(x, estimator="gaussian").order  # names, causes first
        ('x3', 'x5', 'x4', 'x1', 'x2')
    """
    table = data if isinstance(data, Variables) else made(np.asarray(data), None, "array")
    x, names = table.values, table.names
    n, d = x.shape
    for name, value, known in (
        ("estimator", estimator, ESTIMATORS),
        ("marginal", marginal, MARGINALS),
    ):
        if value not in known:
            raise ConfigError(f"{name}={value!r}; expected one of {', '.join(known)}")
    if n < 50:
        raise DataError(f"{n} samples; an order needs at least 50")
    started = time.monotonic()
    given = None if noise_variance is None else checked_variances(noise_variance, d)
    if ridge and marginal == "refit":
        raise ConfigError(f"ridge={ridge} is of marginal schur; refit has no use for one")
    # with columns in units of their noise the noise is equal; only its ratios are used
    scales = np.ones(d) if given is None else given / given.mean()
    score = estimate(x, estimator, config, seed)
    if marginal == "schur":
        extraction = schur_sort(score.information(), tolerance, ridge, scales)
    else:
        extraction = refit_sort(score, tolerance, scales)
    chosen = basis or ("linear" if estimator == "gaussian" else "spline")
    regressions = sparse_regressions(x, extraction.order, chosen, seed=seed)
    checks = check_residuals(x / np.sqrt(scales), regressions, chosen, level, seed)
    used = rows_regressed(n, chosen)
    notes = [
        *_about_samples(table, tolerance, used),
        *_about_variances(used, regressions, scales),
        *_about_model(extraction, checks, marginal, tolerance, level),
    ]
    return CausalOrder(
        source=table.source,
        n=n,
        variables=_ordered(names, extraction, regressions, checks),
        edges=tuple(
            Link(names[e.cause], names[e.effect], e.weight, e.p_value)
            for r in regressions
            for e in r.edges
        ),
        backward=_backward(regressions) if table.forward else None,
        estimator=estimator,
        marginal=marginal,
        basis=chosen,
        tolerance=tolerance,
        ridge=ridge,
        level=level,
        loss=score.loss if isinstance(score, NetworkScore) else None,
        training=score.config if isinstance(score, NetworkScore) else None,
        noise_variance=None if given is None else dict(zip(names, given.tolist(), strict=True)),
        seed=seed,
        seconds=time.monotonic() - started,
        recorded=table.recorded,
        warnings=tuple(notes),
    )


def _ordered(
    names: Sequence[str],
    extraction: Extraction,
    regressions: Sequence[Regression],
    checks: Sequence[ResidualCheck],
) -> tuple[OrderedVariable, ...]:
    backwards = list(zip(extraction.pivots, extraction.block, strict=True))[::-1]
    return tuple(
        OrderedVariable(
            names[r.variable],
            block + 1,
            pivot,
            r.noise_variance,
            tuple(names[c] for c in r.causes),
            check.p_value,
            check.dependent,
            check.gap,
            check.gap_p_value,
        )
        for r, check, (pivot, block) in zip(regressions, checks, backwards, strict=True)
    )


def _about_samples(table: Variables, tolerance: float, used: int) -> list[str]:
    n, d = table.values.shape
    notes = []
    error = math.sqrt(2 / max(1, n - d))
    if error > max(tolerance, TOLERANCE):
        notes.append(
            f"few samples: with {n} samples of {d} variables a diagonal entry is known to "
            f"±{100 * error:.0f} %, coarser than the tolerance of {100 * tolerance:g} %; "
            f"{d + math.ceil(2 / max(tolerance, TOLERANCE) ** 2):,} would do"
        )
    if table.rows_per_sample > 1:
        notes.append(
            f"the {table.rows_per_sample} timesteps of one sample are not independent rows: "
            "intervals and p-values are too optimistic"
        )
    if used < n:
        notes.append(
            f"edges, their p-values and noise variances are of {used:,} of the {n:,} rows, "
            "drawn at random; basis linear takes all"
        )
    spread = table.values.std(0)
    if d > 2 and spread.max() < 1.02 * spread.min():
        notes.append(
            "the columns look standardised, which removes the equal noise variances that the "
            "order is read from; give the data in their own units"
        )
    return notes


def _about_variances(used: int, regressions: Sequence[Regression], scales: Array) -> list[str]:
    """Bartlett's test of equal noise variances."""
    found = np.array([r.noise_variance.value / scales[r.variable] for r in regressions])
    if not (found > 0).all():
        return ["some variable is a function of others without noise: the order is arbitrary there"]
    free = used - 1
    statistic = free * (len(found) * math.log(found.mean()) - float(np.log(found).sum()))
    ratio = float(found.max() / found.min())
    if ratio < _EQUAL or stats.chi2.sf(statistic, len(found) - 1) > 0.01:
        return []
    return [
        f"noise variances differ by a factor of {ratio:.3g}: the smallest diagonal entry need not "
        "be a leaf's, so that the order may be wrong; give their ratios as noise_variance if known"
    ]


def _about_model(
    extraction: Extraction,
    checks: Sequence[ResidualCheck],
    marginal: str,
    tolerance: float,
    level: float,
) -> list[str]:
    notes = []
    gap = max(
        (c.gap for c in checks if c.gap_p_value is not None and c.gap_p_value <= _CURVED),
        default=0.0,
    )
    if marginal == "schur" and gap > max(tolerance, TOLERANCE) * min(extraction.pivots):
        notes.append(
            "expectation gap: the fitted functions bend more than fits of linear ones do (level "
            f"{_CURVED:g} for all variables together), and one Schur complement adds up to "
            f"{gap:.3g} to a diagonal whose smallest entry is {min(extraction.pivots):.3g}; "
            "marginal refit has no such gap"
        )
    tested = sum(check.p_value is not None for check in checks)
    failed = sum(check.dependent for check in checks)
    if failed:
        notes.append(
            f"residuals of {failed} of {tested} variables depend on variables before them (HSIC, "
            f"level {level:g} for all together): noise that is not additive, as in post-nonlinear "
            "data, a wrong order, or causes left out; do not trust the order there"
        )
    return notes


def _backward(regressions: Sequence[Regression]) -> int:
    """Edges from a later to an earlier column."""
    return sum(e.cause > e.effect for r in regressions for e in r.edges)
