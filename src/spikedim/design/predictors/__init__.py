"""Predictors of T*: one interface, one list, the same intervals for all."""

from __future__ import annotations

from difflib import get_close_matches
from typing import get_args

from spikedim.design.predictors.base import (
    CONFIDENCE,
    Calibrated,
    Fitted,
    Needs,
    Prediction,
    Predictor,
    calibrate,
    conformal,
)
from spikedim.design.predictors.pilot import PILOT
from spikedim.design.predictors.pooled import POOLED
from spikedim.design.predictors.rules import EPSILON, RULES
from spikedim.errors import ConfigError

#: Every predictor, in order of what it needs: the cheapest first.
PREDICTORS: tuple[Predictor, ...] = tuple(
    sorted((*RULES, *POOLED, *PILOT), key=lambda p: get_args(Needs).index(p.needs))
)

__all__ = [
    "CONFIDENCE",
    "EPSILON",
    "PREDICTORS",
    "Calibrated",
    "Fitted",
    "Needs",
    "Prediction",
    "Predictor",
    "calibrate",
    "conformal",
    "get_predictor",
]


def get_predictor(name: str) -> Predictor:
    """The predictor called ``name``.

    Raises:
        ConfigError: unknown name.
    """
    for predictor in PREDICTORS:
        if predictor.name == name:
            return predictor
    names = [predictor.name for predictor in PREDICTORS]
    near = get_close_matches(name, names) or names
    raise ConfigError(f"predictor {name!r} is unknown; choose one of {', '.join(near)}")
