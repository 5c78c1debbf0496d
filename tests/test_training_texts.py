"""Training on texts: their words as numbers, padding that is not attended to, sweeps over T."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikedim.cli import main
from spikedim.data import Dataset, Split, load_dataset, represent
from spikedim.data.vocabulary import Vocabulary, tokens_of
from spikedim.design import design
from spikedim.design.planner import neuron_grid
from spikedim.dimension import measure
from spikedim.errors import ConfigError, DataError, ModelError
from spikedim.models import create_model, load_checkpoint
from spikedim.neurons import record
from spikedim.ntk import invert
from spikedim.profiling import profile
from spikedim.storage import Run
from spikedim.training import (
    Cell,
    Study,
    TrainConfig,
    default_config,
    evaluate,
    fit,
    read_study,
    run_study,
    samples,
    sweep_neurons,
    sweep_timesteps,
)
from spikedim.training.network import network_for, read_like

GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "dull"]
FILLER = ["the", "film", ",", "its", "plot", "and", "that", "scene", "were", "quite", "long", "."]


def reviews(train: int = 120, test: int = 60) -> Dataset:
    """Sentences with one word that tells the class, somewhere between others."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        texts = []
        for k in range(n):
            words = list(rng.choice(FILLER, rng.integers(3, 9)))
            words.insert(int(rng.integers(0, len(words))), str(rng.choice((BAD, GOOD)[k % 2])))
            texts.append(" ".join(words))
        return Split(texts, np.arange(n) % 2)

    return Dataset("reviews", "text", split(train), split(test), ("bad", "good"), "made in a test")


def run(*words):
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return done.value.code


def test_words_become_numbers_by_falling_frequency():
    texts = ["A b, a c.", "a b b!"]
    words = Vocabulary.of(texts, size=6, length=4, least=1)
    assert words.words == ("a", "b", "!", ",")  # three, three, one each
    assert (words.size, words.length) == (6, 4)
    assert words.ids(["A b , zebra a", "", "b"]).tolist() == [[2, 3, 5, 1], [0] * 4, [3, 0, 0, 0]]
    assert words.losses(["a b , zebra a", "b"]) == (0.5, 0.2)
    assert Vocabulary.from_json(words.to_json()) == words
    assert Vocabulary.of(texts).words == ("a", "b")  # the others occur once: they are unknown


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8), st.integers(3, 20))
def test_every_text_has_numbers_of_the_vocabulary(texts, size):
    words = Vocabulary.of(texts, size, 5, least=1)
    ids = words.ids(texts)
    assert ids.shape == (len(texts), words.length)
    assert words.size <= size
    assert ids.min() >= 0
    assert ids.max() < words.size
    for row, text in zip(ids, texts, strict=True):
        assert (row > 0).sum() == min(len(tokens_of(text)), words.length)


def test_a_part_of_the_texts_is_read_with_the_words_of_the_whole():
    data = reviews()
    part = data.limited(10, 20)
    assert part.vocabulary == data.vocabulary
    assert (
        part.fingerprint != Dataset("x", "text", part.train, part.test, ("a", "b"), "").fingerprint
    )
    whole = Dataset("x", "text", data.train, None, ("a", "b"), "")
    cut = whole.with_test(0.5)
    assert cut.vocabulary == Vocabulary.of(cut.train.inputs)
    assert whole.limited(None, None).fingerprint == whole.fingerprint
    x, y = samples(data, "test", 4)
    assert x.dtype == torch.int64
    assert np.array_equal(x.numpy(), data.vocabulary.ids(data.test.inputs))
    assert y.tolist() == data.test.labels.tolist()
    few, _ = samples(data, "train", 4, limit=7)
    assert len(few) == 7
    with pytest.raises(DataError, match="holds image; this needs texts"):
        _ = load_dataset("digits").vocabulary


def test_padding_is_masked_without_being_asked():
    model = create_model(
        "spikingbert_nano", vocabulary=30, positions=12, padding=0, num_classes=2, seed=0
    ).eval()
    x = torch.randint(1, 30, (5, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, torch.zeros(5, 5, dtype=torch.int64)], 1)
    mask = (padded > 0).long()
    with torch.no_grad():
        expected = model.steps(padded, 6, mask=mask)
        assert torch.equal(model.steps(padded, 6), expected)
        assert torch.allclose(model.steps(x, 6), expected, atol=1e-6)
        assert torch.equal(model(padded, 6), model(padded, 6, mask=mask))
        unmasked = model.steps(padded, 6, mask=torch.ones_like(mask))
    assert not torch.allclose(unmasked, expected, atol=1e-3)


