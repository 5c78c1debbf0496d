"""What every registered network promises: inputs, determinism, independence, neurons, errors."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jacrev, vmap
from torch.nn import functional as F

from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import (
    ModelEntry,
    SpikformerConfig,
    calibrate_batchnorm,
    create_model,
    list_models,
    model_entry,
    register_model,
)
from spikedim.neurons import LIF, LIFParams, record

SMALL = ["spikformer_nano", "spikformer_micro", "spikformer_tiny", "spikformer_small"]


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alive(name="spikformer_nano", shape=(1, 8, 8), dtype=torch.float32, **options):
    """A network that fires: fresh weights, calibrated statistics."""
    model = create_model(name, input_shape=shape, **options).to(dtype)
    calibrate_batchnorm(model, [gaussian(16, *shape, seed=1, dtype=dtype)], 4)
    return model


@pytest.mark.parametrize("name", list_models("spikformer*"))
def test_every_network_accepts_its_options(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=7, input_shape=(5, 48, 40), depth=1)
    assert model.num_classes == 7
    assert model.head.out_features == 7
    assert model.input_shape == (5, 48, 40)
    assert len(model.block) == 1


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (2, 13, 30)])
def test_small_networks_run_forward_and_backward(name, shape):
    model, x = create_model(name, input_shape=shape), gaussian(2, *shape)
    assert model.steps(x).shape == (4, 2, 10)
    F.cross_entropy(model(x, 2), torch.tensor([0, 1])).backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == {n for n, _ in model.named_parameters() if ".norm" in n}


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((8, 8), (8, 8)),
        ((28, 28), (7, 7)),
        ((32, 32), (8, 8)),
        ((64, 64), (8, 8)),
        ((128, 128), (8, 8)),
        ((224, 224), (14, 14)),
        ((34, 34), (9, 9)),
        ((1, 784), (1, 784)),
        ((4, 4), (4, 4)),
    ],
)
def test_stem_pools_follow_the_image(size, grid):
    assert SpikformerConfig(input_shape=(3, *size)).stem_grids[-1] == grid


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(2, 5),
    timesteps=st.integers(1, 5),
    layout=st.sampled_from(["cifar", "imagenet", "dvs"]),
    seed=st.integers(0, 1000),
    refractory=st.integers(0, 2),
)
def test_samples_do_not_leak_into_each_other(batch, timesteps, layout, seed, refractory):
    neuron = LIFParams(refractory=refractory)
    model = alive(layout=layout, neuron=neuron, seed=seed, dtype=torch.float64)
    x = gaussian(batch, 1, 8, 8, seed=seed, dtype=torch.float64)
    together = model.steps(x, timesteps)
    alone = torch.cat([model.steps(x[i : i + 1], timesteps) for i in range(batch)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model.steps(x[order], timesteps), together[:, order])


def test_no_state_between_calls_and_the_past_is_independent_of_the_future():
    model, x = alive(dtype=torch.float64), gaussian(3, 1, 8, 8, dtype=torch.float64)
    long = model.steps(x, 6)
    assert torch.equal(long, model.steps(x, 6))
    torch.testing.assert_close(model.steps(x, 2), long[:2], rtol=0, atol=1e-12)
    assert torch.equal(model(x, 6), long.mean(0))
    assert torch.equal(model(x), model(x, 4))


@pytest.mark.parametrize("training", [False, True])
def test_static_input_equals_the_same_frames_as_events(training):
    static, events = (alive(dtype=torch.float64).train(training) for _ in range(2))
    x = gaussian(3, 1, 8, 8, dtype=torch.float64)
    one, two = static.steps(x, 4), events.steps(x.expand(4, *x.shape))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    one.square().sum().backward()
    two.square().sum().backward()
    for (name, p), q in zip(static.named_parameters(), events.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, p), q in zip(static.named_buffers(), events.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, msg=name)


def test_seed_decides_the_weights_and_the_global_generator_is_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (create_model("spikformer_nano", seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    first = create_model("spikformer_nano", seed=None).state_dict()
    assert not torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    again = create_model("spikformer_nano", seed=None).state_dict()
    assert torch.equal(first["head.weight"], again["head.weight"])


def test_initialisation_is_the_released_one():
    model = create_model("spikformer_small")
    assert model.block[0].attn.q_linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.block[0].mlp.fc1_linear.bias.any()
    conv = create_model("spikformer_small", layout="imagenet").block[0].mlp.fc2_conv
    assert conv.weight.abs().max().item() == pytest.approx(512**-0.5, rel=0.01)


def test_neurons_are_replaced_and_attention_keeps_its_share():
    model = alive(neuron=LIFParams(threshold=0.8))
    assert model.block[0].attn.attn_lif.params.threshold == pytest.approx(0.4)
    assert model.set_neurons(beta=0.8, threshold=0.6, refractory=1) is model
    layers = {n: m.params for n, m in model.named_modules() if isinstance(m, LIF)}
    assert len(layers) == 5 + 7
    for name, params in layers.items():
        expected = 0.3 if name.endswith("attn_lif") else 0.6
        assert params.threshold == pytest.approx(expected)
        assert (params.beta, params.refractory) == (0.8, 1)
    assert model.config.neuron.threshold == 0.6
    with record(model) as recording:
        model(gaussian(4, 1, 8, 8), 6)
    stem = recording.spikes["patch_embed.proj_lif"]
    assert (stem[1:] * stem[:-1]).sum() == 0 < stem.sum()
    with pytest.raises(ConfigError, match=r"'treshold'.*threshold"):
        model.set_neurons(treshold=1.0)


def test_threshold_and_inputs_scale_together():
    """Doubling every weight layer's output and every threshold leaves all spikes as they were."""
    model, x = alive(dtype=torch.float64), gaussian(4, 1, 8, 8, dtype=torch.float64)
    double = copy.deepcopy(model).set_neurons(threshold=2.0)
    for module in double.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.weight.data *= 2
            module.bias.data *= 2
    double.block[0].attn.product.scale *= 2
    assert torch.equal(model(x), double(x))


