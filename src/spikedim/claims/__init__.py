"""Published claims, each with a live check: ``audit()``, ``get_claim(id).run()``, ``@claim``."""

from spikedim.claims import (  # noqa: F401, I001  (imported for their claims, in this order)
    circuits,
    bounds,
    dimension,
    rules,
    energy,
    ntk,
)
from spikedim.claims.audit import Audit, audit
from spikedim.claims.registry import (
    VERDICTS,
    Claim,
    ClaimResult,
    Measurement,
    NotTestable,
    Setting,
    Verdict,
    claim,
    get_claim,
    judge,
    list_claims,
)

__all__ = [
    "VERDICTS",
    "Audit",
    "Claim",
    "ClaimResult",
    "Measurement",
    "NotTestable",
    "Setting",
    "Verdict",
    "audit",
    "claim",
    "get_claim",
    "judge",
    "list_claims",
]
