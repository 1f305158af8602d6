"""Tables as files that other programs and papers take: CSV, Markdown, LaTeX."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from taskpgm.artefact import write_bytes
from taskpgm.report import sweep
from taskpgm.report.records_tables import RecordTable, losses, pairs, results
from taskpgm.report.study import Study

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def csv_text(table: RecordTable) -> str:
    """Numbers in full, no text for what is not known. A name that a spreadsheet would take for a
    formula gets an apostrophe in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([head.title for head in table.heads])
    for row in table.rows:
        writer.writerow(["" if value is None else _harmless(value) for value in row])
    return buffer.getvalue()


def _harmless(value: str | int | float) -> str | int | float:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def markdown(table: RecordTable) -> str:
    """A table of GitHub's Markdown."""
    heads, *rows = [[_markdown(cell) for cell in row] for row in table.text()]
    marks = ["---" if isinstance(value, str) else "---:" for value in table.rows[0]]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, marks, *rows)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    for character in "\\`*_[]<>|$":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def latex(table: RecordTable) -> str:
    """A `tabular` for a paper, with the rules of booktabs."""
    heads, *rows = [[latex_text(cell) for cell in row] for row in table.text()]
    align = "".join("l" if isinstance(value, str) else "r" for value in table.rows[0])
    body = [" & ".join(cells) + r" \\" for cells in (heads, *rows)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Text with what LaTeX would take for a command escaped."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


FORMS: dict[str, Callable[[RecordTable], str]] = {"csv": csv_text, "md": markdown, "tex": latex}


def tables(study: Study) -> list[RecordTable]:
    """Every table that the study has rows for."""
    found = [results(study), pairs(study), losses(study), sweep.table(study)]
    return [table for table in found if table.rows]


def write_tables(study: Study, folder: Path) -> list[str]:
    """Writes every table in every form; returns the names of the files."""
    names = []
    for table in tables(study):
        for form, write in FORMS.items():
            names.append(f"{table.name}.{form}")
            write_bytes(folder / names[-1], write(table).encode())
    return names
