import json

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from spikedim.design.layers import layer_dimensions
from spikedim.dimension import measure, participation_ratio
from spikedim.dimension.clusters import ClusterStream, measure_clustered
from spikedim.errors import BudgetError, ConfigError, DataError, ModelError
from spikedim.models import calibrate_batchnorm, create_model, load_checkpoint, save_checkpoint
from spikedim.models.features import (
    TIMES,
    TOKENS,
    Axes,
    LayerShape,
    layer_shapes,
    representations,
    visit,
)
from spikedim.neurons import record

matplotlib.use("Agg")
T = 3


@pytest.fixture(scope="module")
def network():
    """A calibrated network of 4 x 4 tokens and 24 inputs."""
    net = create_model("spikformer_nano", input_shape=(1, 8, 8), num_classes=3, seed=1)
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    calibrate_batchnorm(net, [x], T)
    return net, x


@given(
    grid=st.lists(st.integers(1, 3), max_size=2),
    steps=st.integers(1, 3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("time", TIMES)
def test_axes_do_what_they_say(tokens, time, grid, steps, batch, channels):
    shape = (steps, batch, *grid, channels)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(grid)), dtype=torch.float32)
    got = Axes(tokens, time).arrange(x).numpy()
    v = x.numpy().reshape(steps, batch, -1, channels)
    groups = {"each": [[t] for t in range(steps)]}.get(time, [list(range(steps))])
    expected = []
    for group in groups:
        part = v[group].mean(0, keepdims=True) if time == "mean" else v[group]
        samples = []
        for b in range(batch):
            rows = []
            for frame in part[:, b]:
                if tokens == "mean":
                    rows.append(frame.mean(0, keepdims=True))
                elif tokens == "flatten":
                    rows.append(frame.reshape(1, -1))
                else:
                    rows.append(frame)
            joined = np.concatenate(rows, 1) if time == "flatten" else np.concatenate(rows, 0)
            samples.append(joined)
        expected.append(samples)
    assert_allclose(got, np.array(expected), rtol=1e-5, atol=1e-6)
    announced = LayerShape("x", steps, tuple(grid), channels).arranged(Axes(tokens, time))
    assert announced == (got.shape[0], *got.shape[2:])


