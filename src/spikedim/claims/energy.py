"""Claims about energy."""

from __future__ import annotations

from spikedim.claims import networks
from spikedim.claims.literature import ANN_TABULATED_MJ, DIGEST, PRICES, VIT_B_GMAC
from spikedim.claims.registry import Measurement, Setting, claim
from spikedim.profiling import profile
from spikedim.profiling.baselines import DENSE_MAC_PJ
from spikedim.results import Estimate

LOW, HIGH = 38.0, 57.0
#: The rule of the papers, the exact count, the audited paper's price per spike, and with traffic.
_CONVENTIONS = ("paper-sop", "exact-fanout", "spike-only", "with-memory")


@claim(
    "ENERGY-38-57",
    statement="Spiking transformers use 38 to 57 times less energy than a ViT-B/16 (17.6 mJ "
    "against 0.46 to 0.31 mJ).",
    source=DIGEST,
    expression="E_ANN/E_SNN",
    formula=lambda ann, snn: ann / snn,
)
def energy(setting: Setting) -> list[Measurement]:
    """The ratio with each network's own published energy, and of a transformer measured here."""
    ann = VIT_B_GMAC * DENSE_MAC_PJ
    rows = [
        Measurement(
            f"ViT-B/16 ({ann:.1f} mJ) / {p.network} ({p.own:g} mJ by its own paper)",
            Estimate(setting.formula(ann, p.own)),
            LOW,
            HIGH,
        )
        for p in PRICES
    ]
    rows += [
        Measurement(
            f"as tabulated, {ANN_TABULATED_MJ:g} mJ / {p.network} ({p.tabulated:g} mJ)",
            Estimate(setting.formula(ANN_TABULATED_MJ, p.tabulated)),
            form="context",
        )
        for p in PRICES
    ]
    x, _ = networks.digits().tensors("test", setting.pick(32, 128), setting.seed)
    network = networks.network(setting.effort == "full", seed=setting.seed)
    found = profile(network, x, 4, _CONVENTIONS)
    rows += [
        Measurement(
            f"{c.baseline} of the same shapes / spikformer_nano on digits, {c.convention}",
            Estimate(setting.formula(c.baseline_energy, c.energy)),
            form="context",
        )
        for c in found.comparisons
    ]
    return rows
