"""The results on a terminal: the same values as on the page, as aligned text."""

from collections.abc import Sequence

import numpy as np

from taskpgm.report import findings, sweep
from taskpgm.report.records_tables import SPENT, best, shown
from taskpgm.report.study import Study

MOST_ROWS = 20


def results_text(study: Study) -> str:
    """The results, an asterisk at the best of each column; and each mixture against the first."""
    rows = findings.results_rows(study)
    if not rows:
        return _weights_text(study)
    marked = [
        findings.best([row.values[j] for row in rows], column.lower_is_better)
        for j, column in enumerate(findings.columns(study))
    ]
    heads = ["loss", "(families)", "exact match", "(families)", "loss on targets"][: len(marked)]
    heads = ["mixture", *heads, "is best", "effective"]
    table = [[*heads, *(head.title for _, head in SPENT)]]
    sure = best(study, "tasks")
    for i, row in enumerate(rows):
        run, cells = study.runs.get(row.name, {}), [row.name]
        for j, value in enumerate(row.values):
            column = findings.columns(study)[j]
            form = "{:.4f}" if column.measure == "loss" else "{:.1%}"
            text = "-" if value is None else form.format(value)
            error = findings.spread(run, column)
            if error is not None:
                text += " ±" + form.format(error)
            cells.append(text + ("*" if i in marked[j] else " "))
        cells.append(f"{sure[row.name]:.2f}" if row.name in sure else "-")
        cells.append("-" if row.effective is None else f"{row.effective:.1f}")
        for key, head in SPENT:
            cells.append("-" if run.get(key) is None else shown(run[key], head))
        table.append(cells)
    note = "* best; loss in nats per scored token, lower is better"
    if findings.seeds(study) > 1:
        note += f"; means and standard deviations of {findings.seeds(study)} seeds"
        note += "; is best: probability"
    return f"{aligned(table)}\n{note}\n{_against_first(study)}{_sweep_text(study)}"


def _sweep_text(study: Study) -> str:
    """Every row under every setting; "" where there is one setting only."""
    if not sweep.swept_keys(study):
        return ""
    keep = len(sweep.swept_keys(study)) + 4  # up to the loss and its deviation
    cells = [row[:keep] for row in sweep.table(study).text()]
    return f"\nall settings of this workdir\n{aligned(cells)}\n"


def _against_first(study: Study) -> str:
    """The difference of each mixture's loss to that of the first; "" where there is no second."""
    found = study.comparison.get("tasks")
    if found is None or len(found.ranked) < 2:
        return ""
    first, *others = found.ranked
    units = [over for over in ("tasks", "families") if over in study.comparison]
    heads = ["mixture"]
    for over in units:
        heads += [f"over {over}", "95% interval", "won"]
    table = [heads]
    for name in others:
        cells = [name]
        for over in units:
            pair = findings.compared(study, name, first, over)
            parts = study.comparison[over].parts
            if pair is None:
                cells += ["-", "-", "-"]
            else:
                cells += [f"{pair.difference:+.4f}", findings.interval(pair) or "-"]
                cells.append(f"{pair.wins} of {parts}")
        table.append(cells)
    seen = "seeds and tasks (families)" if found.seeds > 1 else "tasks (families) alone: one seed"
    return f"\nloss minus that of {first}; intervals over {seen}\n{aligned(table)}\n"


def _weights_text(study: Study) -> str:
    """The heaviest tasks of the main mixture, where no model was trained."""
    mixture = study.mixtures.get(study.main or "")
    if mixture is None:
        return "no results yet\n"
    order = np.argsort(-mixture.weights, kind="stable")
    kept = [i for i in order if mixture.weights[i] > 0]
    table = [["task", "weight", "examples"]]
    for i in kept[:MOST_ROWS]:
        count = "-" if mixture.counts is None else f"{mixture.counts[i]:,}"
        table.append([study.tasks[i], f"{mixture.weights[i]:.2%}", count])
    more = f"... and {len(kept) - MOST_ROWS} more\n" if len(kept) > MOST_ROWS else ""
    return aligned(table) + "\n" + more + f"{len(order) - len(kept)} tasks have weight zero\n"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns under each other: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if j == 0 else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
