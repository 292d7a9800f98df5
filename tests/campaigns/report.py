# SPDX-License-Identifier: Apache-2.0
"""What a campaign found: tables, and rules that hold or do not."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ocdserve.perf.report.tables import Table, environment_rows
from ocdserve.perf.report.text import table_markdown, table_text
from ocdserve.perf.series.environment import Environment
from tests.campaigns.clients import Tally


@dataclass(frozen=True)
class Rule:
    """Something that must hold: the rule in words, what was found, and whether it holds."""

    text: str
    found: str
    held: bool


@dataclass
class Report:
    """What a campaign found, as it is found.

    Attributes:
        name: Of the campaign.
        summary: What it does, in a sentence.
        command: Its arguments.
        rules: What must hold.
        tables: Everything else.
    """

    name: str
    summary: str
    command: str
    rules: list[Rule] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    environment: Environment = field(default_factory=Environment.current)

    @property
    def held(self) -> bool:
        """Whether all rules hold, of which there are some."""
        return bool(self.rules) and all(rule.held for rule in self.rules)

    def say(self, message: str) -> None:
        """Print a line of progress."""
        seconds = time.time() - self.started
        print(f"[{seconds:6.0f} s] {message}", file=sys.stderr, flush=True)  # noqa: T201

    def rule(self, text: str, found: object, held: bool) -> None:
        """Record a rule and whether it holds."""
        self.rules.append(Rule(text, str(found), held))
        self.say(f"{'holds' if held else 'DOES NOT HOLD'}: {text}: {found}")

    def most(self, text: str, value: float, limit: float, unit: str = "") -> None:
        """Record a rule that a value is at most a limit."""
        self.rule(f"{text}: at most {limit:.4g}{unit}", f"{value:.4g}{unit}", value <= limit)

    def equal(self, text: str, value: object, expected: object) -> None:
        """Record a rule that a value is the expected one."""
        self.rule(f"{text}: none" if not expected else f"{text}: {expected}", value or "none", value == expected)

    def answered(self, tally: Tally, expected: int = 1) -> None:
        """Record the rules that every good request was answered rightly, and that there are at least `expected`."""
        others = len(tally.answers) - tally.right
        self.rule("good requests without a right answer: none", f"{others} of {len(tally.answers)}", others == 0)
        self.rule(f"right answers: at least {expected}", tally.right, tally.right >= expected)

    def table(
        self, title: str, headers: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1
    ) -> None:
        """Record a table; numbers with a fraction are shown with three digits."""
        shown = [tuple(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) for row in rows]
        self.tables.append(Table(self.name, title, (), tuple(headers), tuple(shown), text_columns))

    def text(self) -> str:
        """For the terminal."""
        return "\n\n".join(map(table_text, [*self.tables, self._rules()]))

    def write(self, folder: Path) -> Path:
        """Write `campaign-NAME-DATE.md` to a folder; returns the file."""
        date = time.strftime("%Y-%m-%d", time.gmtime(self.started))
        seconds = time.time() - self.started
        lines = [f"# Campaign `{self.name}` of {date}", "", self.summary, ""]
        lines += [f"`python -m tests.campaigns {self.command}`, {seconds:.0f} s", ""]
        lines += ["| environment | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in environment_rows(self.environment.ended())]
        for table in (self._rules(), *self.tables):
            lines += table_markdown(table)
        path = folder / f"campaign-{self.name}-{date}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    def _rules(self) -> Table:
        rows = [(rule.text, rule.found, "holds" if rule.held else "DOES NOT HOLD") for rule in self.rules]
        return Table(self.name, "Must hold", (), ("rule", "found", ""), tuple(rows), 3)
