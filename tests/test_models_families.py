"""What every family keeps: one test per promise, over the smallest registered network of each."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from spikedim.errors import CheckpointError, ConfigError, ModelError
from spikedim.models import (
    attention_maps,
    calibrate_batchnorm,
    create_model,
    diagram,
    list_models,
    load_checkpoint,
    load_model,
    model_entry,
    save_checkpoint,
)
from spikedim.neurons import LIF, record, streaming
from spikedim.profiling import profile

VISION = [n for n in list_models("*_nano") if len(model_entry(n).config.input_shape) == 3]
TEXT = [n for n in list_models("*_nano") if n not in VISION]
IMAGENET = list_models("*_imagenet")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def sample(model, batch=3, seed=0, dtype=torch.float32):
    """Standardised frames, or tokens of the network's vocabulary."""
    if len(model.input_shape) == 1:
        vocabulary = getattr(model.config, "vocabulary", model.num_classes)
        return torch.randint(vocabulary, (batch, *model.input_shape), generator=generator(seed))
    return torch.randn(batch, *model.input_shape, generator=generator(seed), dtype=dtype)


_BUILT = {}


def alive(name, dtype=torch.float64, **options):
    """A network that fires; a copy of one built before."""
    key = (name, dtype, tuple(sorted(options.items())))
    if key not in _BUILT:
        shape = {"input_shape": (1, 8, 8)} if name in VISION else {}
        model = create_model(name, **shape, **options).to(dtype)
        if name in VISION:
            calibrate_batchnorm(model, [sample(model, 16, 1, dtype)], 4)
        _BUILT[key] = model.eval()
    return copy.deepcopy(_BUILT[key])


def timesteps(model):
    """T to ask for: 3 where the network repeats its input, its own where tokens are the time."""
    return None if model.family == "spikegpt" else 3


@pytest.mark.parametrize("name", list_models())
def test_parameters_are_counted_exactly(name):
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name, seed=None)
    if entry.parameters is not None:
        assert sum(p.numel() for p in model.parameters()) == entry.parameters
    if entry.gmac_per_step is not None and len(model.input_shape) == 3:
        macs = model.macs_per_step()
        published = (macs.dense + macs.head / 4, macs.dense + macs.head)
        rounding = 5.001e-4 if entry.gmac_per_step >= 0.1 else 0.05 * entry.gmac_per_step
        assert min(abs(entry.gmac_per_step - v / 1e9) for v in published) <= rounding


@pytest.mark.parametrize("name", VISION + TEXT)
def test_the_diagram_shows_every_parameter_once(name):
    shown = diagram(name, depth=1)
    entry = model_entry(name)
    with torch.device("meta"):
        model = create_model(name, seed=None)
    total = sum(s.parameters * s.repeats for s in shown.stages)
    hidden = sum(p.numel() for p in model.parameters()) - total
    unused = getattr(model, "unused_parameters", lambda: 0)()
    assert 0 <= hidden <= unused
    assert entry.unused_parameters in (0, unused)
    assert str(shown)


