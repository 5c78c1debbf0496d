"""Where the published effective dimensions could come from: a search, and what it finds."""

from spikedim.design.published.explain import explain_published
from spikedim.design.published.explanation import Explanation

__all__ = ["Explanation", "explain_published"]
