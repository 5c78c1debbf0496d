"""Rasters, potentials, pictures and the page of a profile."""

import base64
import re

import numpy as np
import pytest
import torch
from torch import nn

from spikedim.cli import main
from spikedim.errors import ConfigError, ModelError
from spikedim.models import calibrate_batchnorm, create_model
from spikedim.neurons import record
from spikedim.profiling import activity, figures, profile
from spikedim.profiling.tables import blocks
from spikedim.report.profile import render_profile


@pytest.fixture(scope="module")
def nano():
    model = create_model("spikformer_nano", seed=0)
    x = torch.randn(5, *model.input_shape, generator=torch.Generator().manual_seed(0))
    calibrate_batchnorm(model, [x], 4)
    return model, x, profile(model, x, 4), activity(model, x, 4, neurons=10, batch_size=2)


def test_activity_is_what_was_recorded(nano):
    model, x, _, found = nano
    with torch.no_grad(), record(model, ("spikes", "potential")) as recording:
        model.steps(x, 4)
    assert [layer.name for layer in found.layers] == list(recording)
    assert found.samples == 5
    for layer in found.layers:
        trace = recording[layer.name]
        u = trace.potential / model.get_submodule(layer.name).params.threshold
        clamped = u.flatten().clamp(-2, np.nextafter(np.float32(2), np.float32(0)))
        expected = np.histogram(clamped.numpy(), bins=80, range=(-2, 2))[0] / u.numel()
        assert np.abs(np.array(layer.histogram) - expected).max() < 2e-3  # edges round apart
        assert sum(layer.histogram) == pytest.approx(1, rel=1e-12)
        assert layer.potential[0] == pytest.approx(float(u.double().mean()), abs=1e-6)
        assert layer.potential[1] == pytest.approx(float(u.double().std(correction=0)), rel=1e-6)
        first = trace.spikes[:, 0].flatten(1)
        np.testing.assert_array_equal(layer.raster, first[:, list(layer.neurons)].numpy())
        assert 0 <= layer.at_threshold <= 1
    assert all(not m._observers for m in model.modules() if hasattr(m, "_observers"))


def test_activity_errors(nano):
    model, x, *_ = nano
    with pytest.raises(ConfigError, match="neurons=0"):
        activity(model, x, 4, neurons=0)
    with pytest.raises(ModelError, match="no spikedim"):
        activity(nn.Linear(2, 2), torch.zeros(1, 2), 4, forward=lambda m, v, T: m(v))
    with pytest.raises(ModelError, match="ran"):
        activity(model, x, 4, forward=lambda m, v, T: v)


def test_figures_hold_the_numbers(nano):
    _, _, result, found = nano
    names, grid, label = figures.heat(result)
    assert names == [layer.name for layer in result.layers]
    np.testing.assert_array_equal(grid, [layer.rate_per_step for layer in result.layers])
    assert label == "spikes per neuron"
    names, grid, label = figures.heat(result, "paper-sop")
    assert label.endswith("paper-sop")
    assert grid.sum() == pytest.approx(result.energy[0].total.value, rel=1e-12)
    sheet = figures.overview(result, found)
    assert len([ax for ax in sheet.axes if ax.get_xlabel()]) == 6
    assert len(figures.overview(result).axes) >= 4


def test_blocks():
    assert blocks([0, 0.5, 1]) == "·▄█"
    assert blocks([0, 0]) == "··"
    assert blocks([0.001], top=1) == "▁"


def test_page_holds_every_figure_and_requests_nothing(nano):
    _, _, result, found = nano
    page = render_profile(result, found, data="<digits>", network="spikformer_nano")
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(images) == 6
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "&lt;digits&gt;" in page
    for text in ("Membrane potentials", "spikes win at rates", "exact-fanout", "block.0.attn"):
        assert text in page
    assert "<figure>" in render_profile(result)


def test_command_writes_pictures_and_page(tmp_path, capsys):
    words = ["profile", "--data", "digits", "--model", "spikformer_nano", "-T", "2", "--quiet"]
    words += ["--samples", "6", "--convention", "with-memory", "--convention", "neurobench"]
    page, plot = tmp_path / "page.html", tmp_path / "plot.png"
    with pytest.raises(SystemExit) as end:
        main([*words, "--html", str(page), "--plot", str(plot)])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "with-memory" in text
    assert "per correct" not in text  # untrained
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "with-memory" in page.read_text()