@pytest.mark.parametrize("what", ["spikes", "potential"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_representations_are_what_the_neurons_did(network, what, batch_size):
    net, x = network
    with torch.no_grad(), record(net, (what,)) as recording:
        net.steps(x, T)
    truth = getattr(recording, what)
    got = representations(net, x, T, what, time="flatten", batch_size=batch_size)
    assert list(got) == list(truth)
    for name, value in truth.items():
        expected = value.movedim(0, 1).flatten(1).numpy()
        assert_allclose(got[name], expected, atol=1e-5 if what == "potential" else 0)


def test_rates_are_mean_spikes_and_the_network_is_left_as_found(network):
    net, x = network
    net.train()
    try:
        rates = representations(net, x, T, "rates", layers="block.0.mlp.*")
        spikes = representations(net, x, T, layers="block.0.mlp.*", time="flatten")
        assert all(m.training for m in net.modules())
    finally:
        net.eval()
    for name, value in rates.items():
        assert_allclose(value, spikes[name].reshape(24, T, -1).mean(1), atol=1e-6)
    assert not any(m._forward_hooks for m in net.modules())
    assert not any(getattr(m, "_observers", None) for m in net.modules())
    with pytest.raises(ModelError):
        representations(net, x[:, :, :4], T)
    with pytest.raises(ZeroDivisionError):
        visit(net, x, T, lambda name, value: 1 / 0, what="features")
    assert not any(m._forward_hooks for m in net.modules())


def test_stages_are_the_stem_the_blocks_and_the_logits(network):
    net, x = network
    found = representations(net, x, T, "features", time="flatten")
    assert list(found) == ["patch_embed", "block.0", "head"]
    with torch.no_grad():
        logits = net.steps(x, T)
    assert_allclose(found["head"], logits.movedim(0, 1).flatten(1).numpy(), atol=1e-6)
    assert set(np.unique(found["patch_embed"])) <= {0, 1, 2}
    stem = {s.name: s for s in layer_shapes(net, x, T, "features")}["patch_embed"]
    assert stem.grid == net.config.stem_grids[-1]
    assert stem.channels == net.config.embed_dim


@pytest.mark.parametrize("size", [2, 3, 4, 24])
def test_layers_inside_a_stage_keep_time_batch_and_channels_apart(network, size):
    """Convolutions see [T B, C, H, W], token layers [T B N, C], the first one [B, C, H, W]."""
    net, x = network
    x = x[:size]
    names = ["patch_embed.proj_bn", "patch_embed.proj_bn1", "block.0.attn.q_bn"]
    raw = {}
    modules = dict(net.named_modules())
    hooks = [
        modules[n].register_forward_hook(lambda m, i, o, n=n: raw.setdefault(n, o)) for n in names
    ]
    with torch.no_grad():
        net.steps(x, T)
    for hook in hooks:
        hook.remove()
    got = representations(net, x, T, "features", layers=names, time="each", batch_size=64)
    first, second, tokens = (raw[n] for n in names)
    for t in range(T):
        assert_array_equal(got[names[0]][t], first.permute(0, 2, 3, 1).flatten(1))
        images = second.unflatten(0, (T, size))[t].permute(0, 2, 3, 1)
        assert_array_equal(got[names[1]][t], images.flatten(1))
        assert_array_equal(got[names[2]][t], tokens.unflatten(0, (T, size, -1))[t].flatten(1))


def test_a_module_that_runs_twice_gives_numbered_layers():
    net = create_model("spikformer_nano", input_shape=(1, 32, 32), seed=0)
    names = [s.name for s in layer_shapes(net, torch.rand(2, 1, 32, 32), 2, "features", "*maxpool")]
    assert names == ["patch_embed.maxpool", "patch_embed.maxpool#2"]
    found = layer_dimensions(net, torch.rand(20, 1, 32, 32), 2, "features", ["pr"],
                             layers="*maxpool", tokens="mean")  # fmt: skip
    assert [row.layer for row in found.layers] == names


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("time", TIMES)
def test_layer_dimensions_are_those_of_the_arrays(network, tokens, time):
    net, x = network
    keys = ["pca95", "pr", "pr_corrected", "entropy_rank"]
    layers = "patch_embed.rpe_lif,block.0.attn.*"
    found = layer_dimensions(net, x, T, "potential", keys, layers=layers, tokens=tokens, time=time)
    arrays = representations(net, x, T, "potential", layers=layers, tokens=tokens, time=time)
    assert len(found.layers) == len(arrays) * (T if time == "each" else 1)
    for row in found.layers:
        array = arrays[row.layer] if row.step is None else arrays[row.layer][row.step - 1]
        assert (row.n, row.d) == array.shape
        assert_allclose(row.mean, array.mean(), atol=1e-5)
        truth = measure(array, keys, interval="none")
        for key in keys:
            assert_allclose(row.estimates[key].value, truth[key].value, rtol=1e-4, err_msg=key)


def test_the_memory_limit_changes_passes_but_no_number(network):
    net, x = network
    one = layer_dimensions(net, x, T, tokens="samples", estimators=["pr"])
    several = layer_dimensions(
        net, x, T, tokens="samples", estimators=["pr"], memory_limit=one.memory / 3, batch_size=5
    )
    assert one.passes == 1
    assert several.passes >= 3
    assert several.memory <= one.memory / 3
    for a, b in zip(one.layers, several.layers, strict=True):
        assert_allclose(a.estimates["pr"].value, b.estimates["pr"].value, rtol=1e-6)


def test_what_does_not_fit_is_measured_on_a_subset_and_says_so(network):
    net, x = network
    name = "block.0.mlp.fc1_lif"
    width = layer_dimensions(net, x, T, layers=name).layers[0].d
    few = 4 * 20 * width + 4 * 8 * 20**2 + 1
    found = layer_dimensions(net, x, T, layers=name, memory_limit=few)
    assert found.layers[0].n == found.layers[0].samples == 20
    assert found.samples == 24
    assert any("20 of 24 samples" in note for note in found.warnings)
    with pytest.raises(BudgetError, match="tokens='mean'"):
        layer_dimensions(net, x, T, layers=name, memory_limit=few / 2)


def test_peak_memory_does_not_grow_with_the_samples():
    import tracemalloc

    net = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=1)
    peaks = []
    for n in (64, 512):
        x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        calibrate_batchnorm(net, [x[:64]], 2)
        tracemalloc.start()
        layer_dimensions(net, x, 2, tokens="samples", estimators=["pr"], layers="block.*")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # seven layers of 512 x 64 tokens x 32 or 64 channels would be 37 MB
    assert peaks[1] < 1.2 * peaks[0] + 1e6 < 20e6


def test_a_silent_layer_has_dimension_zero_and_a_warning():
    net = create_model("spikformer_nano", input_shape=(1, 8, 8), seed=0)  # not calibrated
    net.set_neurons(threshold=1e6)
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for tokens in TOKENS:
        found = layer_dimensions(net, x, 1, tokens=tokens)
        assert all(e.value == 0 for row in found.layers for e in row.estimates.values())
        assert any("no spike" in note and "dimension 0" in note for note in found.warnings)
        assert all(row.mean == 0 for row in found.layers)
    report = measure(representations(net, x, 1, layers="*q_lif")["block.0.attn.q_lif"])
    assert {e.value for e in report.estimates.values()} == {0.0}


def test_constant_inputs_two_samples_and_one(network):
    net, x = network
    same = layer_dimensions(net, x[:1].expand(20, -1, -1, -1), T, estimators=["pca95", "pr"])
    assert all(e.value == 0 for row in same.layers for e in row.estimates.values())
    two = layer_dimensions(net, x[:2], T, estimators=["pca95", "pr"])
    assert max(e.value for row in two.layers for e in row.estimates.values()) == 1
    with pytest.raises(DataError, match="1 sample"):
        layer_dimensions(net, x[:1], T)
    uncentred = layer_dimensions(net, x[:1], T, estimators=["pr"], center=False, layers="*rpe_lif")
    assert_allclose(uncentred.layers[0].estimates["pr"].value, 1)
    with pytest.raises(ModelError):
        layer_dimensions(net, x[:0], T)


def test_duplicated_samples_leave_the_participation_ratio(network):
    net, x = network
    once = layer_dimensions(net, x, T, "potential", ["pr"], tokens="mean")
    twice = layer_dimensions(net, torch.cat([x, x]), T, "potential", ["pr"], tokens="mean")
    for a, b in zip(once.layers, twice.layers, strict=True):
        assert_allclose(a.estimates["pr"].value, b.estimates["pr"].value, rtol=1e-4)


def test_not_finite_values_name_the_layer(network):
    net, x = network
    broken = create_model("spikformer_nano", input_shape=(1, 8, 8), num_classes=3, seed=1)
    broken.load_state_dict(net.state_dict())
    with torch.no_grad():
        broken.block[0].attn.k_bn.weight[3] = float("nan")
    with pytest.raises(ModelError, match=r"block\.0\.attn\.k_bn gives NaN"):
        layer_dimensions(broken, x, T, "features", layers="*_bn")


def test_a_checkpoint_gives_the_numbers_of_the_network_that_wrote_it(network, tmp_path):
    net, x = network
    path = save_checkpoint(net, tmp_path / "net.safetensors")
    other = create_model("spikformer_nano", input_shape=(1, 8, 8), num_classes=3, seed=9)
    load_checkpoint(other, path)
    assert layer_dimensions(other, x, T) == layer_dimensions(net, x, T)


def test_event_input_and_its_own_timesteps():
    net = create_model("spikformer_nano", input_shape=(2, 8, 8), seed=0)
    x = torch.rand(5, 18, 2, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    calibrate_batchnorm(net, [x])
    found = layer_dimensions(net, x, time="each", tokens="mean", layers="*attn.q_lif")
    assert (found.T, found.samples, len(found.layers)) == (5, 18, 5)


def test_results_print_plot_and_export(network):
    net, x = network
    for time in ("mean", "each"):
        found = layer_dimensions(net, x, T, tokens="mean", time=time)
        data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert data["layers"][0]["estimates"]["pca95"]["value"] >= 0
        text = str(found)
        assert "block.0.attn.q_lif" in text
        assert ("t=3" in text) == (time == "each")
        axes = found.plot()
        assert len(axes.lines) == 3
        matplotlib.pyplot.close(axes.figure)
    assert set(found.series("pr_corrected")) == {row.layer for row in found.layers}
    with pytest.raises(ConfigError, match="not measured"):
        found.series("mle")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"what": "currents"}, "spikes, potential"),
        ({"tokens": "all"}, "flatten, samples, mean"),
        ({"time": "last"}, "each"),
        ({"what": "rates", "time": "each"}, "what='spikes'"),
        ({"layers": "blok.*"}, "for instance: "),
        ({"estimators": []}, "at least one"),
        ({"estimators": ["pca"]}, "unknown estimator"),
        ({"tokens": "samples", "estimators": ["two_nn"]}, "independent samples"),
        ({"batch_size": 0}, "1 or more"),
        ({"T": 0}, "timesteps"),
    ],
)
def test_wrong_arguments_are_named(network, change, words):
    net, x = network
    with pytest.raises(ConfigError, match=words):
        layer_dimensions(net, x, **{"T": T, **change})


