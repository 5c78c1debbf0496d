"""The universal compiler: from a permutation-equivariant function to spikes (claim UNIVERSAL)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spikedim import progress
from spikedim.circuits.base import Simulation
from spikedim.circuits.compiler_network import LAYERS, GridNetwork, interpolate, layer_units
from spikedim.circuits.compiler_points import SCALES, lattice, modulus, switching, tied, uniform
from spikedim.circuits.compiler_report import CompileReport, PointError, published_budget
from spikedim.circuits.functions import FUNCTIONS, TokenFunction
from spikedim.errors import BudgetError, ConfigError, ModelError
from spikedim.results import Estimate, number
from spikedim.theory.bounds import check_square
from spikedim.theory.statistics import mean_interval, wilson_interval

_INTERPOLATION_SHARE = 0.75
_SEARCH_MARGIN = 0.95
_MAX_WINDOWS = 1024
_MAX_STEPS = 10**8  # of level units, summed: the search for a function that jumps has no end
_MAX_PERMUTATIONS = 24
_EQUIVARIANCE_INPUTS = 256
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class CompiledNetwork(GridNetwork):
    """A :class:`GridNetwork` whose grid and steps were chosen and verified for an eps.

    Args:
        report: what was measured.
    """

    report: CompileReport

    def run(
        self,
        *inputs: Tensor,
        T: int | None = None,
        trials: int = 1,
        generator: torch.Generator | None = None,
    ) -> Simulation:
        """As :meth:`GridNetwork.run`; ``T=None`` for the steps that were verified."""
        steps = self.report.T if T is None else T
        return super().run(*inputs, T=steps, trials=trials, generator=generator)


def compile(
    f: TokenFunction | str,
    n: int,
    d: int,
    eps: float,
    *,
    max_neurons: int = 200_000,
    points: int = 8192,
    seed: int = 0,
) -> CompiledNetwork:
    """Compile f into a spiking network with sup-norm error below eps on [0, 1]^{n×d}.

    The grid is sought by bisection below the one that the sampled modulus of continuity asks for,
    so that interpolation uses at most 3/4 of eps; then the number of windows is raised until the
    simulated spikes are within eps, at last on points not used in the search. The error is
    measured, not proven: see ``report.failures`` for what the random points warrant.

    Args:
        f: permutation-equivariant function, [B, n, d] to [B, n, d'] in float64, or a name in
            :data:`spikedim.circuits.functions.FUNCTIONS`. Equivariance is checked on samples.
        n: tokens.
        d: channels.
        eps: largest error allowed in any output coordinate.
        max_neurons: most units the network may have.
        points: test points of each kind (lattice, random, tied, switching), at least 16; all
            switching points where they are few.
        seed: of all test points.

    Raises:
        ConfigError: an argument out of its domain.
        ModelError: f is not permutation-equivariant, or its output has the wrong shape or values.
        BudgetError: no grid within ``max_neurons`` is fine enough; the message says for which eps
            one would be. Or none was found within 1e8 steps of level units.

    Example:
        >>> network = compile("max", n=2, d=1, eps=0.1)
        >>> network.run(torch.tensor([[0.2], [0.7]])).output.shape
        torch.Size([1, 2, 1])
    """
    started = time.perf_counter()
    name, function = _resolve(f)
    _check(n=n, d=d, max_neurons=max_neurons, points=points)
    check_square(eps=eps)
    generator = torch.Generator().manual_seed(seed)
    search = torch.cat([draw(n, d, points // 2, generator) for draw in (lattice, uniform, tied)])
    values = _checked_values(name, function, search)
    scales = modulus(function, search, generator).tolist()
    sufficient = next(
        (k for k, w in zip(SCALES, scales, strict=True) if w <= _INTERPOLATION_SHARE * eps), None
    )
    cap = _largest_grid(n, d, max_neurons)

    def interpolation_error(grid: int) -> float:
        return _sup(interpolate(function, search, grid) - values)

    first = _smallest_grid(interpolation_error, _INTERPOLATION_SHARE * eps, sufficient, cap)
    verifications = 0
    for network, windows in _candidates(name, function, n, d, range(first, cap + 1)):
        jumps = switching(n, d, points // 2, generator, network.grid * windows)
        parts = (*jumps.split(points // 8), search)
        if any(_sup(_errors(network, x, windows)) > _SEARCH_MARGIN * eps for x in parts):
            continue
        verifications += 1
        errors, spikes = _verify(network, windows, points, generator)
        if max(_sup(e) for e in errors.values()) >= eps:
            continue
        exact, checks = _equivariance(network, windows, generator)
        failed, total = int((errors["random"] >= eps).sum()), len(errors["random"])
        low, high = wilson_interval(failed, total)
        report = CompileReport(
            function=name,
            n=n,
            d=d,
            outputs=values.shape[-1],
            eps=eps,
            sup_error=max(_sup(e) for e in errors.values()),
            errors=tuple(
                PointError(kind, len(e), _sup(e), float(e.mean())) for kind, e in errors.items()
            ),
            failures=Estimate(failed / total, low, high, total, method="Wilson"),
            equivariant=exact,
            equivariance_checks=checks,
            grid=network.grid,
            windows=windows,
            T=network.grid * windows,
            layers=len(LAYERS),
            heads=network.heads,
            units=network.units,
            neurons=network.neurons,
            spikes=_mean(spikes.sum(1)),
            spikes_by_layer=dict(zip((*LAYERS, "clock"), spikes.mean(0).tolist(), strict=True)),
            modulus=tuple((1 / k, w) for k, w in zip(SCALES, scales, strict=True)),
            sufficient_grid=sufficient,
            published=published_budget(n, d, eps),
            verifications=verifications,
            seed=seed,
            seconds=time.perf_counter() - started,
        )
        return CompiledNetwork(function, n, d, network.grid, report)
    raise BudgetError(_over_budget(name, n, d, eps, max_neurons, cap, interpolation_error, scales))


def _resolve(f: TokenFunction | str) -> tuple[str, TokenFunction]:
    """Name of f, and f without gradients."""
    if isinstance(f, str) and f not in FUNCTIONS:
        raise ConfigError(f"f={f!r} is unknown; choose one of {', '.join(FUNCTIONS)} or a function")
    name = f if isinstance(f, str) else getattr(f, "__name__", type(f).__name__)
    function = FUNCTIONS[f] if isinstance(f, str) else f
    if not callable(function):
        raise ConfigError(f"f is a {type(f).__name__}; expected a function of a tensor [B, n, d]")

    def evaluate(x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x)

    return name, evaluate


def _check(**whole: int) -> None:
    least = {"points": 16}
    for name, value in whole.items():
        low = least.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{name}={value!r}: expected a whole number, {low} or more")


def _checked_values(name: str, f: TokenFunction, x: Tensor) -> Tensor:
    """f(x), after checks of its shape, its values and, swap by swap, its equivariance."""
    values = f(x)
    if not isinstance(values, Tensor) or values.dim() != 3 or values.shape[:2] != x.shape[:2]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ModelError(
            f"f={name} maps [{len(x)}, {x.shape[1]}, {x.shape[2]}] to {got}; "
            f"expected a tensor [{len(x)}, {x.shape[1]}, outputs]"
        )
    if values.dtype != torch.float64 or not bool(values.isfinite().all()):
        raise ModelError(f"f={name} returns {values.dtype} or values that are not finite numbers; "
                         "expected finite float64, like its input")  # fmt: skip
    tolerance = _ROUNDING * max(1.0, _sup(values))
    for token in range(x.shape[1] - 1):
        order = torch.arange(x.shape[1])
        order[[token, token + 1]] = order[[token + 1, token]]
        change = (f(x[:, order]) - values[:, order]).abs().flatten(1).amax(1)
        if float(change.max()) > tolerance:
            example = [[round(v, 3) for v in row] for row in x[int(change.argmax())].tolist()]
            raise ModelError(
                f"f={name} is not permutation-equivariant: at x={example}, swapping tokens {token} "
                f"and {token + 1} changes its output by {number(float(change.max()), 2)} more than "
                "the same swap of the output; expected f(Px) = P f(x), so remove what depends on "
                "the order of the tokens (positions, masks, ties broken by index)"
            )
    return values


def _largest_grid(n: int, d: int, max_neurons: int) -> int:
    """Largest grid whose network has at most ``max_neurons`` units, clock included."""
    grid = next(g for g in itertools.count(1) if sum(layer_units(n, d, g)) + 1 > max_neurons) - 1
    if grid == 0:
        least = sum(layer_units(n, d, 1)) + 1
        raise BudgetError(
            f"max_neurons={max_neurons}: the coarsest network for n={n}, d={d} has {least:,} "
            "units; raise max_neurons or lower n or d"
        )
    return grid


def _smallest_grid(
    error: Callable[[int], float], limit: float, sufficient: int | None, cap: int
) -> int:
    """A grid with error <= limit by bisection below the sufficient one; cap + 1 if there is none.

    The modulus is a lower estimate, so the grid it calls sufficient is measured like any other.
    """
    high = min(sufficient or cap, cap)
    while error(high) > limit:
        if high == cap:
            return cap + 1
        high = min(2 * high, cap)
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error(middle) <= limit else (middle, high)
    return high


def _candidates(
    name: str, f: TokenFunction, n: int, d: int, grids: range
) -> Iterator[tuple[GridNetwork, int]]:
    """Networks with a growing number of windows, then with a finer grid."""
    steps = 0
    with progress.task(f"compile {name}") as task:
        for grid in grids:
            network = GridNetwork(f, n, d, grid)
            windows = 1
            while windows <= _MAX_WINDOWS:
                steps += network.units.level * grid * windows
                if steps > _MAX_STEPS:
                    raise BudgetError(
                        f"f={name}, n={n}, d={d}: the search has come to grid {grid}, {windows} "
                        f"windows and {_MAX_STEPS:.0e} steps of level units; give a larger eps, or "
                        "a function that does not jump: no eps below half a jump can be reached"
                    )
                task.advance(detail=f"grid {grid}, {windows} windows")
                yield network, windows
                windows = max(windows + 1, windows * 6 // 5)


def _verify(
    network: GridNetwork, windows: int, points: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Errors [B] on fresh points of each kind, and spikes [B, layers + clock] on random ones."""
    n, d = network.n, network.d
    kinds = {
        "lattice": lattice(n, d, points, generator),
        "random": uniform(n, d, points, generator),
        "tied tokens": tied(n, d, points, generator),
        "switching points": switching(n, d, points, generator, network.grid * windows),
    }
    errors = {kind: _errors(network, x, windows) for kind, x in kinds.items()}
    return errors, network.simulate(kinds["random"], windows)[1]


def _errors(network: GridNetwork, x: Tensor, windows: int) -> Tensor:
    """Largest error over tokens and outputs of each point, [B]."""
    output, _ = network.simulate(x, windows)
    return (output - network.function(x)).abs().flatten(1).amax(1)


def _equivariance(
    network: GridNetwork, windows: int, generator: torch.Generator
) -> tuple[bool, tuple[int, int]]:
    """Whether reordering is exact, on (inputs, permutations of each)."""
    half = _EQUIVARIANCE_INPUTS // 2
    x = torch.cat([draw(network.n, network.d, half, generator) for draw in (uniform, tied)])
    orders: list[Tensor] = [
        torch.tensor(order) for order in itertools.permutations(range(min(network.n, 4)))
    ]
    if network.n > 4:
        orders = [torch.randperm(network.n, generator=generator) for _ in range(_MAX_PERMUTATIONS)]
    output, _ = network.simulate(x, windows)
    exact = all(
        torch.equal(network.simulate(x[:, order], windows)[0], output[:, order]) for order in orders
    )
    return exact, (len(x), len(orders))


def _over_budget(
    name: str,
    n: int,
    d: int,
    eps: float,
    max_neurons: int,
    cap: int,
    error: Callable[[int], float],
    scales: list[float],
) -> str:
    fits = 1.005 * error(cap) / _INTERPOLATION_SHARE
    reach = f"{fits if fits > eps else 1.25 * eps:.3g}"
    jump = (
        f"; f changes by {number(scales[-1], 2)} over a distance of 1/{SCALES[-1]}: if it jumps, "
        f"its error stays near {number(scales[-1] / 2, 2)} or above"
        if scales[-1] >= eps
        else ""
    )
    return (
        f"eps={eps} for f={name}, n={n}, d={d} needs more than max_neurons={max_neurons:,}{jump}; "
        f"raise max_neurons or give eps={reach} or more, which fits"
    )


def _sup(values: Tensor) -> float:
    return float(values.abs().amax())


def _mean(values: Tensor) -> Estimate:
    mean = float(values.mean())
    low, high = mean_interval(mean, float(values.std()), len(values))
    return Estimate(mean, low, high, len(values), "spikes", method="Student t")
