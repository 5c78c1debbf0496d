"""Energy conventions are validated data."""

from dataclasses import FrozenInstanceError, asdict

import pytest
import yaml

from spikedim.errors import ConfigError
from spikedim.profiling import EnergyConvention, convention, list_conventions


def test_shipped_conventions_state_everything():
    names = list_conventions()
    assert {"paper-sop", "exact-fanout"} <= set(names)
    for name in names:
        rule = convention(name)
        assert rule.name == name
        for text in (rule.description, rule.technology, rule.source):
            assert text
        assert rule.includes
        assert rule.excludes
        for part in ("pJ per ", rule.technology, rule.source):
            assert part in rule.scope


def test_constants_are_those_of_the_reference_table(shared):
    table = (shared / "energy_constants.csv").read_text().splitlines()
    mac = next(row for row in table if row.startswith("E_MAC"))
    accumulate = next(row for row in table if row.startswith("E_AC"))
    energy = convention("paper-sop").energy
    assert float(mac.split(",")[1]) == energy.mac
    assert float(accumulate.split(",")[1]) == energy.accumulate


def test_user_convention_by_path_and_by_value(tmp_path):
    fields = asdict(convention("paper-sop")) | {"name": "mine", "integers": "dense-mac"}
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()})
    )
    rule = convention(path)
    assert isinstance(rule, EnergyConvention)
    assert (rule.name, rule.integers) == ("mine", "dense-mac")
    assert convention(rule) is rule
    with pytest.raises(FrozenInstanceError):
        rule.name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"integers": "maybe"}, "integers"),
        ({"energy": {"mac": -1}}, r"energy\.mac"),
        ({"energy": {"mac": float("inf")}}, r"energy\.mac"),
        ({"voltage": 1}, "voltage"),
        ({"name": ""}, "name"),
    ],
)
def test_faulty_file_names_the_field(tmp_path, change, message):
    fields = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in asdict(convention("paper-sop")).items()
    }
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(fields | change))
    with pytest.raises(ConfigError, match=message) as caught:
        convention(path)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_unreadable(tmp_path):
    with pytest.raises(ConfigError, match=r"'papersop'.*paper-sop"):
        convention("papersop")
    with pytest.raises(ConfigError, match="cannot read"):
        convention(tmp_path / "absent.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("{a: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        convention(path)
    path.write_text("")
    with pytest.raises(ConfigError, match="whole file"):
        convention(path)
