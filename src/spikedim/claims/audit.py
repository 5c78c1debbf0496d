"""Check claims and put the verdicts side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spikedim.claims.registry import (
    VERDICTS,
    ClaimResult,
    Effort,
    Measurement,
    Verdict,
    get_claim,
    list_claims,
)
from spikedim.progress import task
from spikedim.provenance import Provenance, provenance
from spikedim.results import Result, Table

_DETAILED = 4


@dataclass(frozen=True)
class Audit(Result):
    """Verdicts of several claims.

    Attributes:
        results: one per claim.
        effort, seed: how they were checked.
        provenance: versions and settings.
    """

    results: tuple[ClaimResult, ...]
    effort: Effort
    seed: int
    provenance: Provenance = field(repr=False)

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many claims have each verdict."""
        found = Counter(result.verdict for result in self.results)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def seconds(self) -> float:
        """Time of all checks."""
        return sum(result.seconds for result in self.results)

    @property
    def headline(self) -> str:
        """The counts in one line."""
        counted = ", ".join(f"{count} × {verdict}" for verdict, count in self.counts.items())
        return f"Claims: {counted}"

    def tables(self) -> list[Table]:
        """One row per claim; for few claims also every measurement."""
        rows = [(r.id, r.verdict, decisive(r), r.seconds) for r in self.results]
        note = f"--{self.effort}, seed {self.seed}, {self.seconds:.0f} s. `spikedim audit ID` shows"
        summary = Table(
            self.headline,
            ("claim", "verdict", "what decides", "s"),
            rows,
            (f"{note} every number behind a verdict.",),
        )
        if len(self.results) > _DETAILED:
            return [summary]
        return [summary, *(table for result in self.results for table in result.tables())]

    def markdown(self) -> str:
        """The audit as a Markdown page: summary, then every claim with its numbers."""
        versions = ", ".join(f"{name} {text}" for name, text in self.provenance.versions.items())
        lines = [
            "# Published claims, checked",
            "",
            f"Written by `spikedim audit --{self.effort}`; do not edit. {self.headline}.",
            f"Seed {self.seed}; {versions}; checks took {self.seconds:.0f} s.",
            "",
            "A verdict is computed from the numbers: *holds* when every test of the claim as "
            "stated agrees; *not testable here* when none contradicts it but some are undecided; "
            "where one contradicts it, *holds after correction* when every test of the corrected "
            "form agrees, else *fails*. A test agrees when its interval meets the allowed "
            "range, or lies within it where the range says *all of it*; there, an interval that "
            "lies partly within is *undecided*, as is everywhere one without an upper end whose "
            "value is outside, and a measurement that found no number. Rows of *context* decide "
            "nothing. Intervals are 95 % unless said otherwise.",
            "",
            *Table(
                "",
                ("claim", "verdict", "what decides"),
                [(f"[{r.id}](#{r.id.lower()})", r.verdict, decisive(r)) for r in self.results],
            ).to_markdown(),
        ]
        for result in self.results:
            (table,) = result.tables()
            lines += ["", f"## {result.id}", "", f"**{result.verdict}**"]
            lines += [line for note in table.notes for line in ("", note)]
            if table.rows:
                lines += ["", *table.to_markdown()]
            lines += ["", f"Cost {result.seconds:.1f} s."]
        return "\n".join(lines) + "\n"


def audit(
    ids: Sequence[str] = (),
    effort: Effort = "quick",
    seed: int = 0,
    data_root: Path | None = None,
) -> Audit:
    """Check claims live.

    Args:
        ids: claims to check; all of them when empty.
        effort: ``"quick"`` or ``"full"``.
        seed: of every random draw.
        data_root: folder of the data samples; ``None`` for SPIKEDIM_DATA.

    Raises:
        ConfigError: unknown id or effort.
    """
    chosen = list(dict.fromkeys(map(get_claim, ids))) or list_claims()
    results = []
    with task("audit", len(chosen)) as bar:
        for item in chosen:
            bar.advance(0, item.id)
            results.append(item.run(effort, seed, data_root))
            bar.advance(1, item.id)
    config = {"ids": [item.id for item in chosen], "effort": effort}
    return Audit(tuple(results), effort, seed, provenance(seed=seed, config=config))


def decisive(result: ClaimResult) -> str:
    """The measurements that settled the verdict, in one line."""
    if result.reason:
        return result.reason
    stated = [m for m in result.measurements if m.form == "stated"]
    corrected = [m for m in result.measurements if m.form == "corrected"]
    against = _against(stated)
    shown = (against or stated)[:1]
    if against:
        shown += (_against(corrected) or corrected)[:1]
    return "; ".join(_sentence(m) for m in shown)


def _against(tests: Sequence[Measurement]) -> list[Measurement]:
    """Tests that contradict, else those that are undecided."""
    return [m for m in tests if m.passes is False] or [m for m in tests if not m.passes]


def _sentence(item: Measurement) -> str:
    prefix = "corrected: " if item.form == "corrected" else ""
    return f"{prefix}{item.name}: {item.measured} (allowed {item.allowed})"
