"""The results as tables of values: what the page, the terminal and the table files all show."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from taskpgm.report import findings
from taskpgm.report.study import Study

Value = str | int | float | None


class Head(NamedTuple):
    """The head of a column, and the format of its numbers (Python's)."""

    title: str
    form: str = ""


class RecordTable(NamedTuple):
    """Rows of plain values under their heads; the name is that of its files."""

    name: str
    heads: tuple[Head, ...]
    rows: list[tuple[Value, ...]]

    def text(self) -> list[list[str]]:
        """The cells as people read them, heads first."""
        titles = [head.title for head in self.heads]
        cells = [
            [shown(value, head) for value, head in zip(row, self.heads, strict=True)]
            for row in self.rows
        ]
        return [titles, *cells]


def shown(value: Value, head: Head) -> str:
    """A value as people read it: a true minus sign, and a dash for what is not known."""
    if value is None:
        return "–"
    text = value if isinstance(value, str) else format(value, head.form)
    return text.replace("-", "\N{MINUS SIGN}", 1) if text.startswith("-") else text


SPENT = (
    ("examples", Head("examples", ",d")),
    ("tokens", Head("tokens", ",d")),
    ("steps", Head("steps", ",d")),
    ("epochs", Head("epochs", ".2f")),
    ("seconds", Head("seconds", ",.0f")),
)


CHOOSING = (
    ("trained", Head("tokens trained to choose", ",d")),
    ("scored", Head("tokens scored to choose", ",d")),
    ("flops", Head("FLOPs to choose", ".1e")),
    ("seconds", Head("seconds to choose", ",.1f")),
)


def cost_of_choosing(study: Study, name: str) -> list[Value]:
    """CHOOSING of a mixture, as if it were the only one; None where nothing is known of it."""
    row = study.choosing.rows.get(name) if study.choosing else None
    total = row.total if row else None
    return [None if total is None else getattr(total, key) for key, _ in CHOOSING]


def results(study: Study) -> RecordTable:
    """One row a mixture: its measures with their spread over seeds, how likely it is the best,
    what was spent on it, and what choosing it has cost."""
    measured = [
        head
        for column in findings.columns(study)
        for form in (".4f" if column.measure == "loss" else ".1%",)
        for head in (Head(column.title, form), Head(f"{column.title}, sd over seeds", form))
    ]
    heads = (
        Head("mixture"),
        *measured,
        Head("probability of being best, over tasks", ".2f"),
        Head("probability of being best, over families", ".2f"),
        Head("effective tasks", ".1f"),
        *(head for _, head in SPENT),
        *(head for _, head in CHOOSING),
    )
    rows: list[tuple[Value, ...]] = []
    for row in findings.results_rows(study):
        run = study.runs.get(row.name, {})
        spread = [findings.spread(run, column) for column in findings.columns(study)]
        both = [x for pair in zip(row.values, spread, strict=True) for x in pair]
        sure = [best(study, over).get(row.name) for over in ("tasks", "families")]
        spent = [run.get(key) for key, _ in SPENT]
        choosing = cost_of_choosing(study, row.name)
        rows.append((row.name, *both, *sure, row.effective, *spent, *choosing))
    return RecordTable("results", heads, rows)


def best(study: Study, over: str) -> dict[str, float]:
    """By run, the probability that it is the best; {} where that is not known."""
    found = study.comparison.get(over)
    return (found.best or {}) if found else {}


def pairs(study: Study) -> RecordTable:
    """One row a pair of mixtures, over tasks and over families; the better one first."""
    heads = [Head("mixture"), Head("against")]
    for over in ("tasks", "families"):
        heads += [
            Head(f"difference over {over}", "+.4f"),
            Head(f"lower end of its 95% interval, {over}", "+.4f"),
            Head(f"upper end, {over}", "+.4f"),
            Head(f"{over} won", ",d"),
            Head(f"{over} tied", ",d"),
            Head(f"{over} in all", ",d"),
        ]
    rows: list[tuple[Value, ...]] = []
    found = study.comparison.get("tasks")
    for pair in found.pairs if found else ():
        cells: list[Value] = [pair.first, pair.second]
        for over in ("tasks", "families"):
            each = findings.compared(study, pair.first, pair.second, over)
            if each is None:
                cells += [None] * 6
            else:
                parts = study.comparison[over].parts
                cells += [each.difference, each.low, each.high, each.wins, each.ties, parts]
        rows.append(tuple(cells))
    return RecordTable("pairs", tuple(heads), rows)


def losses(study: Study) -> RecordTable:
    """One row a task: what it is measured by, and its test loss under every model."""
    models = ({findings.BASE: study.base} if study.base else {}) | dict(study.runs)
    heads = (
        Head("task"),
        Head("family"),
        *(Head(title, ",d") for title in COUNTS),
        *(Head(name, ".4f") for name in models),
    )
    rows: list[tuple[Value, ...]] = []
    for task in study.tasks:
        values = [(run.get("tasks") or {}).get(task, {}).get("loss") for run in models.values()]
        if any(value is not None for value in values):
            counts = task_counts(study, models.values(), task)
            rows.append((task, study.family[task], *counts, *values))
    return RecordTable("tasks", heads, rows)


COUNTS = ("training examples", "held-out examples", "test examples", "test tokens")


def task_counts(study: Study, models: Any, task: str) -> list[int | None]:
    """COUNTS of a task; its tokens are those that the test loss is a mean over."""
    reports: Sequence[Any] = [(run.get("tasks") or {}).get(task) or {} for run in models]
    tokens = next((report["tokens"] for report in reports if report.get("tokens")), None)
    return [study.train.get(task), study.heldout.get(task), study.test.get(task), tokens]
