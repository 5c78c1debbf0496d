import builtins

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from spikedim.dimension import spectrum
from spikedim.dimension.sharded import FileShard, file_shards, moments_of, sharded_spectrum
from spikedim.errors import BudgetError, ConfigError, DataError


def data(n=900, d=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.5 + 5


def same(found, whole):
    assert (found.n, found.d, found.centered) == (whole.n, whole.d, whole.centered)
    assert_allclose(found.eigenvalues, whole.eigenvalues, rtol=1e-9, atol=1e-9)
    assert_allclose(found.total_variance, whole.total_variance, rtol=1e-9)
    assert_allclose(found.fourth, whole.fourth, rtol=1e-9)


def reader(x):
    """A shard read in blocks, as from a data loader; local, so that Ray sends it by value."""
    return lambda: iter(np.array_split(x, 3))


def unknown_to_workers():
    return data()


@pytest.fixture
def mixed(tmp_path):
    """The same samples as one array and as shards of every kind."""
    x = data()
    parts = np.array_split(x, 5)
    np.save(tmp_path / "a.npy", parts[0])
    np.save(tmp_path / "b.npy", parts[1])
    shards = [
        tmp_path / "a.npy", str(tmp_path / "b.npy"), parts[2], reader(parts[3]),
        sp.csr_matrix(parts[4]),
    ]  # fmt: skip
    return x, shards


@pytest.mark.parametrize("center", [True, False])
def test_shards_give_the_spectrum_of_the_whole(mixed, center):
    x, shards = mixed
    same(sharded_spectrum(shards, center), spectrum(x, center, method="covariance"))


@pytest.mark.parametrize("count", [1, 4, 7, 2000])
def test_a_file_is_cut_into_all_of_its_rows(tmp_path, count):
    x = data(101, 6)
    np.save(tmp_path / "x.npy", x)
    shards = file_shards(tmp_path / "x.npy", count)
    assert len(shards) <= count
    assert_allclose(np.concatenate([shard() for shard in shards]), x)
    same(sharded_spectrum(shards), spectrum(x))


def test_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match="no shards"):
        sharded_spectrum([])
    with pytest.raises(ConfigError, match="engine='dask'"):
        sharded_spectrum([data()], engine="dask")
    with pytest.raises(ConfigError, match="'ray' only"):
        sharded_spectrum([data()], workers=2)
    with pytest.raises(ConfigError, match="workers=0"):
        sharded_spectrum([data()], engine="ray", workers=0)
    with pytest.raises(ConfigError, match="count=0"):
        file_shards(tmp_path / "x.npy", 0)
    with pytest.raises(DataError, match=r"absent\.npy"):
        sharded_spectrum([tmp_path / "absent.npy"])
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(DataError, match=r"text\.npy"):
        sharded_spectrum([tmp_path / "text.npy"])
    np.save(tmp_path / "flat.npy", np.ones(3))
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        sharded_spectrum([FileShard(tmp_path / "flat.npy")])
    with pytest.raises(DataError, match="40 and 7"):
        sharded_spectrum([data(), np.ones((5, 7))])
    with pytest.raises(BudgetError, match="GiB"):
        sharded_spectrum([data()], memory_limit=1e6)


def test_ray_missing_says_how_to_install_it(monkeypatch):
    found = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "ray":
            raise ImportError(name)
        return found(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install spikedim\[ray\]"):
        sharded_spectrum([data()], engine="ray")


@pytest.fixture(scope="module")
def ray():
    """A Ray of two workers on this machine; the tests join it as a user's running cluster."""
    module = pytest.importorskip("ray", reason="Ray is not installed (spikedim[ray])")
    module.init(address="local", num_cpus=2, include_dashboard=False, logging_level=40)
    yield module
    module.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("center", [True, False])
def test_ray_gives_the_numbers_of_the_local_engine(ray, mixed, center):
    x, shards = mixed
    local = sharded_spectrum(shards, center)
    remote = sharded_spectrum(shards, center, engine="ray")
    same(remote, local)
    same(remote, spectrum(x, center, method="covariance"))
    assert ray.is_initialized()


@pytest.mark.slow
def test_ray_passes_a_users_mistake_on(ray, tmp_path):
    with pytest.raises(DataError, match=r"absent\.npy"):
        sharded_spectrum([data(), tmp_path / "absent.npy"], engine="ray")
    bad = data()
    bad[3, 2] = np.nan
    with pytest.raises(DataError, match="sample 3, feature 2"):
        sharded_spectrum([bad], engine="ray")
    with pytest.raises(DataError, match="must be on every worker"):
        sharded_spectrum([unknown_to_workers], engine="ray")


@pytest.mark.slow
def test_ray_survives_a_worker_that_dies(ray, tmp_path):
    marker, x = tmp_path / "died", data()

    def read():
        import os

        if not marker.exists():
            marker.touch()
            os._exit(1)
        return x

    same(sharded_spectrum([x, read], engine="ray"), spectrum(np.concatenate([x, x])))


@pytest.mark.slow
def test_ray_of_its_own_is_started_and_stopped(mixed):
    module = pytest.importorskip("ray", reason="Ray is not installed (spikedim[ray])")
    module.shutdown()
    x, shards = mixed
    same(sharded_spectrum(shards, engine="ray", workers=2), spectrum(x, method="covariance"))
    assert not module.is_initialized()
    with pytest.raises(ConfigError, match="cannot join Ray"):
        sharded_spectrum(shards, engine="ray", address="127.0.0.1:1")


def test_a_partial_result_knows_its_samples():
    assert moments_of(reader(data())).n == 900