def test_function_transforms_give_per_sample_gradients():
    model, x = alive(), gaussian(3, 1, 8, 8)
    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def logits(weights, sample):
        return functional_call(model, (weights, buffers), (sample[None], 3))[0]

    torch.testing.assert_close(vmap(logits, (None, 0))(weights, x), model(x, 3).detach())
    jacobians = vmap(jacrev(logits), (None, 0))(weights, x)
    for i in range(3):
        model.zero_grad()
        model(x[i : i + 1], 3)[0, 2].backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected = jacobians[name][i, 2]
                torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("x", "T", "error", "message"),
    [
        (torch.zeros(2, 1, 8, 8), 0, ConfigError, "T=0"),
        (torch.zeros(2, 1, 8, 8), -3, ConfigError, "T=-3"),
        (torch.zeros(2, 1, 8, 8), 2.0, ConfigError, "T=2.0"),
        (torch.zeros(2, 1, 8, 8), True, ConfigError, "T=True"),
        (torch.zeros(3, 2, 1, 8, 8), 4, ModelError, "T=4, but the event input has 3"),
        (torch.zeros(2, 3, 8, 8), 4, ModelError, "3 x 8 x 8, this network takes 1 x 8 x 8"),
        (torch.zeros(2, 1, 8, 9), 4, ModelError, "1 x 8 x 9"),
        (torch.zeros(2, 64), 4, ModelError, r"shape \(2, 64\)"),
        (torch.zeros(0, 1, 8, 8), 4, ModelError, "nothing to compute"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 4, ModelError, r"x\.float\(\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.float64), 4, ModelError, "float64"),
        ([[1.0]], 4, ModelError, "list"),
    ],
)
def test_wrong_inputs_are_named(x, T, error, message):
    with pytest.raises(error, match=message) as caught:
        create_model("spikformer_nano", input_shape=(1, 8, 8))(x, T)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embed_dim": 36}, ConfigError, "embed_dim=36"),
        ({"num_heads": 3}, ConfigError, "num_heads=3"),
        ({"num_heads": 0}, ConfigError, "num_heads=0"),
        ({"depth": 1.5}, ConfigError, "depth=1.5"),
        ({"mlp_ratio": -1}, ConfigError, "mlp_ratio=-1"),
        ({"mlp_ratio": 0.001}, ConfigError, r"mlp_ratio=0\.001"),
        ({"scale": float("nan")}, ConfigError, "scale=nan"),
        ({"layout": "cifer"}, ConfigError, "layout='cifer'"),
        ({"pools": (True, False)}, ConfigError, "pools="),
        ({"pools": 2}, ConfigError, "pools=2"),
        ({"input_shape": (8, 8)}, ConfigError, r"input_shape=\(8, 8\)"),
        ({"input_shape": (3, 0, 8)}, ConfigError, r"input_shape=\(3, 0, 8\)"),
        ({"num_classes": 0}, ConfigError, "num_classes=0"),
        ({"neuron": 0.5}, ConfigError, "neuron=0.5"),
        ({"seed": "a"}, ConfigError, "seed='a'"),
        ({"embed_dims": 64}, ConfigError, "'embed_dims'.*embed_dim"),
        ({"pools": (True,) * 4, "input_shape": (3, 8, 8)}, ModelError, "8 x 8 is too small for 4"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message) as caught:
        create_model("spikformer_nano", **options)
    assert "\n" not in str(caught.value)