def test_layers_that_never_run_are_refused(network):
    net, x = network
    with pytest.raises(ModelError, match=r"none of the layers runs.*norm1"):
        representations(net, x, T, "features", layers="block.0.norm1")


def clustered(rng, clusters, rows, values, within=0.3):
    """Rows that share most of their cluster's draw, with covariance diag(values)."""
    scale = np.sqrt(values)
    shared = rng.standard_normal((clusters, 1, len(values))) * np.sqrt(1 - within)
    own = rng.standard_normal((clusters, rows, len(values))) * np.sqrt(within)
    return ((shared + own) * scale).reshape(-1, len(values)), np.repeat(np.arange(clusters), rows)


@pytest.mark.parametrize("d", [6, 400])
def test_clusters_in_one_pass_and_in_memory_agree(d):
    x, cluster = clustered(np.random.default_rng(0), 30, 5, 1 / np.arange(1, d + 1))
    keys = ["pca90", "pr", "pr_corrected", "stable_rank"]
    whole = measure_clustered(x, cluster, keys, seed=3)
    plain = measure(x, keys, interval="none")
    stream = ClusterStream(30)
    for block in np.split(x.reshape(30, 5, d), [4, 11, 29]):
        stream.update(block)
    other = stream.report(keys)
    for key in keys:
        assert_allclose(whole[key].value, plain[key].value, rtol=1e-9)
        assert_allclose(other[key].value, plain[key].value, rtol=1e-9)
        if key != "pca90":
            low, high = whole[key].low, whole[key].high
            assert low <= whole[key].value
            assert high is None or whole[key].value <= high
    assert_allclose(plain["pr"].value, participation_ratio(x).value, rtol=1e-9)


