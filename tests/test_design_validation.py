import numpy as np
import pytest

from spikedim.design.cases import cases_from_rows
from spikedim.design.predictors import PREDICTORS, Calibrated, Predictor, get_predictor
from spikedim.design.validation import (
    LEAST,
    RECOMMENDED,
    RECOMMENDED_FREE,
    compare,
    held_out,
    pooled_seeds,
    select,
    share_over_places,
    validate,
)
from spikedim.errors import DataError
from spikedim.theory import wilson_interval
from study_cases import case, rows

DATA, NETS = "abcd", "mno"


def grid_of(t_of, d_of, **options):
    return [
        case(d, m, s, t_of(d, m), d_of(d), **options) for d in DATA for m in NETS for s in (0, 1)
    ]


def score(found, name, fold="data set"):
    return next(s for s in found.of(fold) if s.predictor == name)


def test_the_rule_wins_where_the_rule_made_the_data():
    dimension = {"a": 11.0, "b": 32.0, "c": 65.0, "d": 87.0}
    rule = {"a": 2, "b": 3, "c": 6, "d": 8}  # ceil(2.3 d / 25) but for the grid
    cases = grid_of(lambda d, m: rule[d], lambda d: dimension[d], pilot=False)
    found = validate(cases)
    assert score(found, "published").error.value < 0.2
    assert score(found, "median").error.value > score(found, "published").error.value
    assert found.of("data set")[0].error.value <= score(found, "published").error.value
    assert score(found, "published-fraction").error.value > 5


def test_the_constant_of_the_data_wins_where_dimension_does_not_matter():
    dimension = {"a": 11.0, "b": 100.0, "c": 200.0, "d": 400.0}
    found = validate(grid_of(lambda d, m: 2, lambda d: dimension[d], pilot=False))
    best = score(found, RECOMMENDED)
    assert best.error.value == 0
    assert best.coverage.value == 100
    paired = {(p.fold, p.first, p.second): p for p in found.paired}
    assert paired["data set", RECOMMENDED, "constant"].better
    assert paired["data set", RECOMMENDED, "published"].better
    assert paired["data set", RECOMMENDED, "constant"].difference.value == -1


def test_nothing_of_the_held_out_fold_enters_its_prediction():
    dimension = {"a": 11.0, "b": 32.0, "c": 65.0, "d": 87.0}
    steady = {"a": 2, "b": 3, "c": 4, "d": 6}
    cases = grid_of(lambda d, m: steady[d], lambda d: dimension[d])
    spoiled = grid_of(lambda d, m: 8 if d == "b" else steady[d], lambda d: dimension[d])
    spoiled = [
        s if s.dataset != "b" else type(s)(**{**vars(s), "pilot": c.pilot})
        for s, c in zip(spoiled, cases, strict=True)
    ]
    for predictor in PREDICTORS:
        before = held_out(cases, "data set", [predictor])
        after = held_out(spoiled, "data set", [predictor])
        said = [[t.prediction for t in found if t.case.dataset == "b"] for found in (before, after)]
        assert said[0] == said[1]
        assert len(said[0]) > 0 or predictor.name == "rate-noise"


def test_paired_interval_draws_places_not_seeds():
    cases = [case(d, "m", s, t) for d, t in zip("abc", (2, 4, 8), strict=True) for s in range(5)]
    judged = [get_predictor(name) for name in ("constant", "published")]
    trials = held_out(cases, "data set", judged)
    found = compare(trials, "published", "constant", "data set").difference
    gaps = [abs(np.log2(3 / t)) - abs(np.log2(4 / t)) for t in (2, 4, 8)]
    assert found.value == pytest.approx(np.mean(gaps))
    assert found.low == pytest.approx(min(gaps))
    assert found.high == pytest.approx(max(gaps))


def test_a_study_gives_a_full_score_board():
    table, outputs = rows(n=200)
    cases = cases_from_rows(table, outputs, 1.0)
    found = validate(cases)
    names = {p.name for p in PREDICTORS} | {RECOMMENDED, RECOMMENDED_FREE, LEAST}
    for fold in ("data set", "architecture"):
        assert {s.predictor for s in found.of(fold)} == names
        errors = [s.error.value for s in found.of(fold)]
        assert errors == sorted(errors)
        for s in found.of(fold):
            assert s.n == len(cases)
            assert s.error.low <= s.error.value <= s.error.high
    assert score(found, "readout").accuracy_error is not None
    assert score(found, "constant").loss_error is None
    assert len(pooled_seeds(cases)) == found.places == 12
    assert "mean abs" in str(found)


def test_the_cheapest_predictor_within_the_noise_is_recommended():
    def ready(name, errors):
        places = tuple((d, "m") for d in "abcdefgh")
        ratios = np.array(errors)
        return Calibrated(Predictor(name, "nothing", "", None), None, ratios, places, {}, 8)

    cheap = ready("cheap", [1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.3, 0.7])
    lucky = ready("lucky", [0.9, 1.2, 0.7, 1.0, 1.1, 0.6, 0.9, 1.5])
    sure = ready("sure", [0.1, 0.1, 0.0, 0.2, 0.1, 0.0, 0.1, 0.1])
    assert select([cheap, lucky]).predictor.name == "cheap"
    assert select([cheap, lucky, sure]).predictor.name == "sure"
    assert select([sure, cheap]).predictor.name == "sure"
    with pytest.raises(DataError):
        select([])


def test_too_few_data_sets_are_one_clear_error():
    with pytest.raises(DataError, match="data set"):
        validate([case("a", m, 0, 2) for m in NETS] + [case("b", m, 0, 2) for m in NETS])


def test_the_interval_of_a_share_covers_where_seeds_hit_together():
    """19 places of 1 to 6 seeds that mostly agree; 4 standard errors of 600 draws are 0.035."""
    rng = np.random.default_rng(0)
    sizes = [6, 6, 6, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 1, 1, 1, 1, 1]
    index = np.repeat(np.arange(len(sizes)), sizes)
    places = [("data", str(k)) for k in index]
    covered = alone = 0
    for _ in range(600):
        shared, own = rng.standard_normal(len(sizes))[index], rng.standard_normal(len(index))
        hits = np.sqrt(0.7) * shared + np.sqrt(0.3) * own < 1.2816  # 90 % hit
        share, low, high = share_over_places(hits.tolist(), places)
        assert share == hits.mean()
        covered += low <= 0.9 <= high
        low, high = wilson_interval(int(hits.sum()), len(hits))
        alone += low <= 0.9 <= high
    assert covered / 600 > 0.89
    assert alone / 600 < 0.88


def test_a_share_of_all_or_of_one_place():
    places = [("data", str(k // 3)) for k in range(12)]
    assert share_over_places([True] * 12, places) == (1.0, *wilson_interval(4, 4))
    one_each = [("data", str(k)) for k in range(12)]
    hits = [k % 4 > 0 for k in range(12)]
    _, low, high = share_over_places(hits, one_each)
    assert (low, high) == pytest.approx(wilson_interval(9, 12), abs=0.02)
    assert share_over_places([True, False], places[:2]) == (0.5, 0.0, 1.0)
