import itertools
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikedim.circuits import compiler, compiler_network
from spikedim.circuits.compiler import compile
from spikedim.circuits.compiler_network import GridNetwork, fixed_point, interpolate, layer_units
from spikedim.circuits.compiler_points import SCALES, lattice, modulus, switching, tied
from spikedim.circuits.compiler_report import published_budget
from spikedim.circuits.convergence import convergence
from spikedim.circuits.functions import EQUIVARIANT, FUNCTIONS
from spikedim.errors import BudgetError, ConfigError, ModelError


def points(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hard_rank(x):
    difference = x[..., :, None, :] - x[..., None, :, :]
    return ((difference.sign() + 1) / 2).mean(-2)


# Acceptance


@pytest.mark.parametrize("eps", [0.2, 0.1, 0.05])
@pytest.mark.parametrize(("n", "d"), [(2, 2), (3, 1)])
@pytest.mark.parametrize("name", EQUIVARIANT)
def test_test_functions_compile_within_eps_and_exactly_equivariant(name, n, d, eps):
    network = compile(name, n, d, eps, points=4096)
    report = network.report
    assert report.sup_error < eps
    assert report.sup_error == max(e.sup for e in report.errors)
    assert all(e.points >= min(3000, (2 * report.T) ** (n * d)) for e in report.errors)
    assert report.failures.value == 0
    assert report.failures.high < 1e-3
    assert report.equivariant
    assert report.grid * report.windows == report.T
    x = points(2000, n, d, seed=11)
    output = network.run(x).output[0]
    assert float((output - FUNCTIONS[name](x)).abs().max()) < eps
    for order in itertools.permutations(range(n)):
        moved = network.run(x[:, list(order)]).output[0]
        assert torch.equal(moved, output[:, list(order)])


@pytest.mark.parametrize(
    "f",
    [
        "prefix_max",
        pytest.param(lambda x: x.argsort(1).argsort(1).double(), id="ties broken by index"),
        pytest.param(lambda x: x + torch.arange(x.shape[1])[:, None], id="position"),
    ],
)
def test_what_depends_on_the_order_of_tokens_is_refused(f):
    with pytest.raises(ModelError, match=r"not permutation-equivariant: at x=.*swapping tokens"):
        compile(f, 3, 1, 0.1, points=512)


# The simulation against an independent one, unit by unit and step by step


def simulate_units(f, n, d, grid, windows, x):
    """Every unit a Python object with a potential; returns output [n, d'] and spikes by layer."""
    places = list(itertools.product(range(grid + 1), repeat=d))
    multisets = list(itertools.combinations_with_replacement(places, n))
    weight = {}
    for cell, group in itertools.product(places, multisets):
        if cell in group:
            rest = list(group)
            rest.remove(cell)
            corner = torch.tensor([[cell, *rest]], dtype=torch.float64) / grid
            weight[cell, group] = f(corner)[0, 0]
    weight = dict(zip(weight, fixed_point(torch.stack(list(weight.values()))), strict=True))
    output, spikes = 0, [0] * 6
    for window in range(windows):
        potential = [[(window + 0.5) / windows for _ in range(d)] for _ in range(n)]
        received = [[[0] * (grid + 1) for _ in range(d)] for _ in range(n)]
        cell_potential = [{a: a.count(0) for a in places} for _ in range(n)]
        for _ in range(grid):
            for i, j in itertools.product(range(n), range(d)):
                potential[i][j] += float(x[i, j])
                if potential[i][j] < 1:
                    continue
                potential[i][j] -= 1
                spikes[0] += 1
                for level in range(1, grid + 1):
                    received[i][j][level] += 1
                    if received[i][j][level] == level:
                        spikes[1] += 1
                        for a in places:
                            cell_potential[i][a] += (a[j] == level) - (a[j] + 1 == level)
            assert all(v < d + 1 for p in cell_potential for v in p.values())
        spikes[5] += 1
        fired = [{a for a in places if cell_potential[i][a] + 1 >= d + 1} for i in range(n)]
        spikes[2] += sum(map(len, fired))
        attended = {a: sum(a in cells for cells in fired) for a in places}
        spikes[3] += sum(attended.values())
        total = []
        for i in range(n):
            active = [
                (a, group)
                for a, group in weight
                if (a in fired[i]) + sum(attended[c] >= group.count(c) for c in set(group))
                >= 1 + len(set(group))
            ]
            spikes[4] += len(active)
            total.append(sum(weight[unit] for unit in active))
        output = output + torch.stack(total)
    return output / windows, spikes


@pytest.mark.parametrize(
    ("name", "n", "d", "grid", "windows"),
    [("attention", 2, 2, 2, 3), ("rank", 3, 1, 3, 2), ("mean_field", 1, 2, 3, 4)],
)
def test_simulation_equals_one_unit_by_unit(name, n, d, grid, windows):
    f = FUNCTIONS[name]
    network = GridNetwork(f, n, d, grid)
    x = torch.cat([points(4, n, d), points(1, 1, d).expand(1, n, d), torch.ones(1, n, d)])
    output, spikes = network.simulate(x.double(), windows)
    for b in range(len(x)):
        expected, fired = simulate_units(f, n, d, grid, windows, x[b])
        assert torch.equal(output[b], expected)
        assert spikes[b].tolist() == fired


# Properties


@given(
    n=st.integers(1, 3),
    d=st.integers(1, 2),
    grid=st.integers(1, 3),
    windows=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_spikes_and_reordering(n, d, grid, windows, seed):
    network = GridNetwork(FUNCTIONS["attention"], n, d, grid)
    generator = torch.Generator().manual_seed(seed)
    x = torch.cat([points(5, n, d, seed=seed), tied(n, d, 5, generator)])
    output, spikes = network.simulate(x, windows)
    assert torch.equal(spikes[:, 0], spikes[:, 1])
    assert (spikes[:, 2:5] == n * windows).all()
    assert (spikes[:, 5] == windows).all()
    order = torch.randperm(n, generator=generator)
    assert torch.equal(network.simulate(x[:, order], windows)[0], output[:, order])
    together = network.run(x, T=grid * windows + grid - 1, trials=2)
    assert torch.equal(together.output, output.expand(2, -1, -1, -1))
    assert together.spikes.tolist() == [float(spikes.sum())] * 2
    assert together.neurons == len(x) * (sum(layer_units(n, d, grid)) + 1)


@given(grid=st.integers(1, 5), seed=st.integers(0, 99))
def test_interpolation_is_exact_on_corners_and_for_affine_functions_and_max(grid, seed):
    x = points(20, 2, 2, seed=seed)
    corners = (x * (grid + 1)).floor() / grid
    corners = corners.clamp(max=1)
    attention = FUNCTIONS["attention"]
    torch.testing.assert_close(interpolate(attention, corners, grid), attention(corners))
    for f in (FUNCTIONS["max"], lambda y: 2 * y - y.mean(-2, keepdim=True) + 1):
        torch.testing.assert_close(interpolate(f, x, grid), f(x).contiguous())


def test_output_tends_to_the_interpolation_as_one_over_windows():
    f, x = FUNCTIONS["attention"], points(300, 2, 2)
    network = GridNetwork(f, 2, 2, 3)
    limit = interpolate(f, x, 3)
    errors = [float((network.run(x, T=3 * w).output[0] - limit).abs().max()) for w in (8, 64, 512)]
    assert all(e < 0.5 / w for e, w in zip(errors, (8, 64, 512), strict=True))


def test_more_steps_converge_down_to_the_floor_of_interpolation():
    x = points(40, 3, 1)
    exact = convergence(GridNetwork(FUNCTIONS["max"], 3, 1, 1), x, T_values=(16, 64, 256, 1024))
    assert exact.slope.value == pytest.approx(-1, abs=0.05)
    assert exact.converges
    curved = GridNetwork(FUNCTIONS["mean_field"], 3, 1, 3)
    values = (96, 192, 384, 768, 1536)
    found = convergence(curved, x, T_values=values, trials=2)
    floor = (interpolate(curved.function, x, 3) - curved.function(x)).square().mean().sqrt()
    assert not found.converges
    assert found.points[-1].error.value == pytest.approx(float(floor), rel=0.02)


def test_bits_do_not_depend_on_the_memory_available(monkeypatch):
    network = compile("rank", 2, 2, 0.2, points=256)
    x = points(3, 20, 2, 2)
    whole = network.run(x)
    monkeypatch.setattr(compiler_network, "_CHUNK_BYTES", 1 << 12)
    pieces = network.run(x)
    assert torch.equal(whole.output, pieces.output)
    assert torch.equal(whole.spikes, pieces.spikes)
    assert whole.output.shape == (1, 3, 20, 2, 2)
    assert network.target(x).shape == (3, 20, 2, 2)


def test_fixed_point_sums_are_exact_in_any_order():
    values = fixed_point(points(100_000, seed=3) - 0.3)
    assert float((values + 0.3 - points(100_000, seed=3)).abs().max()) < 2**-30
    assert float(values.sum()) == float(values.flip(0).cumsum(0)[-1]) == math.fsum(values.tolist())


def test_sup_error_holds_on_every_point_of_a_fine_grid():
    network = compile("mean_field", 2, 1, 0.1, points=1024)
    fine = lattice(2, 1, 250_000, torch.Generator())
    assert float((network.run(fine).output[0] - network.target(fine)).abs().max()) < 0.1


def test_switching_points_are_the_worst_points_of_max():
    report = compile("max", 2, 1, 0.1, points=1024).report
    errors = {e.kind: e for e in report.errors}
    assert errors["switching points"].sup == pytest.approx(1 / (2 * report.windows), abs=1e-8)
    assert errors["switching points"].sup == report.sup_error


def test_modulus_is_found_and_never_above_the_truth():
    x = points(500, 2, 1)
    found = modulus(lambda y: 3 * y, x, torch.Generator().manual_seed(0))
    truth = torch.tensor([3 / k for k in SCALES], dtype=torch.float64)
    assert (found <= truth + 1e-12).all()
    assert (found >= 0.95 * truth).all()


def test_switching_points_switch():
    network = GridNetwork(FUNCTIONS["max"], 1, 1, 2)
    x = switching(1, 1, 64, torch.Generator().manual_seed(0), 2 * 4)
    beside = (x * 8 - 0.5).round() / 4 + 0.125 - x
    below, above = x.minimum(beside), x.maximum(beside)
    gap = network.simulate(above, 4)[1][:, 0] - network.simulate(below, 4)[1][:, 0]
    assert (gap == 1).all()


# Other shapes, budgets, refusals


def test_one_token_and_more_outputs_than_inputs():
    network = compile(lambda x: torch.cat([x, x.square(), 1 - x], -1), 1, 2, 0.05, points=512)
    assert network.report.outputs == 6
    assert network.run(points(1, 2)).output.shape == (1, 1, 6)
    assert compile(torch.zeros_like, 2, 1, 0.01, points=64).report.sup_error == 0


def test_budget_names_an_eps_that_fits():
    with pytest.raises(BudgetError, match=r"max_neurons=300; .* give eps=[0-9.]+ or more") as fault:
        compile("rank", 2, 2, 0.05, max_neurons=300, points=1024)
    eps = float(re.search(r"give eps=([0-9.]+)", str(fault.value))[1])
    report = compile("rank", 2, 2, eps, max_neurons=300, points=1024).report
    assert report.sup_error < eps
    assert report.neurons <= 300
    with pytest.raises(BudgetError, match="the coarsest network for n=4, d=2 has 369 units"):
        compile("rank", 4, 2, 0.5, max_neurons=368)


def test_a_jump_is_named():
    with pytest.raises(BudgetError, match=r"changes by 0\.5 .* if it jumps, its error stays near"):
        compile(hard_rank, 2, 1, 0.1, max_neurons=5000, points=512)


@pytest.mark.parametrize(
    ("f", "change", "error", "text"),
    [
        ("sort", {}, ConfigError, "f='sort' is unknown"),
        (3, {}, ConfigError, "f is a int"),
        ("max", {"eps": 0.0}, ConfigError, "eps=0.0"),
        ("max", {"eps": math.nan}, ConfigError, "eps=nan"),
        ("max", {"n": 0}, ConfigError, "n=0"),
        ("max", {"d": 1.5}, ConfigError, r"d=1\.5"),
        ("max", {"points": 8}, ConfigError, "points=8: expected a whole number, 16 or more"),
        (lambda x: x.sum(1), {}, ModelError, "expected a tensor"),
        (lambda x: 1.0, {}, ModelError, "to float"),
        (lambda x: x.float(), {}, ModelError, "float32"),
        (lambda x: x / 0, {}, ModelError, "not finite"),
    ],
)
def test_what_cannot_be_compiled_is_refused(f, change, error, text):
    options = {"n": 2, "d": 1, "eps": 0.2, "points": 64} | change
    with pytest.raises(error, match=text):
        compile(f, options.pop("n"), options.pop("d"), options.pop("eps"), **options)


def test_inputs_that_cannot_be_run_are_refused():
    network = GridNetwork(FUNCTIONS["max"], 2, 1, 4)
    x = points(5, 2, 1)
    with pytest.raises(ConfigError, match=r"T=3: .* give T=4 or more"):
        network.run(x, T=3)
    with pytest.raises(ConfigError, match=r"shape \(5, 2, 1\); .* \[..., 1, 2\]"):
        GridNetwork(FUNCTIONS["max"], 1, 2, 4).run(x, T=8)
    for bad in (x + 1, x * math.nan, x.long()):
        with pytest.raises(ConfigError, match="not numbers in"):
            network.run(bad, T=8)
    with pytest.raises(ConfigError, match="x is a list"):
        network.run([[0.2], [0.7]], T=8)
    with pytest.raises(ConfigError, match="2 inputs given"):
        network.run(x, x, T=8)
    with pytest.raises(ConfigError, match="trials=0"):
        network.run(x, T=8, trials=0)
    with pytest.raises(ConfigError, match="grid=0"):
        GridNetwork(FUNCTIONS["max"], 2, 1, 0)


# The report


def test_report_is_the_same_again_and_stands_beside_the_published_budget():
    first = compile("attention", 2, 1, 0.1, points=256, seed=3).report
    again = compile("attention", 2, 1, 0.1, points=256, seed=3).report
    data, same = first.to_dict(), again.to_dict()
    assert data.pop("seconds") > 0
    assert same.pop("seconds") > 0
    assert data == same == json.loads(json.dumps(data))
    assert first.published == published_budget(2, 1, 0.1)
    assert (first.published.heads, first.published.T) == pytest.approx((400, 400))
    assert first.published.layers == pytest.approx(math.log2(10))
    assert first.neurons == sum(first.units) + 1
    assert first.heads == first.grid + 1
    assert sum(first.spikes_by_layer.values()) == pytest.approx(first.spikes.value)
    text = str(first)
    for word in ("sup error", "bit for bit", "n²d/ε²", "spikes per input", "Modulus"):
        assert word in text


def test_a_jump_between_the_points_is_found_and_the_search_ends(monkeypatch):
    monkeypatch.setattr(compiler, "_MAX_STEPS", 10**6)
    with pytest.raises(BudgetError, match="half a jump"):
        compile(lambda x: (x > 0.31371).double(), 1, 1, 0.1, points=256)


def test_few_switching_points_are_all_tried():
    points = switching(1, 2, 16, torch.Generator(), 3)
    expected = [(j + 0.5) / 3 + side for j in range(3) for side in (-1e-9, 1e-9)]
    found = torch.tensor(sorted(points.squeeze(1).tolist()))
    assert torch.allclose(found, torch.tensor(sorted(itertools.product(expected, repeat=2))))
    assert len(switching(1, 2, 16, torch.Generator(), 1000)) == 16
