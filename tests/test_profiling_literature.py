"""Published operation counts and energies against the registered architectures."""

import json

import pytest
import torch

from spikedim.cli import main
from spikedim.models import calibrate_batchnorm, create_model, list_models, model_entry
from spikedim.profiling import literature, profile
from spikedim.profiling.literature import explain_literature, published_energies, vit_macs
from spikedim.profiling.shapes import shapes

PUBLISHED = [name for name in list_models() if model_entry(name).gmac_per_step is not None]
QUICK = {
    "qkformer_4_384",
    "spike_driven_2_256_cifar10dvs",
    "spikegpt_tiny",
    "spikformer_8_512_imagenet",
    "spikingbert_4_general",
    "spikingresformer_ti_imagenet",
}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PUBLISHED],
)
def test_dense_operations_per_step_are_those_published(name):
    """Counted as run, the head at every step or (Spikformer's table) once in four."""
    entry = model_entry(name)
    model = name
    if getattr(entry.config, "num_classes", 0) is None:
        with torch.device("meta"):
            model = create_model(name, seed=None, num_classes=2)
    found = shapes(model)
    total = found.macs(product=False)
    head = sum(o.dense for o in found.operations if o.layer.startswith(("head", "classif")))
    counted = {(total - share * head) / 1e9 for share in (0, 0.75, 1)}
    places = 3 if entry.gmac_per_step >= 0.1 else 4
    if entry.gmac_per_step < 1e-3:
        nearest = min(counted, key=lambda c: abs(c - entry.gmac_per_step))
        assert nearest == pytest.approx(entry.gmac_per_step, rel=5e-3)
    elif len(str(entry.gmac_per_step).partition(".")[2]) <= 3 and places == 4:
        assert any(abs(c - entry.gmac_per_step) <= 5.001e-4 for c in counted)
    else:
        half = 0.5 * 10.0**-places
        assert any(abs(c - entry.gmac_per_step) <= half * 1.0002 for c in counted)


def test_shapes_are_those_of_a_real_run():
    model = create_model("spikingresformer_nano", seed=0)
    x = torch.rand(2, *model.input_shape)
    calibrate_batchnorm(model, [x], 3)
    found = profile(model, x, 3)
    counted = shapes(model)
    assert [(o.layer, o.operation) for o in counted.operations] == [
        (o.layer, o.operation) for o in found.operations
    ]
    for own, ran in zip(counted.operations, found.operations, strict=True):
        assert (own.dense, own.inside) == (ran.dense / ran.copies, ran.inside / ran.copies)
        assert (own.weights, own.stem) == (ran.weights, ran.before_neurons)
        assert own.product == (ran.coincident is not None)
    assert counted.neurons == sum(layer.neurons for layer in found.layers)
    assert next(model.parameters()).device.type == "cpu"


def test_every_row_has_a_rule_and_a_source():
    rows = published_energies()
    assert len(rows) > 40
    for row in rows:
        assert row.rule in literature._RULES
        assert row.url.startswith("https://")
        assert row.source
        assert row.place
        assert float(row.energy_mJ) > 0
        assert row.model in ("", "vit_b_16") or model_entry(row.model)


def test_rows_agree_with_the_registry():
    """A number that the registry holds too is the same there."""
    held = {
        (name, p.T, p.sops_G, p.energy_mJ)
        for name in list_models()
        for p in model_entry(name).published
        if p.energy_mJ is not None and p.sops_G is not None
    }
    listed = {
        (row.model, row.T, float(row.sops_G), float(row.energy_mJ))
        for row in published_energies()
        if row.rule in ("first-layer", "no-first-layer")
    }
    assert held == listed


def test_rows_agree_with_the_shared_table(shared):
    text = (shared / "literature.csv").read_text()
    for row in published_energies():
        if row.rule != "stem-repeats":
            assert str(float(row.energy_mJ)) in text, row
        assert not row.sops_G or str(float(row.sops_G)) in text


def explained(monkeypatch, keep):
    monkeypatch.setattr(literature, "published_energies", lambda: tuple(filter(keep, ROWS)))
    monkeypatch.setattr(literature, "_read", lambda name: [])
    return {r.published.network: r for r in explain_literature().rows}


ROWS = published_energies()


def test_spikformers_digits_and_the_constant_of_its_first_layer(monkeypatch):
    few = ("Spikformer-8-384", "Spikformer-8-512")
    found = explained(
        monkeypatch,
        lambda row: row.rule == "77-fJ" or (row.rule == "first-layer" and row.network in few),
    )
    assert len(found) == 7
    for row in found.values():
        printed = row.published.energy_mJ
        assert literature._like(row.recomputed, printed) == printed
    flagged = {name for name, row in found.items() if row.verdict == "flag"}
    assert {n for n in flagged if "preprint" not in n} == {"Spikformer-8-384"}
    assert {row.verdict for row in found.values()} == {"flag", "closes"}
    assert "1.596" in found["Spikformer-8-384"].calculation
    assert "= 7.335 for this one" in found["Spikformer-8-384"].calculation


def test_vision_transformers_energy_is_its_operation_count(monkeypatch):
    assert vit_macs(224) == 17_563_828_224
    found = explained(monkeypatch, lambda row: row.rule == "ann" and row.size == 224)
    vit = found["ViT-B/16"]
    assert vit.verdict == "flag"
    assert vit.recomputed == pytest.approx(80.96)
    assert "1.00 pJ per MAC" in vit.calculation
    assert found["DeiT-B"].verdict == found["ANN Transformer-8-512"].verdict == "closes"


@pytest.mark.slow
def test_the_whole_literature():
    found = explain_literature()
    verdicts = {}
    for row in found.rows:
        verdicts.setdefault(row.published.rule, set()).add(row.verdict)
    assert verdicts["first-and-head"] == verdicts["no-first-layer"] == {"closes"}
    assert verdicts["stem-repeats"] == {"closes"}
    assert verdicts["integer-mac"] == verdicts["rate"] == {"open"}
    assert "fails" not in set().union(*verdicts.values())
    table = [row for row in found.rows if row.published.rule == "first-layer"]
    assert [row.verdict for row in table] == ["flag", "closes", "closes", "closes", "flag"]
    for row in table:
        assert literature._like(row.recomputed, row.published.energy_mJ) == row.published.energy_mJ
    assert "= 22.274 for this one" in table[-1].calculation
    rows = [row for row in found.rows if row.published.rule == "first-and-head"]
    logs = [row for row in rows if row.published.macs_G]
    assert {literature._like(r.recomputed, r.published.energy_mJ) for r in logs} == {
        "7.4635",
        "13.6589",
    }
    assert any("mean rate of 0.470" in text for text in found.remainders)
    assert all(rate.dense_G > 0 for rate in found.rates)


def test_command_line(monkeypatch, capsys):
    keep = tuple(row for row in ROWS if row.rule == "77-fJ" or row.network == "ViT-B/16")
    monkeypatch.setattr(literature, "published_energies", lambda: keep)
    monkeypatch.setattr(literature, "_read", lambda name: [])
    with pytest.raises(SystemExit) as end:
        main(["profile", "--explain-literature", "--quiet"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "Flagged" in text
    assert "77 fJ per SOP" in " ".join(text.split())
    with pytest.raises(SystemExit):
        main(["profile", "--explain-literature", "--quiet", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert {row["verdict"] for row in data["rows"]} == {"flag", "closes"}
