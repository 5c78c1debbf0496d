import json
import re
from pathlib import Path

import numpy as np
import pytest

from spikedim.cli import main
from spikedim.design import store
from spikedim.errors import StorageError
from spikedim.training.study_table import OutputRow, StudyRow, read_study, write_study
from study_cases import row, rows


def run(*words):
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return done.value.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKEDIM_CALIBRATION", str(tmp_path / "store.jsonl"))
    return tmp_path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    table, outputs = rows(("a", "b", "c"), seeds=(0,), n=200)
    source = {"command": "spikedim sweep", "versions": {"torch": "2"}}
    write_study(folder / "study.parquet", table, source, StudyRow)
    write_study(folder / "outputs.parquet", outputs, source, OutputRow)
    rng = np.random.default_rng(0)
    controlled = [
        row(f"gaussian-{k}d", "m", s, T, T, (rng.random(200) < 0.6 + T / 20).astype(np.uint8), k)
        for k in (2.0, 4.0, 8.0)
        for s in (0, 1)
        for T in (1, 2, 4)
    ]
    write_study(folder / "dimension.parquet", controlled, source, StudyRow)
    return folder


@pytest.fixture(scope="module")
def images():
    """Bars and squares in colour that no other test or study uses."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 3, 150)
    x = rng.integers(0, 90, (150, 12, 12, 3))
    for i, kind in enumerate(y):
        k = rng.integers(0, 9)
        where = {0: np.s_[k : k + 3, :], 1: np.s_[:, k : k + 3], 2: np.s_[k : k + 3, k : k + 3]}
        x[i][where[int(kind)]] += 130
    return {"images": x.astype(np.uint8), "labels": y}


def test_validate_writes_the_page_from_stored_tables_alone(study, here, capsys):
    words = ["validate", "--table", study / "study.parquet", "--quiet", "--json"]
    more = ["--dimension", study / "dimension.parquet", "--out", "v.md", "--ship", "cases"]
    assert run(*words, *more) == 0
    page = Path("v.md").read_text()
    for part in (
        "## Answer", "## Leave one data set out", "## Leave one architecture out",
        "published-fraction", "What is not shown", "v-dimension.png", "Spikformer-4-384 on cifar10",
    ):  # fmt: skip
        assert part in page
    assert Path("v-dimension.png").read_bytes().startswith(b"\x89PNG")
    assert len(Path("cases/reference.jsonl").read_text().splitlines()) == 9
    assert len(Path("cases/dimension.jsonl").read_text().splitlines()) == 6
    board = json.loads(capsys.readouterr().out)
    assert {score["fold"] for score in board["scores"]} == {"data set", "architecture"}


def test_validate_without_a_table_is_one_clear_error(here, capsys):
    assert run("validate", "--quiet") == 2
    assert "--table" in capsys.readouterr().err
    assert run("validate", "--table", "none.parquet", "--quiet") == 2
    assert "none.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "t.parquet", "--workers", "2"], "--workers 2 is of --run-dimension"),
        (["--table", "t.parquet", "--device", "cuda"], "--device cuda is of --run-dimension"),
        (["--run-dimension", "r", "--out", "v.md"], "--out v.md cannot be used with --run-dim"),
        (["--run-dimension", "r", "--table", "t.parquet"], "--table t.parquet cannot be used"),
    ],
)
def test_validate_refuses_what_does_not_go_together(words, message, here, capsys):
    assert run("validate", *words, "--quiet") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("r").exists()


def test_validate_trains_the_controlled_study(here, capsys, monkeypatch):
    from spikedim.design import dimension_study as module
    from spikedim.training import TrainConfig

    asked, whole = [], module.dimension_study

    def small(device):
        asked.append(device)
        config = TrainConfig(epochs=1, validation=0.0, device=device)
        few = {"components": (2,), "intrinsic": (2,), "timesteps": (1,), "seeds": (0,)}
        return whole(config=config, samples=60, **few)

    monkeypatch.setattr(module, "dimension_study", small)
    assert run("validate", "--run-dimension", "r", "--workers", "1", "--quiet") == 0
    assert asked == ["cpu"]
    assert str(Path("r/study.parquet")) in capsys.readouterr().err
    assert {row.components for row in read_study(Path("r/study.parquet"))} == {2}


def test_design_of_images_never_seen(images, here, capsys):
    np.savez("bars.npz", **images)
    words = ["design", "--data", "bars.npz", "--model", "qkformer_nano", "--quiet", "--json"]
    assert run(*words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["recommendation"]["basis"] == "predicted"
    assert [item["prediction"]["name"] for item in plan["forecast"]["ranked"]].count("published")
    assert run(*words, "--budget-spikes", "1") == 0
    assert json.loads(capsys.readouterr().out)["verdict"][0].startswith("Infeasible")
    assert run(*words, "--budget-energy", "lots") == 2
    assert "lots" in capsys.readouterr().err


def test_a_pilot_adds_predictions_from_one_training(images, here, capsys):
    np.savez("bars.npz", **images)
    words = ["design", "--data", "bars.npz", "--model", "spikformer_nano", "--quiet", "--json"]
    assert run(*words, "--pilot", "-T", "1,2", "--epochs", "1") == 0
    plan = json.loads(capsys.readouterr().out)
    names = [item["prediction"]["name"] for item in plan["forecast"]["ranked"]]
    assert {"readout", "rate-noise"} <= set(names)
    assert plan["case"]["pilot"]["train_T"] == 2
    assert len(list(Path("runs").glob("*/trials/*"))) == 1
    assert all(point["expected"]["unit"] == "%" for point in plan["operating"])


def test_verified_designs_are_remembered_and_recalibrate(images, here, capsys, monkeypatch):
    assert run("calibrate", "--quiet") == 2
    assert "--verify" in capsys.readouterr().err
    np.savez("bars.npz", **images)
    words = ["design", "--data", "bars.npz", "--model", "spikformer_nano", "--verify", "--quiet"]
    words += ["--no-neurons", "-T", "1,2", "--epochs", "12", "--tolerance", "3", "--workers", "1"]
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "Remembered" in said.err
    assert "measured T*" in said.out
    assert run("calibrate", "--quiet", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["own"], found["new"]) == (1, 1)
    folders = list(Path("runs").iterdir())
    trained = {path: path.stat().st_mtime_ns for path in folders[0].glob("steps/*")}
    assert run(*words) == 0
    assert "Training" not in capsys.readouterr().out
    monkeypatch.setattr(store, "append", _full)
    assert run(*words, "--budget-spikes", "1e9") == 0
    said = capsys.readouterr()
    assert "T = 2 has the largest accuracy" in said.out or "T = 1 has the largest" in said.out
    assert "Not remembered: the disk is full." in said.err
    assert list(Path("runs").iterdir()) == folders
    assert {path: path.stat().st_mtime_ns for path in folders[0].glob("steps/*")} == trained
    assert run("calibrate", "--reset", "--quiet") == 0


def test_a_finished_run_is_repeated_without_its_weights(images, here, capsys):
    np.savez("bars.npz", **images)
    words = ["design", "--data", "bars.npz", "--model", "spikformer_nano", "--verify", "--quiet"]
    words += ["--no-neurons", "-T", "1,2", "--epochs", "1", "--train-samples", "9", "--out", "run"]
    assert run(*words, "--workers", "1", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    weights = list(Path("run").glob("trials/*/best.safetensors"))
    for file in weights:
        file.unlink()
    assert run(*words, "--workers", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["operating"] == first["operating"]
    assert len(weights) == 2
    assert all(file.is_file() for file in weights)


def _full(*given):
    raise StorageError("the disk is full")


def test_a_store_that_cannot_be_used_is_refused_before_training(here, capsys):
    words = ["design", "--data", "digits", "--model", "spikformer_nano", "--quiet"]
    assert run(*words, "--verify", "--store", here) == 2
    assert "--store" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_network_at_chance_is_not_remembered_and_the_reason_is_said(images, here, capsys):
    np.savez("bars.npz", **images)
    words = ["design", "--data", "bars.npz", "--model", "spikformer_nano", "--verify", "--quiet"]
    words += ["--no-neurons", "-T", "1", "--epochs", "1", "--train-samples", "9"]
    assert run(*words, "--workers", "1") == 0
    said = capsys.readouterr()
    assert "No answer" in said.out
    assert "Not remembered: the network has not learned" in said.err
    assert not Path("store.jsonl").exists()


def test_a_refused_key_names_its_file(here, capsys):
    Path("d.yaml").write_text("forget: true\nverify: null")
    assert run("design", "--data", "digits", "--config", "d.yaml", "--quiet") == 2
    assert "--forget (in d.yaml) is of --verify; add it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "7"], "--epochs is of trainings"),
        (["-T", "1,2"], "--timesteps is of trainings"),
        (["--workers", "3"], "--workers is of trainings"),
        (["--pilot", "--no-neurons"], "--no-neurons is of --verify"),
        (["--forget"], "--forget is of --verify"),
        (["--budget-spikes", "9", "--energy-convention", "loihi"], "is of --budget-energy"),
        (["--budget-energy", "1", "--energy-convention", "nonsense"], "nonsense"),
    ],
)
def test_design_refuses_options_without_an_effect(words, message, here, capsys):
    assert run("design", "--data", "digits", "--model", "spikformer_nano", "--quiet", *words) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
