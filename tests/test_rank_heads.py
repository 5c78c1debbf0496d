"""Head-channel ambiguity: its size, its basis, and what moving along it does."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_networks import FAMILIES, inputs
from spikedim.errors import ConfigError, DataError
from spikedim.models import VisionTransformer, ViTConfig, calibrate_batchnorm, create_model
from spikedim.models.vit import SelfAttention
from spikedim.rank import (
    AmbiguityBasis,
    ambiguity_dimension,
    contributions,
    head_report,
    matrix_rank,
    norm_report,
    residual_report,
    spike_patterns,
)


def gaussian(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def alive(name, **more):
    """A firing float64 network, an input and its timesteps."""
    net = create_model(name, **(FAMILIES[name] | more)).double()
    if len(net.input_shape) == 1:
        return net.eval(), inputs(net, 3), None
    net.set_neurons(threshold=0.3)  # few small images: let every layer fire
    x = inputs(net, 8)
    calibrate_batchnorm(net, [x], 3)
    return net, x[:3], 3


def test_published_counts():
    assert ambiguity_dimension(512, 12, 64) == 360_448
    assert ambiguity_dimension(1, 12, 64) == 704
    assert ambiguity_dimension(7, 1, 64) == 0
    with pytest.raises(ConfigError, match="heads=0"):
        ambiguity_dimension(7, 0, 64)


@settings(max_examples=20)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 9)
)
def test_the_basis_spans_the_moves_that_leave_the_sum(n, heads, d_k, more, seed):
    d = d_k * heads + more
    weight = gaussian(d_k, d, seed=seed)
    basis = AmbiguityBasis.of(n, heads, weight)
    assert basis.dimension == ambiguity_dimension(n, heads, d_k)
    vectors = [
        basis.vector(i, a, k).flatten()
        for i in range(n)
        for a in range(heads - 1)
        for k in range(d_k)
    ]
    if vectors:
        gram = torch.stack(vectors) @ torch.stack(vectors).T
        torch.testing.assert_close(gram, torch.eye(len(vectors), dtype=torch.float64))
    # Nothing is missing: of all contributions in the channel, n H d_k numbers, the sum sees n d_k.
    everything = torch.eye(n * heads * d_k, dtype=torch.float64).view(-1, heads, n, d_k)
    seen = (everything @ basis.channel.T).sum(1).flatten(1)
    assert n * heads * d_k - matrix_rank(seen) == basis.dimension
    coordinates = gaussian(*basis.shape, seed=seed + 1)
    move = basis.move(coordinates)
    assert move.sum(0).abs().max() < 1e-12 * (1 + move.abs().max())
    torch.testing.assert_close(basis.coordinates(move), coordinates)
    # the channel is where the head writes
    assert matrix_rank(torch.cat([weight, basis.channel.T])) == matrix_rank(weight) == d_k


def test_bert_base_moves_without_a_trace():
    """The published size: contributions of 12 heads to 512 tokens move as far as they are long."""
    n, heads, d_k, d = 512, 12, 64, 768
    y, w = gaussian(n, d), gaussian(d, d, seed=1) / d**0.5
    parts = torch.stack(
        [y[:, h * d_k : (h + 1) * d_k] @ w[h * d_k : (h + 1) * d_k] for h in range(heads)]
    )
    basis = AmbiguityBasis.of(n, heads, w[:d_k])
    assert basis.dimension == 360_448
    move = basis.move(gaussian(*basis.shape, seed=2))
    move *= parts.norm() / move.norm()
    output = parts.sum(0)
    assert ((parts + move).sum(0) - output).abs().max() < 1e-12 * output.abs().max()
    assert (parts + move - parts)[3].norm() > 0.1 * parts[3].norm()
    # With the weights known the heads are not hidden at all: O determines them.
    torch.testing.assert_close(output @ torch.linalg.inv(w), y)


def test_reading_one_head_leaves_as_many_directions():
    """The other reading of the count: O seen through one head's weights, n d_k of n H d_k."""
    heads, d_k, d = 3, 4, 15
    w = gaussian(heads * d_k, d)
    read = w @ torch.linalg.pinv(w[:d_k])  # Y -> Y W_O W_1^+
    assert heads * d_k - matrix_rank(read) == (heads - 1) * d_k
    torch.testing.assert_close(read[:d_k], torch.eye(d_k, dtype=torch.float64))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_moves_without_a_trace(name):
    net, x, T = alive(name)
    report = head_report(net, x, T)
    for row in report.layers:
        assert row.per_step == row.tokens * (row.heads - 1) * row.head_width
        assert row.total == row.steps * row.per_step
        assert row.output_change < 1e-12
        assert row.logit_change < 1e-9
        assert row.control_change > 1e-3  # one head alone by as much is seen
        if row.weight_rank is not None:
            assert row.realisable == row.tokens * (row.heads * row.head_width - row.weight_rank)
    assert "n·(H−1)·d_k per step" in report.tables()[0].columns


@pytest.mark.parametrize(
    "name", ["spikformer_nano", "spikingresformer_nano", "spike_driven_v2_nano"]
)
def test_contributions_add_up_to_the_output(name):
    net, x, T = alive(name)
    seen = []
    site = next(m for m in net.modules() if hasattr(m, "output_projection") and m.heads > 1)
    layer = getattr(site, site.output_projection)
    layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        net.steps(x, T)
    inputs, output = seen[0]
    parts, rest = contributions(layer, inputs, site.heads)
    torch.testing.assert_close(parts.sum(0) + rest, output)
    assert len(parts) == site.heads


def test_networks_without_a_known_projection_are_said_to_have_none():
    report = head_report(VisionTransformer().double(), gaussian(2, 1, 8, 8))
    assert report.layers == ()
    assert "No attention with a known output projection" in report.tables()[0].notes[0]


