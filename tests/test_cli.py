import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from processes import group_is_gone, wait_for
from spikedim import storage
from spikedim.cli import main
from spikedim.errors import ConfigError

ONE = ["--epochs", "1", "--train-samples", "120", "--quiet"]
QUICK = [*ONE, "--test-samples", "80"]
# One process: starting another takes longer than these trainings.
VERIFIED = ["design", "--data", "digits", "--model", "spikformer_nano", "--verify", *QUICK]
VERIFIED += ["--workers", "1"]


def run(*words):
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    code = caught.value.code
    return 0 if code is None else code


def fails(capsys, *words):
    """Run a command that must fail as a user's mistake; return its one line."""
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SYSTEM_FAULTS = {
    errno.ENOSPC: "x.bin: .*; free some space",
    errno.ENOENT: "x.bin: .*; check the name, or reinstall",
    errno.EACCES: "x.bin: .*; choose a place you may read and write",
    errno.EIO: "x.bin: Input/output error$",
}


@pytest.mark.parametrize("code", SYSTEM_FAULTS, ids=errno.errorcode.get)
def test_a_fault_of_the_system_is_one_line_with_its_own_mend(code, capsys, monkeypatch):
    def refused(*_, **__):
        raise OSError(code, os.strerror(code), "x.bin")

    monkeypatch.setattr("spikedim.data.load_dataset", refused)
    line = fails(capsys, "measure", "--data", "digits", "--quiet")
    assert re.search(SYSTEM_FAULTS[code], line)
    assert "Errno" not in line


@pytest.mark.parametrize(
    "verb",
    [
        "design",
        "measure",
        "profile",
        "train",
        "sweep",
        "report",
        "audit",
        "circuits",
        "ntk",
        "export",
        "models",
        "data",
        "info",
    ],
)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    assert run(verb, "--help") == 0
    assert re.search(r"Example:\s+spikedim\s+" + verb, capsys.readouterr().out)


def test_help_is_quick_to_import():
    code = (
        "import sys, spikedim.cli; "
        "heavy = {'torch', 'lightning', 'plotly', 'sklearn', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_info_models_and_data_print_json(capsys):
    assert run("info", "--json") == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]
    assert run("models", "--json", "--pattern", "spikformer_4_384") == 0
    (entry,) = json.loads(capsys.readouterr().out)["models"]
    assert entry["parameters"] == 9_330_874
    assert run("models", "show", "spikformer_4_384") == 0
    assert "9,330,874" in capsys.readouterr().out
    assert run("data") == 0
    assert "digits" in capsys.readouterr().out
    assert run("data", "show", "digits", "--json") == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 10


@pytest.mark.parametrize(("columns", "width"), [(None, 140), ("50", 50), ("170", 170)])
def test_a_pipe_is_as_wide_as_columns_says(columns, width, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert run("data") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) == width