def test_padding_fires_nowhere_and_costs_no_spikes():
    options = {"vocabulary": 30, "positions": 12, "num_classes": 2, "seed": 0}
    model = create_model("spikingbert_nano", padding=0, **options).eval()
    x = torch.randint(1, 30, (6, 7), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, torch.zeros(6, 5, dtype=torch.int64)], 1)
    with record(model) as seen, torch.no_grad():
        model.steps(padded, 8)
    assert all(float(spikes[:, :, 7:].sum()) == 0 for spikes in seen.spikes.values())
    alone = evaluate(model, x, torch.zeros(6).long(), 8).spikes_per_sample[-1].value
    long = evaluate(model, padded, torch.zeros(6).long(), 8).spikes_per_sample[-1].value
    assert long == alone > 0
    loud = create_model("spikingbert_nano", **options).eval()
    assert (
        evaluate(loud, padded, torch.zeros(6).long(), 8).spikes_per_sample[-1].value > 1.2 * alone
    )


@pytest.mark.parametrize("padding", [-1, 30, "a", True, 1.5])
def test_a_padding_that_is_no_token_id_is_refused(padding):
    with pytest.raises(ConfigError, match="expected a token id below vocabulary=30, or None"):
        create_model("spikingbert_nano", vocabulary=30, padding=padding)


def test_neurons_that_the_network_cannot_have_are_refused_before_training(tmp_path, monkeypatch):
    from spikedim.training import study_trial

    monkeypatch.setattr(study_trial, "run_trial", lambda *a, **k: pytest.fail("trained"))
    cell = Cell(reviews(20, 10), "spikingbert_nano", TrainConfig(epochs=1))
    study = Study("s", (cell,), (2,), neurons=({"t_ref": 0}, {"t_ref": 1}))
    with Run(tmp_path, {}) as place, pytest.raises(ConfigError, match="no refractory period"):
        run_study(study, place)


def test_a_text_network_learns_and_is_read_out_at_every_step(tmp_path):
    data = reviews(400, 100)
    model = network_for("spikingbert_nano", data, seed=0)
    fit(model, data, TrainConfig(epochs=12, lr=1e-2), 16, tmp_path)
    x, y = samples(data, "test", 16)
    found = evaluate(model, x, y, 16)
    assert found.accuracy[-1].value > 85
    part = evaluate(model, x, y, 5)
    assert np.array_equal(found.correct(5), part.correct())
    measured = profile(model, x[:20], 5).spikes_per_sample.value
    assert measured == pytest.approx(evaluate(model, x[:20], y[:20], 5).spikes_per_sample[-1].value)


def test_a_sweep_and_a_study_of_texts(tmp_path):
    data, config = reviews(40, 20), TrainConfig(epochs=1, validation=0.2)
    with Run(tmp_path / "sweep", {}) as place:
        found = sweep_timesteps(data, "spikingbert_nano", (1, 2), config, place, mode="inference")
    assert [point.T for point in found.points] == [1, 2]
    model = network_for("spikingbert_nano", data)
    load_checkpoint(model, found.points[1].checkpoint)
    direct = evaluate(model, *samples(data, "test", 2), 2)
    for point in found.points:
        assert np.array_equal(point.correct, direct.correct(point.T))
        assert point.spikes_per_sample.value == direct.spikes_per_sample[point.T - 1].value
    study = Study("s", (Cell(data, "spikingbert_nano", config),), (2,))
    with Run(tmp_path / "study", {}) as place:
        (row,) = read_study(run_study(study, place).path)
    assert (row.encoder, row.image_size, row.classes) == ("words", 0, 2)
    assert row.d_eff_pca95 > 1


def test_networks_and_data_that_do_not_fit_are_named():
    data = reviews()
    with pytest.raises(DataError, match=r"reads images .*, or take --model spikingbert_nano"):
        network_for("spikformer_nano", data)
    with pytest.raises(DataError, match="digits holds image; spikingbert_nano reads texts"):
        network_for("spikingbert_nano", load_dataset("digits"))
    with pytest.raises(ModelError, match="timesteps of spikegpt_nano are the tokens"):
        network_for("spikegpt_nano", data)
    with pytest.raises(ConfigError, match=r"reviews holds texts, about which.*--verify"):
        design(data, "spikingbert_nano")
    assert default_config("spikingbert_nano", data).augment == "none"