# -- what is invariant for real-valued heads and for spikes -------------------------------------


def test_continuous_heads_can_be_mixed_inside_a_head():
    """V_h A, A⁻¹ W_h: d_k² further directions per head that no output shows."""
    layer = SelfAttention(ViTConfig(embed_dim=12, num_heads=3)).double()
    x = gaussian(2, 5, 12)
    before = layer(x)
    for h in range(3):
        rows, a = slice(4 * h, 4 * h + 4), gaussian(4, 4, seed=h)
        with torch.no_grad():
            layer.v.weight[rows] = a.T @ layer.v.weight[rows]
            layer.v.bias[rows] = a.T @ layer.v.bias[rows]
            layer.proj.weight[:, rows] = layer.proj.weight[:, rows] @ torch.linalg.inv(a).T
    torch.testing.assert_close(layer(x), before)


def test_spiking_heads_can_be_permuted_but_not_mixed():
    net, x, T = alive("spikformer_nano")
    before = net.steps(x, T).detach()

    def changed(a):
        other = copy.deepcopy(net)
        attn, rows = other.block[0].attn, slice(0, 16)
        with torch.no_grad():
            for name in ("weight", "bias"):
                value = getattr(attn.v_linear, name)
                value[rows] = a.T @ value[rows]
            norm = attn.v_bn  # carried along exactly where A permutes
            for value in (norm.weight, norm.bias, norm.running_mean):
                value[rows] = a.T @ value[rows]
            norm.running_var[rows] = (a.T) ** 2 @ norm.running_var[rows]
            proj = attn.proj_linear.weight
            proj[:, rows] = proj[:, rows] @ torch.linalg.inv(a).T
        return other.steps(x, T).detach()

    permutation = torch.eye(16, dtype=torch.float64)[
        torch.randperm(16, generator=torch.Generator().manual_seed(1))
    ]
    torch.testing.assert_close(changed(permutation), before)
    rotation = torch.linalg.qr(gaussian(16, 16))[0]
    assert (changed(rotation) - before).abs().max() > 1e-3 * before.abs().max()


def test_spikes_are_told_apart_where_real_values_are_not():
    """Twelve heads' channels projected to two numbers: rank 2, yet one 0/1 pattern per output."""
    weights = gaussian(12, 2)
    assert 12 - matrix_rank(weights) == 10  # directions in which real-valued heads are hidden
    pattern = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1], dtype=torch.float64)
    assert spike_patterns(weights, pattern @ weights) == [tuple(map(int, pattern))]
    # Not generic: two equal rows hide which of them fired.
    weights[1] = weights[0]
    assert len(spike_patterns(weights, pattern @ weights)) == 2
    with pytest.raises(DataError, match="up to 20"):
        spike_patterns(gaussian(21, 2), [0.0, 0.0])


# -- norms and residuals of networks ------------------------------------------------------------


def test_layer_norms_of_a_text_network_and_idle_ones():
    net, x, T = alive("spikingbert_small")
    report = norm_report(net, x, T)
    assert {row.layer for row in report.layers} >= {"network_x.LayerNorm", "network_s4.LayerNorm"}
    for row in report.layers:
        assert row.neutral == 1.0 or row.failed
    vision, images, T = alive("spikformer_nano")
    idle = norm_report(vision, images, T)
    assert idle.layers == ()
    assert idle.idle == ("block.0.norm1", "block.0.norm2")
    plain = VisionTransformer(ViTConfig(norm="layer")).double()
    checked = norm_report(plain, gaussian(4, 1, 8, 8))
    assert checked.layers[0].neutral == 1.0  # 16 tokens of 32 channels: generic


def test_layer_norm_of_a_network_with_a_dead_gain_is_named():
    plain = VisionTransformer(ViTConfig(norm="layer", embed_dim=16)).double()
    with torch.no_grad():
        plain.norm.weight[3] = 0.0
    rows = {row.layer: row for row in norm_report(plain, gaussian(2, 1, 8, 8)).layers}
    assert rows["norm"].failed["gamma_j = 0"] == 2
    assert "gamma_j = 0" not in rows["blocks.0.norm1"].failed


@pytest.mark.parametrize("name", FAMILIES)
def test_residual_updates_of_every_family(name):
    net, x, T = alive(name)
    report = residual_report(net, x, T)
    matrices = len(x) * (T or (1 if "gpt" in name else net.default_timesteps))
    for row in report.layers:
        assert sum(row.verdicts.values()) == matrices
        largest = min(row.tokens, row.channels)
        assert 0 <= row.before.value <= largest
        assert 0 <= row.after.value <= largest


def test_the_residual_is_the_one_of_the_block():
    net, x, T = alive("spike_driven_nano")
    seen = {}
    net.block[0].register_forward_pre_hook(lambda _, i: seen.update(x=i[0]))
    net.block[0].mlp.register_forward_pre_hook(lambda _, i: seen.update(y=i[0]))
    with torch.no_grad():
        net.steps(x, T)
    row = residual_report(net, x, T).layers[0]
    for key, mean in (("x", row.before), ("y", row.after)):
        ranks = [matrix_rank(m) for m in seen[key].flatten(2, 3).flatten(0, 1)]
        assert mean.value == pytest.approx(sum(ranks) / len(ranks))


def test_silent_attention_leaves_the_rank():
    """Where spikes are added, the generic statement fails on an open set of weights: silence."""
    net, x, T = alive("spikformer_nano")
    net.block[0].attn.proj_bn.bias.data.fill_(-100.0)
    assert residual_report(net, x, T).layers[0].verdicts == {"update is zero": 9}