def test_unknown_model_lists_the_nearest():
    with pytest.raises(ModelError, match=r"'spikformer_nan'.*spikformer_nano"):
        create_model("spikformer_nan")
    with pytest.raises(ModelError, match="unknown model"):
        model_entry("")


def test_registry_lists_and_describes():
    assert list_models("*imagenet") == sorted(n for n in list_models() if "imagenet" in n)
    assert len(list_models("spikformer*imagenet")) == 5
    entry = model_entry("spikformer_4_384")
    accuracies = {(p.dataset, p.T): p.accuracy for p in entry.published if p.table == "Table 5"}
    assert accuracies["CIFAR-10", 4] == 95.19
    assert accuracies["CIFAR-100", 6] == 78.61
    assert "95.19" in str(entry)
    assert entry.to_dict()["config"]["neuron"]["beta"] == 0.5


@pytest.mark.shared
def test_published_results_are_those_of_the_literature_table(shared):
    import csv

    rows = {
        (r["dataset"], r["T"], r["accuracy"] and float(r["accuracy"]))
        for r in csv.DictReader((shared / "literature.csv").open())
        if r["model"].startswith("Spikformer")
    }
    for name in list_models("spikformer*"):
        for p in model_entry(name).published:
            assert (p.dataset, str(p.T), p.accuracy or "") in rows, (name, p)


def test_family_must_be_known_to_register():
    with pytest.raises(ConfigError, match="family 'nothing'"):

        @register_model
        def lost() -> ModelEntry:
            return ModelEntry("lost", "nothing", "", None, "")


def test_calibration_is_the_mean_over_batches():
    model = create_model("spikformer_nano", input_shape=(1, 8, 8)).double()
    batches = [gaussian(8, 1, 8, 8, seed=s, dtype=torch.float64) for s in range(3)]
    weights = copy.deepcopy(dict(model.named_parameters()))
    calibrate_batchnorm(model, batches, 2)
    first = model.patch_embed.proj_bn
    currents = [model.patch_embed.proj_conv(b).detach() for b in batches]
    mean = torch.stack([c.mean((0, 2, 3)) for c in currents]).mean(0)
    variance = torch.stack([c.repeat(2, 1, 1, 1).var((0, 2, 3)) for c in currents]).mean(0)
    torch.testing.assert_close(first.running_mean, mean)
    torch.testing.assert_close(first.running_var, variance)
    assert first.num_batches_tracked == 3
    assert first.momentum == 0.1
    assert not model.training
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    again = copy.deepcopy(first.running_var)
    calibrate_batchnorm(model, iter(batches), 2)
    assert torch.equal(first.running_var, again)


@pytest.mark.parametrize("batches", [[], [torch.full((4, 1, 8, 8), float("nan"))]])
def test_failed_calibration_leaves_the_network_as_it_was(batches):
    model = alive()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError):
        calibrate_batchnorm(model, batches, 2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.patch_embed.proj_bn.momentum == 0.1
    assert not model.training
