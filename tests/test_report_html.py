import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from spikedim.data import load_dataset
from spikedim.design.plan import Plan
from spikedim.design.planner import design
from spikedim.errors import DataError, StorageError
from spikedim.neurons import LIFParams
from spikedim.profiling import Finding
from spikedim.provenance import provenance
from spikedim.report import from_run, render, render_dict, write_report
from spikedim.results import Estimate
from spikedim.storage import write_json
from spikedim.theory import wilson_interval
from spikedim.training import NeuronPoint, NeuronSweep, TimestepPoint, TimestepSweep

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def text(self, tag):
        return " ".join(" ".join(data for name, data in self.texts if name == tag).split())

    @property
    def said(self):
        """Everything a person reads."""
        kept = " ".join(data for name, data in self.texts if name not in ("script", "style"))
        return " ".join(kept.split())


def embedded(source: str, name: str):
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', source)
    return json.loads(found[1])


def percent(hits: int, n: int = 60) -> Estimate:
    low, high = wilson_interval(hits, n)
    return Estimate(100 * hits / n, 100 * low, 100 * high, n, "%", method="Wilson")


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A real plan of an untrained network."""
    dataset = load_dataset("digits").limited(200, 60, seed=0)
    return design(dataset, "spikformer_tiny", profile_samples=8)


@pytest.fixture(scope="module")
def verified(plan) -> Plan:
    """The same plan with sweeps, faults and several operating points."""
    profile = plan.operating[0].profile
    count = Estimate(900.0, 850.0, 950.0, 60, "spikes")
    rate = Estimate(0.1, 0.09, 0.11, 60, "spikes/neuron/step")
    gates = (
        Finding("saturated", "warning", profile.layers[1].name, "fires at every step", "raise it"),
        Finding("dead", "error", profile.layers[0].name, "no spike", "lower the threshold"),
        *[Finding("real-input", "note", f"layer{i}", "real values", "add LIF") for i in range(7)],
    )
    hits = {1: 50, 2: 55, 4: 56}
    points = tuple(
        TimestepPoint(T, percent(k), count, rate, 3.0, 5, T, Path("x"), np.arange(60) < k)
        for T, k in hits.items()
    )
    origin = provenance(seed=0)
    t_star = Estimate(2.0, 2.0, None, 60, "timesteps")
    plateau = Estimate(93.0, 90.0, 95.0, 60, "%")
    fitted, odds = (83.3, 91.7, 93.3), (0.1, 0.7, 0.2)
    sweep = TimestepSweep(
        "digits",
        "spikformer_tiny",
        "train",
        "direct",
        points,
        1.0,
        plateau,
        t_star,
        fitted,
        odds,
        True,
        None,
        ("T = 4 may not be the end.",),
        origin,
    )
    tried = [("threshold", 0.5, 54), ("threshold", 1.0, 55), ("beta", 0.5, 55), ("beta", 0.75, 53)]
    neurons = NeuronSweep(
        "digits",
        "spikformer_tiny",
        2,
        LIFParams(),
        tuple(
            NeuronPoint(name, value, value != 0.75, percent(k), count, rate, None, 3.0, Path("x"))
            for name, value, k in tried
        ),
        origin,
    )
    operating = tuple(
        dataclasses.replace(
            plan.operating[0],
            timesteps=T,
            accuracy=percent(k),
            profile=dataclasses.replace(profile, T=T, gates=gates),
        )
        for T, k in hits.items()
    )
    return dataclasses.replace(
        plan,
        verdict=("Use T = 2.", "It agrees."),
        agreement="agrees",
        recommendation=dataclasses.replace(plan.recommendation, timesteps=t_star, basis="measured"),
        operating=operating,
        recommended=operating[1],
        sweep=sweep,
        neurons=neurons,
    )


@pytest.fixture(scope="module")
def pages(plan, verified) -> dict[str, str]:
    return {"plan": render(plan), "verified": render(verified)}


@pytest.fixture(params=["plan", "verified"])
def source(request, pages) -> str:
    return pages[request.param]


def test_page_asks_for_nothing_from_outside(source):
    page = Page(source)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
        assert "url(" not in (attributes.get("style") or "")
    style = page.text("style")
    assert "url(" not in style
    assert "@import" not in style
    policy = next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    assert not any("http" in rule or "*" in rule for rule in allowed.values())


def test_embedded_numbers_equal_the_plan(plan, verified, pages):
    assert embedded(pages["plan"], "plan") == json.loads(json.dumps(plan.to_dict()))
    assert embedded(pages["verified"], "plan") == json.loads(json.dumps(verified.to_dict()))


def test_same_plan_same_page(plan, pages):
    assert render(plan) == pages["plan"] == render_dict(plan.to_dict())


def test_a_sweep_at_chance_is_an_alarm_whatever_the_recommended_point_reached(verified, pages):
    alarm = "not distinguishable from always answering the most frequent class"
    assert alarm not in pages["verified"]
    sweep = verified.sweep
    points = tuple(dataclasses.replace(point, accuracy=percent(7)) for point in sweep.points)
    guessing = dataclasses.replace(sweep, points=points)
    assert alarm in render(dataclasses.replace(verified, sweep=guessing))


def test_page_is_accessible(source):
    page = Page(source)
    assert page.open == []
    assert page.elements[0] == ("html", {"lang": "en"})
    assert "spikformer_tiny on digits" in page.text("title")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    plots = [a for a in page.all("div") if a.get("class") == "plot"]
    assert plots
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in plots)
    assert len(page.all("figcaption")) == len(plots) == len(embedded(source, "figures")["specs"])
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    pointed = {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a}
    assert pointed <= set(names)


def test_verdict_comes_first_and_provenance_last(verified, pages):
    said = Page(pages["verified"]).said
    parts = [
        "Use T\xa0=\xa02.",
        "Settings to use",
        "Accuracy and timesteps",
        "What accuracy costs",
        "Effective dimension of the data",
        "Firing rate by layer",
        "Energy by convention",
        "Neuron settings tried",
        "The theory beside the measurement",
        "Findings and warnings",
        "Where these numbers come from",
    ]
    places = [said.index(" ".join(part.split())) for part in parts]
    assert places == sorted(places)
    for fact in (verified.data.fingerprint, verified.provenance.versions["torch"]):
        assert fact in said


def test_sections_without_measurements_are_left_out(pages):
    drawn = embedded(pages["plan"], "figures")["specs"]
    assert drawn.keys() == {"tradeoff", "scree", "cumulative", "rates", "energy"}
    said = Page(pages["plan"]).said
    assert "Accuracy was not measured" in said
    assert "What each predictor says" in said
    assert "Neuron settings tried" not in said


def test_estimates_carry_interval_unit_convention_and_n(verified, pages):
    said = Page(pages["verified"]).said
    accuracy = verified.operating[1].accuracy
    assert f"{accuracy.low:.1f} to {accuracy.high:.1f}, n = 60" in said.replace("\xa0", " ")
    assert "2 or more" in said
    for energy in verified.operating[1].profile.energy:
        assert f"energy per sample, {energy.convention}" in said
        assert energy.scope.split(": ", 1)[1].split()[0] in said


def test_faults_come_first_and_alike_ones_share_a_line(pages):
    said = Page(pages["verified"]).said
    assert "Read the findings first: 1 fault (dead)" in said
    assert said.index("error: dead") < said.index("warning: saturated")
    assert "layer0, layer1, layer2, layer3 and 3 more" in said
    assert "Read the findings first" not in Page(pages["plan"]).said


def test_accuracy_at_chance_is_said_beside_the_headline(verified, pages):
    assert "most frequent class" not in Page(pages["verified"]).said
    points = tuple(dataclasses.replace(p, accuracy=percent(7)) for p in verified.operating)
    doubtful = dataclasses.replace(verified, operating=points, recommended=points[1])
    said = Page(render(doubtful)).said
    assert "always answering the most frequent class (10 %)" in said


def test_recommended_rows_are_highlighted(pages):
    rows = [a for a in Page(pages["verified"]).all("tr") if a.get("class") == "chosen"]
    assert len(rows) == 1 + 1 + 2  # operating point, best predictor, neuron settings


def test_hostile_names_stay_text(verified):
    hostile = dataclasses.replace(
        verified,
        verdict=(HOSTILE, HOSTILE),
        data=dataclasses.replace(verified.data, name=HOSTILE, source=HOSTILE),
        model=dataclasses.replace(verified.model, name=HOSTILE, state=HOSTILE),
        provenance=dataclasses.replace(
            verified.provenance, command=HOSTILE, config={HOSTILE: HOSTILE}
        ),
    )
    source = render(hostile)
    page, usual = Page(source), Page(render(verified))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in usual.elements]
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert embedded(source, "plan") == json.loads(json.dumps(hostile.to_dict()))
    assert "alert(1)" in page.text("title")


def test_small_energies_are_shown_without_exponents_and_stored_as_they_are(plan):
    data = plan.to_dict()
    for energy in [
        *data["operating"][0]["profile"]["energy"],
        data["operating"][0]["profile"]["dense"],
    ]:
        for key in ("value", "low", "high"):
            if energy["total"][key] is not None:
                energy["total"][key] *= 1e-3
    source = render_dict(data)
    assert "µJ" in Page(source).said
    assert embedded(source, "plan") == data


def test_report_of_a_stored_run_equals_that_of_the_plan(verified, pages, tmp_path):
    path = write_json(tmp_path / "results.json", verified)
    assert from_run(tmp_path) == from_run(path) == pages["verified"]


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, StorageError, "no result at"),
        ("{", StorageError, "cannot read"),
        ("[1, 2]", DataError, "not the result of"),
        ("{}", DataError, "has no"),
        ('{"verdict": 3, "operating": []}', DataError, "not a spikedim plan"),
    ],
)
def test_unusable_results_give_one_clear_line(tmp_path, content, error, said):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(error, match=said) as caught:
        from_run(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("given", ["", "fit.json"])
def test_a_run_of_another_verb_is_named(tmp_path, given):
    (tmp_path / "run.yaml").write_text("command: train\ndata: digits\n")
    (tmp_path / "fit.json").write_text("{}")
    said = r"run\.yaml is of a run of `spikedim train`.*same `spikedim train` command again"
    with pytest.raises(StorageError, match=said) as caught:
        from_run(tmp_path / given)
    assert str(tmp_path) in str(caught.value)


def test_an_unfinished_design_is_told_to_go_on(tmp_path):
    (tmp_path / "run.yaml").write_text("command: design\n")
    with pytest.raises(StorageError, match=r"run\.yaml.*not finished.*same command again"):
        from_run(tmp_path)


OPTIONAL = {"target", "inversion"}  # plans of earlier versions have no inversion


@pytest.mark.parametrize(
    "key", [f.name for f in dataclasses.fields(Plan) if f.name not in OPTIONAL]
)
def test_damaged_plan_is_refused(plan, key):
    data = plan.to_dict()
    del data[key]
    with pytest.raises(DataError, match="spikedim design"):
        render_dict(data)


def test_report_is_written_whole_or_not_at_all(plan, pages, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "report.html"
    assert write_report(plan, path) == path
    assert path.read_text(encoding="utf-8") == pages["plan"]

    with pytest.raises(DataError):
        write_report({}, path)

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StorageError, match="no disk space"):
        write_report(plan, path)
    assert path.read_text(encoding="utf-8") == pages["plan"]
    assert os.listdir(path.parent) == ["report.html"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_browser_draws_every_figure_and_complains_of_nothing(pages, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(pages["verified"], encoding="utf-8")
    done = subprocess.run(
        [
            *[
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--dump-dom",
            ],
            *["--enable-logging=stderr", "--virtual-time-budget=8000"],
            f"--user-data-dir={tmp_path / 'profile'}",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    drawn = re.findall(
        r'id="plot-(\w+)"[^>]*js-plotly-plot|js-plotly-plot[^>]*id="plot-(\w+)"', done.stdout
    )
    assert {a or b for a, b in drawn} == set(embedded(pages["verified"], "figures")["specs"])
