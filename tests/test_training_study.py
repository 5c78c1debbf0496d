"""Studies: one tidy table of many trainings, the same however often it was interrupted."""

import json
import math
import shutil
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import study_cases
from spikedim.cli import main
from spikedim.data import Dataset, Split, load_dataset
from spikedim.data.reduce import downsampled, first_classes, repooled
from spikedim.dimension import spectrum
from spikedim.errors import ConfigError, DataError, ModelError, SpikedimError
from spikedim.models import create_model, load_checkpoint
from spikedim.results import Estimate
from spikedim.storage import Run
from spikedim.training import evaluate, samples
from spikedim.training.chance import at_chance
from spikedim.training.engines import Engine
from spikedim.training.study import (
    Cell,
    Study,
    mean_accuracy,
    merge_studies,
    neuron_grid,
    run_study,
    thinned,
)
from spikedim.training.study_table import (
    OutputRow,
    StudyRow,
    read_outputs,
    read_study,
    write_study,
)
from test_training_sweep import CONFIG, MODEL, refuse_training, toy

FAST = replace(CONFIG, epochs=1)


def tiny(T=(1, 2), **changes) -> Study:
    """Two trainings on the toy data."""
    return Study("tiny", (Cell(toy(), MODEL, FAST),), T, **changes)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A finished study with two neurons, extended tests and outputs."""
    path = tmp_path_factory.mktemp("study") / "r"
    study = tiny(
        neurons=neuron_grid({"v_th": [0.5, 1.0]}), eval_T=(3,), outputs_T=(2,),
        outputs_eval_T=(1, 2, 4), output_samples=20, logit_samples=8,
    )  # fmt: skip
    with Run(path, {}) as run:
        return study, run_study(study, run), path


def test_rows_say_what_was_run_and_what_came_out(studied):
    _, result, _ = studied
    found = [(r.v_th, r.train_T, r.eval_T) for r in result.table]
    assert sorted(found) == [
        (v, T, t) for v in (0.5, 1.0) for T, t in ((1, 1), (1, 3), (2, 1), (2, 2), (2, 3))
    ]
    for row in result.table:
        assert (row.status, row.test_samples, row.classes, row.image_size) == ("done", 24, 2, 4)
        assert row.correct == row.hits.sum()
        assert row.accuracy == pytest.approx(100 * row.correct / 24)
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert 0 <= row.firing_rate <= 1
        assert row.energy_paper_sop_uJ > 0
    values = spectrum(toy().features()).eigenvalues
    row = result.table.rows[0]
    assert row.d_eff_pr == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert len({row.key for row in result.table}) == result.trials == 4
    assert "T=2" in str(result)


def test_rows_are_what_the_stored_network_does(studied):
    study, result, path = studied
    (row,) = result.table.where(train_T=2, eval_T=3, v_th=0.5)
    neuron = study.neuron(0, {"v_th": 0.5})
    weights = [
        file for file in path.glob("trials/*-T2-*/best.safetensors")
        if (again := _loaded(file, neuron)) is not None
        and np.array_equal(evaluate(again, *samples(toy(), "test", 3), 3).correct(), row.hits)
    ]  # fmt: skip
    assert weights


def _loaded(file, neuron):
    net = create_model(MODEL, num_classes=2, input_shape=(1, 4, 4), neuron=neuron)
    load_checkpoint(net, file)
    return net


def test_outputs_agree_with_the_rows(studied):
    _, result, _ = studied
    outputs = read_outputs(result.outputs)
    assert sorted({(o.train_T, o.eval_T) for o in outputs}) == [(2, 1), (2, 2), (2, 4)]
    for output in outputs:
        labels = toy().test.labels
        np.testing.assert_array_equal(output.labels, labels[output.positions])
        assert output.logits.shape == (8, 2)
        own = output.logits[np.arange(8), output.labels[:8]]
        other = output.logits[np.arange(8), 1 - output.labels[:8]]
        np.testing.assert_allclose(output.margins[:8], own - other, atol=2e-2)
        if output.eval_T == 4:
            assert output.error_std == output.margin_error_std == 0
        else:
            (row,) = result.table.where(key=output.key, eval_T=output.eval_T)
            agree = (output.margins > 0) == (row.hits[output.positions] == 1)
            assert agree[np.abs(output.margins) > 1e-3].all()


def test_a_finished_study_is_read_back(studied, monkeypatch):
    study, result, path = studied
    refuse_training(monkeypatch)
    with Run(path, {}) as run:
        again = run_study(study, run)
    assert again.table.rows == result.table.rows


def test_other_tests_of_a_training_do_not_train_it_again(studied, tmp_path, monkeypatch):
    from spikedim.training import lightning_run

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    study, result, path = studied
    monkeypatch.setattr(lightning_run, "run", refuse)
    shutil.copytree(path, tmp_path / "r")
    with Run(tmp_path / "r", {}) as run:
        longer = run_study(replace(study, eval_T=(4,), outputs_T=()), run)
        assert longer.outputs is None
        for row in longer.table.where(eval_T=1):
            (same,) = result.table.where(v_th=row.v_th, train_T=row.train_T, eval_T=1)
            assert row.key != same.key
            assert row.correct_bits == same.correct_bits
        with pytest.raises(AssertionError, match="trained again"):
            run_study(replace(study, seeds=(5,)), run)


def test_tables_survive_a_round_trip(studied, tmp_path):
    _, result, _ = studied
    rows = list(result.table)
    write_study(tmp_path / "a.parquet", rows[::-1], {"x": 1}, StudyRow)
    again = read_study(tmp_path / "a.parquet")
    assert again.rows == result.table.rows
    assert again.provenance == {"x": 1}
    assert again.same_trials(result.table)
    slower = [replace(row, train_seconds=1e3) for row in rows]
    other = [replace(row, correct=0) for row in rows]
    for changed, same in ((slower, True), (other, False)):
        write_study(tmp_path / "b.parquet", changed, {}, StudyRow)
        assert read_study(tmp_path / "b.parquet").same_trials(result.table) is same
    with pytest.raises(DataError, match="appears twice"):
        write_study(tmp_path / "c.parquet", [rows[0], rows[0]], {}, StudyRow)
    assert result.table.provenance["data_fingerprints"] == {"toy": toy().fingerprint}
    assert "torch" in result.table.provenance["versions"]
    assert result.table.provenance["hardware"]["processor"]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_hits_are_what_was_packed(bits):
    packed = np.packbits(np.array(bits, dtype=np.uint8)).tobytes()
    blank = dict.fromkeys(StudyRow.__dataclass_fields__)
    row = StudyRow(**blank | {"test_samples": len(bits), "correct_bits": packed})
    assert row.hits.tolist() == bits


def test_tables_can_be_merged_and_thinned(studied, tmp_path):
    _, result, _ = studied
    half = [row for row in result.table if row.train_T == 1]
    write_study(tmp_path / "half.parquet", half, {"half": True}, StudyRow)
    merged = read_study(
        merge_studies([result.path, tmp_path / "half.parquet"], tmp_path / "all.parquet")
    )
    assert merged.rows == result.table.rows
    assert merged.provenance["merged"][1] == {"half": True}
    twice = merge_studies([result.outputs] * 2, tmp_path / "outputs.parquet", outputs=True)
    assert read_outputs(twice).rows == read_outputs(result.outputs).rows
    for whole in read_outputs(result.outputs):
        small = thinned(whole, 3)
        assert thinned(whole, 99) == whole
        np.testing.assert_array_equal(small.logits, whole.logits[:3])
        np.testing.assert_array_equal(small.margins, whole.margins)


def test_what_is_no_study_is_refused(tmp_path, studied):
    _, result, _ = studied
    with pytest.raises(DataError, match="cannot read the study"):
        read_study(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot read the study"):
        read_study(tmp_path / "text.parquet")
    with pytest.raises(DataError, match="lacks samples"):
        read_outputs(result.path)
    assert OutputRow.__doc__


def test_a_diverged_training_is_a_row_of_its_own(tmp_path, monkeypatch):
    from spikedim.training import trial

    fit = trial.fit

    def diverge(model, dataset, config, T, *rest):
        if T == 2:
            raise ModelError("the loss became nan in epoch 1")
        return fit(model, dataset, config, T, *rest)

    monkeypatch.setattr(trial, "fit", diverge)
    with Run(tmp_path, {}) as run:
        result = run_study(tiny(), run)
    assert (result.trials, result.failed) == (2, 1)
    (failed,) = read_study(result.path).where(train_T=2)
    assert failed.status == "failed: the loss became nan in epoch 1"
    assert failed.accuracy is None
    assert failed.key != result.table.rows[0].key
    assert np.isnan(result.table.column("accuracy")[1])
    with pytest.raises(DataError, match="no test result"):
        _ = failed.hits


def test_accuracies_stand_beside_chance_sample_sizes_and_what_varied(studied):
    _, result, _ = studied
    (table,) = result.tables()
    names = ("data", "network", "v_th", "T=1", "T=2", "chance, %", "seeds", "test samples")
    assert table.columns == names
    assert [row[2] for row in table.rows] == [0.5, 1.0]
    for _, _, v_th, *accuracies, chance, seeds, tested in table.rows:
        for T, shown in zip((1, 2), accuracies, strict=True):
            (row,) = result.table.where(v_th=v_th, train_T=T, eval_T=T)
            assert (shown.value, shown.n) == (row.accuracy, row.test_samples)
            assert (shown.low, shown.high) == pytest.approx((row.accuracy_low, row.accuracy_high))
        assert chance == result.chance[table.rows[0][0]] > 0
        assert (seeds, tested) == (1, row.test_samples)


def test_plain_data_hold_the_accuracy_of_every_setting(studied):
    _, result, _ = studied
    found = json.loads(json.dumps(result.to_dict()))["accuracies"]
    assert len(found) == 4
    for setting in found:
        v_th, T = setting["neuron"]["v_th"], setting["T"]
        (row,) = result.table.where(v_th=v_th, train_T=T, eval_T=T)
        assert (setting["dataset"], setting["model"], setting["seeds"]) == ("toy", MODEL, 1)
        assert setting["neuron"]["beta"] == row.beta
        assert setting["chance"] == 50
        shown = setting["accuracy"]
        assert (shown["value"], shown["n"]) == (row.accuracy, row.test_samples)
        assert shown["low"] == pytest.approx(row.accuracy_low)


def test_settings_at_chance_are_named(studied):
    _, result, _ = studied
    (data,) = result.chance
    (table,) = replace(result, chance={data: 0.0}).tables()
    assert len(table.notes) == 1
    (table,) = replace(result, chance={data: 100.0}).tables()
    assert table.notes[0].startswith(f"At chance: {MODEL} on {data}, T=1, v_th=0.5, ")
    assert "against 100 %" in table.notes[0]
    found = [(f"N{i}", Estimate(50.0, 44, 60.0, n, "%"), 45.0) for i, n in enumerate((900, 20))]
    (note,) = at_chance(found)
    assert "N1, 50 [44, 60] %, against 45 %" in note
    assert "N0" not in note
    (note,) = at_chance(found[1:] * 7)
    assert note.count("N1") == 4
    assert "; 3 more." in note
    assert at_chance(found[:1]) == ()
    right = (np.arange(360) < 260, np.arange(360) < 306)
    seeds = [study_cases.row("a", "m", i, 2, 2, hits, 10.0) for i, hits in enumerate(right)]
    both = mean_accuracy(seeds)  # two seeds know little of the others, but both have learned
    assert both.low < 10
    assert at_chance([("both", both, 10.0)]) == ()


def test_the_mean_of_seeds_covers_the_truth_as_often_as_it_says():
    """Networks differ by 2 points, test samples are shared and differ in how hard they are."""
    rng = np.random.default_rng(0)
    n, covered, trials = 400, 0, 400
    for _ in range(trials):
        ease = rng.beta(4, 1, n)  # mean 0.8 over the population of samples
        rows = []
        for seed in range(4):
            right = rng.random(n) < ease + 0.02 * rng.standard_normal()
            rows.append(study_cases.row("a", "m", seed, 2, 2, right, 10.0))
        found = mean_accuracy(rows)
        covered += found.low <= 80 <= found.high
    assert covered >= 0.93 * trials
    alike = [study_cases.row("a", "m", seed, 2, 2, np.ones(20, bool), 10.0) for seed in range(2)]
    assert mean_accuracy(alike) == replace(mean_accuracy(alike[:1]), method=ANY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": ()}, "T is empty"),
        ({"T": (2, 2)}, "T repeats"),
        ({"T": (0,)}, "T=0"),
        ({"seeds": (1, 1)}, "seeds repeats"),
        ({"encoder": "latency", "eval_T": (4,)}, "latency"),
    ],
)
def test_bad_studies_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**{"T": (1,)} | changes)


def test_cells_may_share_a_data_set_and_a_network_but_not_the_components():
    other = toy(test=30)
    assert other.fingerprint != toy().fingerprint
    cells = [Cell(toy(), MODEL, FAST, 2), Cell(other, MODEL, FAST, 4), Cell(toy(), MODEL, FAST)]
    settings = Study("truncated", tuple(cells), (1,)).settings()
    names = [f"{toy().name}{k}" for k in (" (k = 2)", " (k = 4)", "")]
    assert [cell["data"] for cell in settings["cells"]] == list(settings["data"]) == names
    prints = [cell.dataset.fingerprint for cell in cells]
    assert [data["fingerprint"] for data in settings["data"].values()] == prints
    with pytest.raises(ConfigError, match="cells repeats"):
        Study("truncated", (cells[0], Cell(other, MODEL, FAST, 2)), (1,))


def test_bad_neurons_and_cells_are_refused_before_training(tmp_path, monkeypatch):
    refuse_training(monkeypatch)
    with Run(tmp_path, {}) as run:
        with pytest.raises(ConfigError, match="'colour' cannot be studied"):
            run_study(tiny(neurons=({"colour": 1},)), run)
        with pytest.raises(ConfigError, match="beta"):
            run_study(tiny(neurons=({"beta": 2.0},)), run)
        bare = Cell(replace(toy(), test=None), MODEL, FAST)
        with pytest.raises(DataError, match="no test split"):
            run_study(replace(tiny(), cells=(bare,)), run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dask"}, "engine='dask'"),
        ({"workers": 0}, "workers=0"),
        ({"name": "ray", "cpus": 0.0}, "cpus per trial"),
        ({"name": "ray", "gpus": math.nan}, "gpus per trial"),
        ({"name": "ray", "retries": -1}, "retries"),
        ({"gpus": 0.5}, "--engine ray"),
        ({"address": "auto"}, "--engine ray"),
    ],
)
def test_bad_engines_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(**options)


def test_smaller_images_are_means_of_areas():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    data = Dataset(
        "d", "image", Split(images, np.arange(5) % 2), None, ("a", "b"), "test", scale=255.0
    )
    half = downsampled(data, 6)
    blocks = images.reshape(5, 6, 2, 6, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(half.train.inputs, blocks, rtol=1e-5)
    assert half.input_shape == (3, 6, 6)
    uneven = downsampled(data, 5)
    np.testing.assert_allclose(
        uneven.train.inputs.mean(axis=(1, 2)), images.mean(axis=(1, 2)), rtol=1e-4
    )
    assert downsampled(data, 12) is data
    for side in (1, 13):
        with pytest.raises(ConfigError, match=f"image size {side}"):
            downsampled(data, side)


def test_classes_and_splits_can_be_cut():
    data = load_dataset("digits")
    few = first_classes(data, 3)
    assert few.num_classes == 3
    assert set(few.train.labels) == set(few.test.labels) == {0, 1, 2}
    assert first_classes(data, 10) is data
    with pytest.raises(ConfigError, match="classes 11"):
        first_classes(data, 11)
    anew = repooled(data, 1000)
    assert (len(anew.train), len(anew.test)) == (797, 1000)
    assert np.bincount(anew.test.labels).min() > 90
    rows = np.concatenate([anew.train.inputs, anew.test.inputs]).reshape(1797, -1)
    before = np.concatenate([data.train.inputs, data.test.inputs]).reshape(1797, -1)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, before))


def cli(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([*words, "--quiet"])
    return ended.value.code, capsys.readouterr()


def test_command_runs_a_study(tmp_path, capsys):
    out = tmp_path / "r"
    words = [
        "sweep", "--study", "cli", "--data", "digits", "--model", MODEL, "-T", "1", "--seeds", "4,",
        "--epochs", "1", "--train-samples", "40", "--repool", "60", "--classes", "3",
        "--image-size", "4", "--grid", "beta=0.25,0.5", "--training", "batch_size=20",
        "--workers", "1", "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    code, text = cli(capsys, *words)
    assert code == 0, text.err
    table = read_study(out / "study.parquet")
    assert table.values("beta") == [0.25, 0.5]
    assert {(r.seed, r.classes, r.image_size, r.test_samples) for r in table} == {(4, 3, 4, 60)}
    assert table.provenance["config"]["cells"][0]["training"]["batch_size"] == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "digits,cifar10"], "--study NAME"),
        (["--engine", "ray"], "--engine applies to studies"),
        (["--trials", "3"], "--trials applies to studies"),
        (["--study", "s", "--trials", "3"], "--trials applies to searches; add --search"),
        (["--study", "s", "--storage", "sqlite:///a"], "--storage applies to searches"),
        (["--study", "s", "--tolerance", "2"], "--tolerance applies to searches"),
        (["--grid", "beta=0.5"], "--grid applies to studies"),
        (["--study", "s", "--grid", "colour=1"], "colour"),
        (["--study", "s", "--grid", "beta=x"], "'x' is not a float"),
        (["--study", "s", "--seeds", "none"], "--seeds none"),
        (["--study", "s", "--training", "colour=1"], "--training colour=1"),
        (["--study", "s", "--training", "lr=-1"], "lr=-1"),
        (["--study", "s", "--gpus-per-trial", "0.5"], "--engine ray"),
        (["--study", "s", "--mode", "inference"], "--eval-T"),
        (["--study", "s", "--image-size", "99"], "image size 99"),
        (["--study", "s", "--data", "digits,,x"], "an empty name"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(capsys, words, message):
    code, text = cli(capsys, "sweep", "--model", MODEL, *words)
    assert code == 2
    assert message in text.err
    assert text.err.count("\n") == 1


def test_ray_missing_says_how_to_install_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"spikedim\[ray\]"), Run(tmp_path, {}) as run:
        run_study(tiny(), run, Engine("ray", workers=2))


@pytest.mark.slow
def test_parallel_processes_give_the_serial_table(studied, tmp_path):
    study, result, _ = studied
    with Run(tmp_path / "r", {}) as run:
        parallel = run_study(study, run, Engine(workers=2))
    assert parallel.table.same_trials(result.table)
    assert issubclass(ConfigError, SpikedimError)
