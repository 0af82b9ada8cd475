"""The answer of a precheck: whether a stream loads, and the findings in words or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..console.text import echo
from .facts import Facts
from .findings import Finding
from .rules import compare
from .wording import describe


@dataclass(frozen=True)
class Report:
    """The findings of a comparison."""

    findings: Sequence[Finding]

    @classmethod
    def of(cls, a: Facts, b: Facts) -> Report:
        """Return the report on a stream of A that B would load."""
        return cls(compare(a, b))

    def and_also(self, more: Sequence[Finding]) -> Report:
        """Return the report with more findings."""
        return Report([*self.findings, *more])

    @property
    def loads(self) -> bool:
        """Return whether nothing was found that keeps the stream from loading."""
        return not any(finding.fatal for finding in self.findings)

    def print(self) -> None:
        """Print the answer, then a line for each finding, those that are no obstacle last."""
        fatal = [finding for finding in self.findings if finding.fatal]
        if fatal:
            hint = "; in brackets: what to say at B's start" * any(each.option for each in fatal)
            echo(f"would not load ({len(fatal)} to mend{hint})")
        else:
            echo("would load")
        for finding in fatal:
            echo(f"  {describe(finding)}")
        for finding in self.findings:
            if not finding.fatal:
                echo(f"  note: {describe(finding)}")

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary with the keys loads and findings."""
        return {"loads": self.loads, "findings": [each.as_json() for each in self.findings]}