@settings(max_examples=6, deadline=None)
@given(batch=st.integers(2, 4), seed=st.integers(0, 1000))
@pytest.mark.parametrize("name", VISION + TEXT)
def test_a_sample_does_not_depend_on_its_batch_mates(name, batch, seed):
    model = alive(name)
    x = sample(model, batch, seed, torch.float64)
    together = model(x, timesteps(model))
    alone = torch.cat([model(x[i : i + 1], timesteps(model)) for i in range(batch)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", VISION + TEXT)
def test_no_state_is_left_and_every_layer_can_fire(name):
    model = alive(name)
    x = sample(model, dtype=torch.float64)
    with record(model, ("spikes", "potential")) as recording:
        first = model(x, timesteps(model))
    assert torch.equal(first, model(x, timesteps(model)))
    assert torch.isfinite(first).all()
    layers = {n for n, m in model.named_modules() if isinstance(m, LIF)}
    assert {key.split("#")[0] for key in recording} == layers
    assert all(((t.spikes == 0) | (t.spikes == 1)).all() for t in recording.values())
    assert sum(t.spikes.sum() for t in recording.values()) > 0


@pytest.mark.parametrize("name", VISION)
def test_time_is_causal_and_static_input_is_repeated_frames(name):
    model = alive(name)
    x = sample(model, dtype=torch.float64)
    long = model.steps(x, 5)
    assert long.shape == (5, 3, model.num_classes)
    torch.testing.assert_close(model.steps(x, 2), long[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x, 5), long.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.steps(x.expand(5, *x.shape)), long, rtol=0, atol=1e-12)
    events = torch.stack([x, x.flip(0), -x])
    with streaming(model):
        pieces = torch.cat([model.steps(events[:1]), model.steps(events[1:])])
    torch.testing.assert_close(pieces, model.steps(events), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", VISION + TEXT)
def test_function_transforms_give_per_sample_gradients(name):
    model = alive(name)
    x, T = sample(model, dtype=torch.float64), timesteps(model)
    weights = {k: v.detach() for k, v in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights, one):
        out = functional_call(model, (weights, buffers), (one[None], T))
        return out.flatten(1)[0].square().sum()

    per_sample = vmap(grad(loss), (None, 0))(weights, x)
    loss(dict(model.named_parameters()), x[1]).backward()
    for key, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(per_sample[key][1], expected, rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.parametrize(
    "name",
    [
        n if n == "spikformer_nano" else pytest.param(n, marks=pytest.mark.slow)
        for n in VISION + TEXT
    ],
)
def test_the_network_compiles_without_a_graph_break(name):
    model = alive(name, torch.float32)
    x, T = sample(model), timesteps(model)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(x, T)
        torch.testing.assert_close(compiled, model(x, T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VISION + TEXT)
def test_the_continuous_twin_shares_parameters_and_is_smooth(name):
    model = alive(name)
    twin, x = model.continuous(), sample(model, 2, dtype=torch.float64)
    assert all(p is q for p, q in zip(twin.parameters(), model.parameters(), strict=True))
    out = twin(x)
    assert out.shape == model(x, timesteps(model)).shape
    parameter = next(p for n, p in twin.named_parameters() if n.startswith(("head", "class")))
    layer = next(m for m in twin.modules() if isinstance(m, LIF))
    with record(twin) as recording:
        twin(x)
    values = torch.cat([t.spikes.flatten() for t in recording.values()])
    assert ((values > 0) & (values < 1)).any()
    assert layer.activation is not None
    out.square().sum().backward()
    assert parameter.grad.abs().sum() > 0
    before = model(x, timesteps(model))
    assert torch.equal(before, alive(name)(x, timesteps(model)))


@pytest.mark.parametrize("name", VISION + TEXT)
def test_checkpoints_come_back_and_foreign_ones_are_refused(name, tmp_path):
    model = alive(name)
    path = save_checkpoint(model, tmp_path / "net.safetensors")
    again = load_model(path)
    x, T = sample(model, dtype=torch.float64), timesteps(model)
    assert torch.equal(again(x, T), model(x, T))
    wrapped = {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    torch.save(wrapped, tmp_path / "net.pth")
    other = alive(name)
    load_checkpoint(other, tmp_path / "net.pth")
    assert torch.equal(other(x, T), model(x, T))
    state = dict(model.state_dict())
    state.pop(next(iter(state)))
    state["stray.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"1 missing .* 1 unknown .*stray\.weight"):
        load_checkpoint(other, tmp_path / "bad.pth")


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize(
    ("shape", "T", "error", "message"),
    [
        ((2, 1, 8, 8), 0, ConfigError, "T=0"),
        ((2, 3, 8, 8), 2, ModelError, "3 x 8 x 8, this network takes 1 x 8 x 8"),
        ((2, 1, 8, 9), 2, ModelError, "1 x 8 x 9"),
        ((2, 64), 2, ModelError, r"shape \(2, 64\)"),
        ((4, 2, 1, 8, 8), 3, ModelError, "T=3, but the event input has 4"),
    ],
)
def test_wrong_inputs_are_named(name, shape, T, error, message):
    with pytest.raises(error, match=message) as caught:
        alive(name)(torch.zeros(shape, dtype=torch.float64), T)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 28, 28), (3, 17, 17)])
def test_odd_images_train_or_are_refused(name, shape):
    if name.startswith("spikingresformer") and shape[1] % 2:
        with pytest.raises(ModelError, match=rf"{shape[1]} x {shape[2]}.*not divisible"):
            create_model(name, input_shape=shape)
        return
    model = create_model(name, input_shape=shape)
    x = torch.randn(2, *shape, generator=generator(0))
    loss = F.cross_entropy(model(x, 2), torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", VISION)
def test_every_operation_is_counted(name):
    model = alive(name, torch.float32)
    result = profile(model, sample(model, 2), 2)
    macs = model.macs_per_step()
    assert not result.unsupported
    outer = [o for o in result.operations if o.layer.split(".")[0] not in ("head", "classifier")]
    products = ("matmul", "mul")
    weighted = sum(o.dense / o.copies for o in outer if not o.operation.startswith(products))
    assert weighted == macs.dense


@pytest.mark.parametrize("name", [n for n in VISION + TEXT if n != "spikegpt_nano"])
def test_attention_maps_are_reachable_by_name(name):
    model = alive(name)
    x = sample(model, 2, dtype=torch.float64)
    before = model(x, 3)
    maps = attention_maps(model, x, 3)
    modules = dict(model.named_modules())
    assert set(maps) <= set(modules)
    for key, value in maps.items():
        assert value.shape[:2] == (3, 2)
        if isinstance(modules[key], LIF):
            assert ((value == 0) | (value == 1)).all()
        elif isinstance(modules[key], torch.nn.Softmax):
            torch.testing.assert_close(value.sum(-1), torch.ones_like(value[..., 0]))
        else:
            q_times_k = value / modules[key].scale
            assert torch.equal(q_times_k, q_times_k.round())
            assert value.shape[-1] == value.shape[-2]
    assert torch.equal(model(x, 3), before)


def test_a_network_without_attention_says_so():
    model = alive("spikegpt_nano")
    with pytest.raises(ModelError, match="no attention maps"):
        attention_maps(model, sample(model))


EPOCHS = {
    "spikformer_nano": 16,
    "qkformer_nano": 16,
    "spike_driven_nano": 8,
    "spike_driven_v2_nano": 10,
    "spikingresformer_nano": 6,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_digits_are_learned(name, tmp_path):
    from spikedim.data import load_dataset
    from spikedim.training import TrainConfig, fit

    digits = load_dataset("digits")
    model = create_model(name, input_shape=digits.input_shape)
    fit(model, digits, TrainConfig(epochs=EPOCHS[name]), 4, tmp_path)
    x, y = digits.tensors("test")
    with torch.no_grad():
        assert (model(x, 4).argmax(1) == y).double().mean() >= 0.9
