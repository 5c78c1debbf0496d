"""The examples of the docstrings give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import spikedim
from spikedim.adapters import registry
from spikedim.data import representations

OPTIONAL = {"triton"}  # packages without which a module cannot be imported


def modules():
    for found in pkgutil.walk_packages(spikedim.__path__, "spikedim."):
        if found.name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise


EXAMPLES = {
    example.name: example
    for module in modules()
    for example in doctest.DocTestFinder(exclude_empty=True).find(module)
    if example.examples
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, monkeypatch):
    monkeypatch.setattr(representations, "_REGISTRY", dict(representations._REGISTRY))
    monkeypatch.setattr(registry, "_CUSTOM", dict(registry._CUSTOM))
    said: list[str] = []
    outcome = doctest.DocTestRunner().run(EXAMPLES[name], out=said.append)
    assert outcome.failed == 0, "".join(said)
