from dataclasses import replace

import pytest

from spikedim.design.cases import Case
from spikedim.design.document import answer, document
from spikedim.design.validation import pooled_seeds, seed_noise, validate
from spikedim.results import plain
from study_cases import case

DATA, NETS = "abcd", "mno"


def study(t_of=lambda d, m, s: 4, seeds=(0, 1)) -> list[Case]:
    return [case(d, m, s, t_of(d, m, s)) for d in DATA for m in NETS for s in seeds]


def test_seeds_are_draws_of_one_recipe_not_of_one_place():
    small = study(lambda d, m, s: (2, 4)[s])
    large = [replace(c, train_samples=5000) for c in study(lambda d, m, s: 8, seeds=(0,))]
    assert seed_noise([*small, *large]) == pytest.approx(1)
    assert seed_noise(large) is None
    assert len(pooled_seeds([*small, *large])) == 24
    for change in ({"classes": 4}, {"image_size": 16}, {"threshold": 0.5}, {"train_samples": 9}):
        assert replace(small[0], **change).recipe != small[0].recipe
        assert replace(small[0], **change).place == small[0].place
    assert small[0].recipe == small[1].recipe


def test_recipes_of_one_place_are_cases_of_their_own():
    small = study(seeds=(0,))
    large = [replace(c, train_samples=5000) for c in small]
    found = validate([*small, *large])
    assert (found.cases, found.places) == (24, 12)
    assert {s.n for s in found.of("data set")} == {24}
    assert {p.difference.n for p in found.paired} == {24}


def test_a_page_judges_its_variants_and_names_those_that_are_too_small():
    cases = study()
    extra = replace(cases[0], train_samples=5000)
    variants = {"`few` alone": cases[:3], "`half` alone": [c for c in cases if c.seed == 0]}
    page = document([*cases, extra], variants, [], None, None, "make it")
    (few,) = [line for line in page.splitlines() if "`few` alone" in line]
    assert few.startswith("Not judged: `few` alone: cases of 1 data sets")
    assert (
        len([line for line in page.splitlines() if line.startswith("| `half` alone | 12 |")]) == 2
    )
    assert "| seeds pooled, one case per recipe | 13 |" in page
    assert "25 cases (a data set, a network, a recipe and a seed) in 12 places" in page
    assert "1 to 2 seeds per recipe" in page


def test_a_threshold_that_is_not_known_is_not_made_up():
    kept = replace(study()[0], threshold=None)
    known = replace(kept, threshold=0.5)
    assert Case.from_dict(plain(kept)) == kept
    assert Case.from_dict({**plain(kept), "threshold": 0.0}) == kept
    assert kept.recipe != known.recipe
    page = document([*study(), kept, known], {}, [], None, None, "x")
    assert "not varied (v_th = 0.5, 1, not known)" in page


def test_a_case_of_another_grid_says_its_own():
    cases = study()
    truth = cases[0].truth
    fewer = replace(
        truth, steps=truth.steps[:4], accuracy=truth.accuracy[:4], fitted=truth.fitted[:4]
    )
    page = document([*cases, replace(cases[0], seed=7, outcome=fewer)], {}, [], None, None, "x")
    assert "| T = 1, 2, 3, 4: 84.0, 86.0, 88.0, 90.0 |" in page


def test_ends_of_the_grid_explain_an_interval_that_holds_all():
    def ends(cases):
        found = validate(cases)
        said = [line for line in answer(found, cases) if line.startswith("90 % intervals")]
        assert all(line == line.strip() for line in said)
        full = [s.coverage.value for fold in ("data set", "architecture")
                for s in found.of(fold) if s.predictor == "recommended"]  # fmt: skip
        return [("both ends" in line, value > 97) for line, value in zip(said, full, strict=True)]

    spread = ends(study(lambda d, m, s: (1, 8, 4, 8, 1, 2)[(NETS.index(m) + 2 * s) % 6]))
    assert any(full for _, full in spread)
    assert all(said == full for said, full in spread)
    steady = ends(study())
    assert all(full and not said for said, full in steady)