def test_a_design_for_texts_is_measured_at_each_T(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = reviews()
    whole = [*data.train.inputs, *data.test.inputs]
    lines = [f"{text}\t{k % 2}" for k, text in enumerate(whole)]
    (tmp_path / "reviews.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    options = ["--data", "reviews.tsv", "--model", "spikingbert_nano", "-T", "1,2", "--epochs", "1"]
    store = ["--store", "cases.jsonl", "--train-samples", "100"]
    assert run("design", *options) == 2
    assert "--verify" in capsys.readouterr().err
    assert run("design", *options, *store, "--verify", "--target-d-eff", "2", "-o", "d") in (0, 2)
    assert "not on texts" in capsys.readouterr().err
    assert not (tmp_path / "cases.jsonl").exists()
    plan = json.loads((tmp_path / "d" / "results.json").read_text())

    texts = load_dataset("reviews.tsv").with_test()
    assert plan["data"]["input_shape"] == [texts.vocabulary.length]
    found = measure(represent(texts, "tfidf"))
    assert plan["dimension"]["d"] == found.d
    assert plan["dimension"]["estimates"]["pca95"]["value"] == found["pca95"].value
    assert plan["predictions"][0]["d_eff"]["value"] == found["pca95"].value
    assert {bound["kind"] for bound in plan["bounds"]} == {"published lower bound"}
    assert any("TF-IDF" in note for note in plan["forecast"]["notes"])
    assert plan["inversion"]["target"] == 2
    tried = {(point["parameter"], point["value"]) for point in plan["neurons"]["points"]}
    assert ("threshold", 1.5) in tried
    checkpoint = plan["sweep"]["points"][1]["checkpoint"]
    model = network_for("spikingbert_nano", read_like(texts, checkpoint))
    load_checkpoint(model, checkpoint)
    x, _ = samples(texts, "test", 2)
    spikes = plan["operating"][1]["profile"]["spikes_per_sample"]["value"]
    assert spikes == pytest.approx(profile(model, x, 2).spikes_per_sample.value)
    page = (tmp_path / "d" / "report.html").read_text()
    assert "TF-IDF weights" in page
    assert f"of which {texts.vocabulary.length} words are read" in page


def test_neurons_that_the_network_cannot_have_are_left_out(tmp_path):
    data = reviews()
    model = network_for("spikingbert_nano", data)  # an equilibrium has no refractory period
    assert neuron_grid(model) == {"threshold": (0.5, 1.5), "beta": (0.25, 0.5, 0.75)}
    free = network_for("spikingbert_nano", data, gradient="surrogate")
    assert neuron_grid(free)["refractory"] == (1,)
    with Run(tmp_path, {}) as place, pytest.raises(ConfigError, match="no refractory period"):
        sweep_neurons(
            data, "spikingbert_nano", 2, {"threshold": (0.5,), "refractory": (1,)},
            TrainConfig(epochs=1), place,
        )  # fmt: skip
    x, _ = data.network_input(2, "train", 12)
    found = invert(model, x, target_d_eff=11.9, betas=(0.5,), T=2)
    assert not found.feasible
    assert {trial.refractory for trial in found.trials} == {0}
    with pytest.raises(ConfigError, match=r"can have none.*\[1\]"):
        invert(model, x, target_d_eff=2, refractories=(1,), T=2)


def test_the_command_line_trains_on_texts_and_looks_into_what_it_trained(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = reviews(60, 1)
    lines = [f"{text}\t{y}" for text, y in zip(data.train.inputs, data.train.labels, strict=True)]
    (tmp_path / "reviews.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    others = "\n".join(f"{line.split(chr(9))[0][::-1]} bad bad\t0" for line in lines)
    (tmp_path / "others.tsv").write_text(f"sentence\tlabel\n{others}\nlast\t1\n")
    options = ["--data", "reviews.tsv", "--model", "spikingbert_nano", "--quiet", "-T", "2"]
    assert run("train", *options, "--epochs", "1", "-o", "t", "--train-samples", "20") == 0
    capsys.readouterr()
    for verb in ("profile", "measure", "ntk"):
        more = ["--checkpoint", "t/best.safetensors", "--samples", "12", "--json"]
        if verb == "measure":
            more[2:4] = ["--limit", "12"]
        assert run(verb, *options, *more) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
        assert found
        if verb != "profile":
            continue
        for file in ("reviews.tsv", "others.tsv"):
            texts = read_like(load_dataset(file), "t/best.safetensors")
            assert "good" in texts.vocabulary.words
            model = network_for("spikingbert_nano", texts)
            load_checkpoint(model, "t/best.safetensors")
            x, y = samples(texts, "train", 2, limit=12)
            direct = evaluate(model, x, y, 2)
            assert run(verb, *options, *more, "--data", file) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["accuracy"]["value"] == pytest.approx(direct.accuracy[-1].value)
            spikes = direct.spikes_per_sample[-1].value
            assert found["spikes_per_sample"]["value"] == pytest.approx(spikes)


@pytest.mark.slow
def test_real_texts_need_more_than_a_few_steps(shared, tmp_path):
    data = load_dataset("sst2", shared / "data").limited(4000, None)
    config = TrainConfig(epochs=5, lr=1e-2)
    with Run(tmp_path, {}) as place:
        found = sweep_timesteps(data, "spikingbert_nano", (2, 16), config, place, workers=2)
    few, many = (point.accuracy for point in found.points)
    assert many.low > 65
    assert many.low > few.high
    assert found.t_star.value == 16