def test_measure_prints_estimates_with_intervals_and_draws(here, capsys):
    assert run("measure", "--data", "digits", "--plot", "s.png", "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    pca = report["estimates"]["pca95"]
    assert pca["low"] <= pca["value"] <= pca["high"]
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")


def test_config_file_gives_defaults_and_the_command_line_wins(here, capsys):
    Path("m.yaml").write_text(yaml.safe_dump({"data": "digits", "limit": 100, "quantile": 0.9}))
    assert run("measure", "--config", "m.yaml", "--limit", "200", "--json", "--quiet") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n"] == 200
    assert "pca90" in report["estimates"]


def test_config_keys_are_the_long_options(here, capsys):
    Path("c.yaml").write_text("logits: 0.5\njson: true\ntrials: 5\ntimesteps: [16, 32, 64, 128]")
    assert run("circuits", "integrate-fire", "--config", "c.yaml", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["T"] for point in found["points"]] == [16, 32, 64, 128]
    assert found["neurons"] == 1  # one value, as a list of one


@pytest.mark.parametrize(
    ("text", "centred"), [("no-center: true", False), ("no-center: false", True)]
)
def test_config_knows_the_opposite_of_an_option(here, capsys, text, centred):
    Path("c.yaml").write_text(f"data: digits\nlimit: 60\njson: true\n{text}")
    assert run("measure", "--config", "c.yaml", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["centered"] is centred


@pytest.mark.parametrize("key", ["eval-T", "eval_T", "eval_t", "outputs-T", "grid"])
def test_config_keys_reach_the_option(here, capsys, key):
    Path("c.yaml").write_text(f"{key}: 3")
    line = fails(capsys, "sweep", "--config", "c.yaml", "--quiet")
    assert "applies to studies" in line
    assert key.replace("_", "-").lower() in line.lower()


def test_warnings_are_shown_where_the_command_then_fails(here, capsys):
    Path("bad.jsonl").write_text("garbage\n")
    assert run("calibrate", "--store", "bad.jsonl", "--quiet") == 2
    warning, error = capsys.readouterr().err.strip().splitlines()
    assert warning.startswith("warning: bad.jsonl, line 1 is not")
    assert error.startswith("error: no stored design")


def test_report_does_not_tell_to_remove_a_file_that_is_not_ours(here, capsys):
    Path("lin.csv").write_text("a,b\n1,2\n")
    line = fails(capsys, "report", "lin.csv")
    assert "it is no result of `spikedim design`" in line
    assert "remove" not in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished design run with verification, small enough for the suite."""
    folder = tmp_path_factory.mktemp("design")
    assert run(*VERIFIED, "-T", "1,2", "--out", folder / "run") == 0
    return folder / "run"


def test_design_writes_results_and_report(finished):
    results = storage.read_json(finished / "results.json")
    assert results["recommendation"]["basis"] == "measured"
    assert results["recommendation"]["timesteps"]["value"] in (1, 2)
    assert [point["timesteps"] for point in results["operating"]] == [1, 2]
    assert results["provenance"]["data_fingerprint"]
    assert (finished / "report.html").stat().st_size > 100_000


def test_report_into_a_folder_names_no_option_it_lacks(finished, here, capsys):
    (here / "folder").mkdir()
    line = fails(capsys, "report", finished, "--to", here / "folder")
    assert line.endswith("name a file")


def test_report_is_rebuilt_without_recomputing(finished, here):
    assert run("report", finished, "--to", here / "again.html") == 0
    assert (here / "again.html").read_text() == (finished / "report.html").read_text()


def test_same_command_finishes_at_once_and_gives_the_same_numbers(finished, capsys):
    before = storage.read_json(finished / "results.json")
    assert run(*VERIFIED, "-T", "1,2", "--out", finished, "--json") == 0
    after = json.loads(capsys.readouterr().out)
    for plan in (before, after):
        plan.pop("provenance")
        plan["sweep"].pop("provenance", None)
        plan["neurons"].pop("provenance", None)
    assert after == before


def test_another_setting_in_the_same_directory_is_refused(finished, capsys):
    before = (finished / "results.json").read_bytes()
    line = fails(capsys, *VERIFIED, "-T", "1,4", "--out", finished)
    assert "other settings (timesteps: [1, 2] → [1, 4])" in line
    assert (finished / "results.json").read_bytes() == before


def test_design_without_verification_says_it_is_not_measured(here, capsys):
    assert run("design", "--data", "digits", "--model", "spikformer_nano", "--quiet") == 0
    text = capsys.readouterr().out
    assert "T* was not measured" in " ".join(text.split())
    assert "untrained" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--explain-published", "--growth"], "--growth has no effect with --explain-published"),
        (["--explain-published", "--no-center"], "--no-center has no effect with"),
        (["--explain-published", "--data", "digits"], "digits holds 8 x 8 images"),
        (["-o", "x.md"], "--out is of --explain-published; use --json or --plot"),
        (["--quantile", "2"], "--quantile 2.0; expected a fraction between 0 and 1"),
    ],
)
def test_measure_refuses_what_it_would_not_use(words, message, here, capsys):
    assert message in fails(capsys, "measure", *words, "--quiet")


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("give one target: target_d_eff or target_reduction", "--target-d-eff or --target-reduct"),
        ("dt=0.0 s; expected more", "--dt 0.0 s; expected"),
        ("invert(net, x, target_d_eff=6, dt=1)", "invert(net, x, target_d_eff=6, dt=1)"),
        ("runs/target_d_eff.npz is damaged", "runs/target_d_eff.npz is damaged"),
    ],
)
def test_messages_name_options_as_they_are_typed(text, typed, capsys, monkeypatch):
    def refused(*_, **__):
        raise ConfigError(text)

    monkeypatch.setattr("spikedim.cli.ntk.opened", refused)
    assert typed in fails(capsys, "ntk", "--quiet")


def test_sweep_train_and_profile(here, capsys):
    common = ["--data", "digits", "--model", "spikformer_nano"]
    assert run("train", *common, *ONE, "-T", "1", "--out", "t", "--json") == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert run("profile", *common, "-T", "1", "--checkpoint", weights, "--json", "--quiet") == 0
    profile = json.loads(capsys.readouterr().out)
    assert {e["convention"] for e in profile["energy"]} == {"paper-sop", "exact-fanout"}
    assert profile["state"].startswith("weights of ")
    sweep = ["sweep", *common, *QUICK, "-T", "1,2", "--mode", "inference", "--out", "s", "--json"]
    assert run(*sweep) == 0
    assert [p["T"] for p in json.loads(capsys.readouterr().out)["points"]] == [1, 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["--plot", "x.jpg"], "--plot x.jpg: name a .png, .pdf or .svg file"),
        (["--html", "x.txt"], "--html x.txt: name a .html file"),
    ],
)
def test_profile_refuses_names_of_files_before_it_starts(files, message, here, capsys):
    assert run("profile", "--data", "nothing", *files, "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_a_profile_is_printed_before_its_page_is_written(here, capsys):
    Path("file").write_text("")
    words = ["--data", "digits", "--model", "spikformer_nano", "-T", "1", "--samples", "4"]
    assert run("profile", *words, "--html", "file/x.html", "--json", "--quiet") != 0
    assert json.loads(capsys.readouterr().out)["T"] == 1


@pytest.mark.parametrize("verb", ["profile", "ntk"])
def test_networks_are_looked_into_on_events(verb, shared, here, capsys):
    words = ["--data", "nmnist", "--data-root", shared, "-T", "2", "--samples", "8", "--quiet"]
    assert run(verb, *words, "--model", "spikformer_nano", "--json") == 0
    assert json.loads(capsys.readouterr().out)["T"] == 2


def _saved_epochs(folder):
    """What every checkpoint knows of its finished epochs, their wall time included."""
    import torch

    files = folder.glob("run/trials/*/last.ckpt")
    loaded = {path: torch.load(path, weights_only=True) for path in files}
    return {path: saved["callbacks"]["Keeper"]["history"] for path, saved in loaded.items()}


def test_killed_design_loses_at_most_one_epoch_and_leaves_no_orphans(here):
    words = [
        *("design", "--data", "digits", "--model", "spikformer_nano", "--verify", "--no-neurons"),
        *("--epochs", "12", "--train-samples", "100", "--test-samples", "80", "-T", "1,2"),
        *("--out", "run", "--quiet"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "spikedim", *words, "--workers", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(_saved_epochs(here)) == 2, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: group_is_gone(process.pid))
    saved = _saved_epochs(here)
    assert not (here / "run" / "results.json").exists()

    assert run(*words, "--workers", "1") == 0
    for path, epochs in saved.items():
        history = storage.read_json(path.with_name("fit.json"))["history"]
        assert len(history) == 12
        # Equal to the last digit of the wall time: these epochs were not trained again.
        assert history[: len(epochs)] == epochs
    assert (here / "run" / "results.json").exists()


# --- mistakes: one clear line, exit code 2 ---


@pytest.fixture
def images(here):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    return {"x_train": x, "y_train": np.arange(40) % 4, "x_test": x[:8], "y_test": np.arange(8) % 4}


def _saved(arrays, **changes):
    np.savez("bad.npz", **{**arrays, **changes})
    return "bad.npz"


def test_missing_data(here, capsys):
    line = fails(capsys, "design", "--data", "nowhere.npz", "--quiet")
    assert "nowhere.npz" in line


def test_corrupt_data(here, capsys):
    Path("bad.npz").write_bytes(b"PK\x03\x04 this is not an archive")
    assert "bad.npz" in fails(capsys, "design", "--data", "bad.npz", "--quiet")


def test_short_data(here, images, capsys):
    _saved(images)
    Path("bad.npz").write_bytes(Path("bad.npz").read_bytes()[:-700])
    assert "bad.npz" in fails(capsys, "design", "--data", "bad.npz", "--quiet")


def test_labels_that_do_not_match(here, images, capsys):
    path = _saved(images, y_train=images["y_train"][:-3])
    line = fails(capsys, "design", "--data", path, "--quiet")
    assert "40" in line
    assert "37" in line


@pytest.mark.parametrize("verb", ["design", "train", "sweep"])
def test_missing_labels(here, images, capsys, verb):
    np.savez("bare.npz", x=images["x_train"])
    line = fails(capsys, verb, "--data", "bare.npz", "--model", "spikformer_nano", "--quiet")
    assert "no labels" in line


def test_a_folder_of_images_without_classes_is_measured_and_not_trained_on(here, images, capsys):
    from PIL import Image

    for i, image in enumerate(images["x_train"][:12]):
        Path("flat").mkdir(exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).resize((8 + i % 2,) * 2).save(f"flat/{i:02d}.png")
    line = fails(capsys, "measure", "--data", "flat", "--quiet")
    assert "--data FOLDER@N" in line
    assert run("measure", "--data", "flat@6", "--estimators", "pr", "--quiet") == 0
    assert "12 samples x 36 features" in capsys.readouterr().out
    line = fails(capsys, "train", "--data", "flat@6", "--model", "spikformer_nano", "--quiet")
    assert "no labels" in line
    assert "a folder for each class" in line


def test_nan_pixels(here, images, capsys):
    x = images["x_train"].astype(np.float32)
    x[3, 2, 1] = np.nan
    line = fails(capsys, "design", "--data", _saved(images, x_train=x), "--quiet")
    assert "NaN" in line
    assert "3" in line


@pytest.mark.parametrize("steps", ["0", "-1", "two", ""])
def test_timesteps_that_make_no_sense(here, capsys, steps):
    line = fails(capsys, "design", "--verify", "-T", steps, "--quiet")
    assert "whole number" in line


def test_zero_timesteps_where_one_number_is_asked(here, capsys):
    words = ["profile", "--model", "spikformer_nano", "-T", "0", "--quiet"]
    assert "T=0" in fails(capsys, *words)


def test_unknown_model(here, capsys):
    line = fails(capsys, "design", "--model", "spikformer_nan", "--quiet")
    assert "spikformer_nano" in line
    assert "(all of them: spikedim models" in line


def test_a_network_for_features_is_not_to_be_had(here, capsys):
    np.savez("f.npz", x=np.eye(40), y=np.arange(40) % 2)
    line = fails(capsys, "train", "--data", "f.npz", "--quiet")
    assert "f holds features; spikformer_tiny reads images or events" in line
    assert line.endswith("spikedim measure")


def test_a_folder_of_weights_names_its_file(here, capsys):
    words = ["profile", "--model", "spikformer_nano", "--quiet", "--checkpoint", "run"]
    Path("run").mkdir()
    assert fails(capsys, *words).endswith("run is a folder; check the path")
    Path("run/best.safetensors").touch()
    assert fails(capsys, *words).endswith("run is a folder; name run/best.safetensors")


def test_unreadable_checkpoint(here, capsys):
    Path("bad.pt").write_bytes(b"not a checkpoint")
    for name in ("bad.pt", "missing.pt"):
        words = ["profile", "--model", "spikformer_nano", "--checkpoint", name, "--quiet"]
        assert name in fails(capsys, *words)


def test_wrong_device(here, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = fails(capsys, "design", "--verify", "--device", "cuda", "--quiet")
    assert "--device cpu" in line


def test_no_disk_space(finished, capsys, monkeypatch):
    before = (finished / "results.json").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    line = fails(capsys, *VERIFIED, "-T", "1,2", "--out", finished)
    assert "no disk space" in line
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unknown_key: 1", "unknown_key"),
        ("unknown_key: 1", "explain-published"),
        ("unknown_key: 1", "json"),
        ("[1, 2]", "mapping"),
        ("a: [", "cannot read"),
        ("seed: true", "seed: expected a value"),
        ("option: [true]", "option: expected a value"),
        ("seed: many", "c.yaml: seed: 'many': "),
        ("quiet: 3", "quiet: expected yes or no, got 3"),
        ("center: true\nno-center: true", "no-center is given twice"),
        ("data-root: a\ndata_root: b", "--data-root is given twice"),
    ],
)
def test_bad_config_file(here, capsys, text, words):
    Path("c.yaml").write_text(text)
    assert words in fails(capsys, "measure", "--config", "c.yaml", "--quiet")


@pytest.mark.parametrize(
    "words",
    [
        ("measure", "--seed", "-1"),
        ("design", "--epochs", "many"),
        ("design", "--nonsense"),
        ("train", "--encoder", "morse"),
        ("report",),
        ("nonsense",),
    ],
)
def test_usage_mistakes_are_one_line(here, capsys, words):
    line = fails(capsys, *words)
    verb = "" if words == ("nonsense",) else f" {words[0]}"
    assert line.endswith(f"(see spikedim{verb} --help)")


@pytest.mark.parametrize("words", [("--tolerance", "-1"), ("--epsilon", "0")])
def test_bad_targets_are_refused_before_any_work(here, capsys, words):
    assert words[0].strip("-") in fails(capsys, "design", "--verify", "--quiet", *words)
    assert not Path("runs").exists() or not list(Path("runs").rglob("last.ckpt"))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "digits", "--model", "spikformer_nano", "--epochs", "500"],
        ["ntk", "--data", "digits", "--model", "spikformer_tiny", "--samples", "1000"],
    ],
    ids=lambda words: words[0],
)
def test_interrupt_says_how_to_continue(words, here):
    process = subprocess.Popen(
        [sys.executable, "-m", "spikedim", *words, "--out", "run"],
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = process.stderr.readline()  # it has announced its work
    wait_for(lambda: list(here.glob("run/*")), lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    try:
        _, rest = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, first + rest
    assert "interrupted: run the same command again" in rest
    assert "rank --compare-gates go on" in rest
    assert "Traceback" not in rest


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams_are_no_fault(here, closed):
    command = [sys.executable, "-m", "spikedim", "measure", "--data", "digits"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command, *["--json"] * (closed == 2)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if closed == 2:
        assert json.loads(done.stdout)


def test_a_training_that_goes_on_says_so(here, capsys, monkeypatch):
    from spikedim.training.lightning_run import Keeper

    words = ["train", "--data", "digits", "--model", "spikformer_nano", "-T", "1", "--out", "t"]
    words += ["--epochs", "3", "--train-samples", "60"]
    saved = Keeper.on_train_epoch_end

    def interrupted(self, trainer, pl_module):
        saved(self, trainer, pl_module)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_epoch_end", interrupted)
        assert run(*words) == 130
    assert "same command" in capsys.readouterr().err
    assert run(*words) == 0
    assert "continuing after 1 of 3 epochs" in capsys.readouterr().err
    assert run(*words) == 0
    assert "finished already" in capsys.readouterr().err


def test_code_in_a_message_keeps_its_lines(here, capsys):
    Path("plain.py").write_text(
        "from torch import nn\n\n\nclass Mine(nn.Module):\n    pass\n\n\n"
        "def make():\n    return nn.Sequential(nn.Linear(64, 10), Mine())\n"
    )
    assert run("profile", "--data", "digits", "--model", "plain.py:make", "--quiet") == 2
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith("def convert"))
    assert lines[at - 1].startswith("@")
    assert lines[at + 1].startswith("return")


def test_report_of_nothing(here, capsys):
    assert "results.json" in fails(capsys, "report", "nowhere")


def test_debug_shows_the_traceback(here, capsys):
    assert run("design", "--data", "nowhere.npz", "--quiet", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "under a minute"), (59, "under a minute"), (140, "about 2 min")]
)
def test_the_time_announced(monkeypatch, seconds, said):
    from spikedim.cli import job
    from spikedim.data import load_dataset
    from spikedim.training import default_config

    notes = []
    monkeypatch.setattr(job, "predict_seconds", lambda *_, **__: seconds)
    monkeypatch.setattr(job.progress, "note", notes.append)
    data = load_dataset("digits")
    asked = job.Job(data, data, "spikformer_nano", default_config("spikformer_nano", data))
    asked.announce((1, 2), 1)
    assert notes == [f"Training spikformer_nano on digits at T = 1, 2: {said} here."]