def test_copies_of_a_row_are_no_new_samples():
    """Ten copies of every row: the interval stays that of the rows, not √10 narrower."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 8)) * np.sqrt(1 / np.arange(1, 9))
    single = measure_clustered(x, np.arange(100), ["pr"], seed=0)["pr"]
    copies = measure_clustered(np.repeat(x, 10, 0), np.repeat(np.arange(100), 10), ["pr"], seed=0)
    assert_allclose(copies["pr"].high - copies["pr"].low, single.high - single.low, rtol=0.02)
    naive = measure(np.repeat(x, 10, 0), ["pr"])["pr"]
    assert naive.high - naive.low < 0.6 * (single.high - single.low)


def test_cluster_intervals_cover():
    values = 1 / np.arange(1, 11) ** 1.0
    truth = values.sum() ** 2 / (values**2).sum()
    hits = 0
    for turn in range(200):
        x, cluster = clustered(np.random.default_rng(turn), 80, 6, values)
        found = measure_clustered(x, cluster, ["pr"], seed=turn)["pr"]
        hits += found.low <= truth <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_the_correction_of_rows_leaves_the_bias_of_clusters_to_the_interval():
    """50 rows each of 20 clusters that share 0.9 of the variance in 50 equal directions."""
    x, cluster = clustered(np.random.default_rng(0), 20, 50, np.ones(50), within=0.1)
    report = measure_clustered(x, cluster, ["pr_corrected"])
    found = report["pr_corrected"]
    assert found.value < 20
    assert (found.low, found.high) == (found.value, None)
    assert report.tables()[0].rows[0][-1].endswith("no 1/n bias of independent samples.")


def test_cluster_faults_are_named():
    x = np.random.default_rng(0).standard_normal((12, 3))
    with pytest.raises(DataError, match=r"expected \(12,\)"):
        measure_clustered(x, np.arange(4))
    with pytest.raises(ConfigError, match="groups=1"):
        measure_clustered(x, np.arange(12), groups=1)
    few = measure_clustered(x, np.repeat([0, 1, 2], 4), ["pr"])
    assert few["pr"].low is None
    assert "at least 8" in few.warnings[0]
    stream = ClusterStream(2)
    with pytest.raises(DataError, match="0 clusters seen"):
        stream.report(["pr"])
    stream.update(np.ones((1, 2, 3)))
    with pytest.raises(DataError, match="expected 3"):
        stream.update(np.ones((1, 2, 4)))
    with pytest.raises(DataError, match="more clusters"):
        stream.update(np.ones((2, 2, 3)))
    assert stream.report(["pr"])["pr"].value == 0
