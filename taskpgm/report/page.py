"""The page: one self-contained HTML file, from a workdir's artefacts alone."""

import base64
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taskpgm.report import figures, findings
from taskpgm.report.artefacts import Mixture, Study, read_study
from taskpgm.report.style import LIGHT, THEMES, family_colours

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("taskpgm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
            "transformers", "tokenizers", "datasets", "matplotlib")
TINT = 0.10  # a relative difference that has the full tint


class Picture(NamedTuple):
    """One figure in both themes, as data URIs."""

    name: str
    light: str
    dark: str
    alt: str


class Cell(NamedTuple):
    """A number of a table: text, a quiet second text, whether it is the best, a tint in [-1, 1]."""

    text: str
    second: str = ""
    best: bool = False
    tint: float = 0.0


def write_page(workdir: str | Path) -> Path:
    """Writes report/index.html and its PNGs from what the workdir holds.

    What is missing is left out. The same artefacts give the same bytes.

    Returns:
      the path of the page.

    Raises:
      FileNotFoundError: the workdir holds nothing to show.
      ValueError: an artefact is damaged; names it.
    """
    study = read_study(workdir)
    folder = Path(workdir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, alt, draw in plan(study):
        images = [draw(theme) for theme in THEMES]
        for theme, image in zip(THEMES, images, strict=True):
            suffix = "" if theme is LIGHT else f"-{theme.name}"
            _write(folder / f"{name}{suffix}.png", image)
        pictures[name] = Picture(name, *map(_data_uri, images), alt)
    page = folder / "index.html"
    _write(page, render(study, pictures).encode())
    return page


def results_table(workdir: str | Path) -> str:
    """The results for a terminal: the finding, then the table."""
    study = read_study(workdir)
    return findings.results_text(study) + "\n" + findings.finding(study) + "\n"


def plan(study: Study) -> Iterator[tuple[str, str, Any]]:
    """The figures that this study can have: (name, text in place of the image, theme -> PNG)."""
    for kind, affinity in study.affinities.items():
        yield (
            f"affinity-{kind}",
            f"{kind} affinity of {len(affinity.tasks)} tasks, ordered by clustering",
            lambda theme, a=affinity: figures.heat_map(a, study.family, theme),
        )
    if study.mixtures:
        yield "weights", "weight of each task in each mixture", lambda theme: figures.weights(
            study, theme
        )
        for name, mixture in study.mixtures.items():
            if mixture.affinity and "redundancy" in mixture.explain:
                yield (
                    f"reasons-{name}",
                    f"representativeness against redundancy under {name}",
                    lambda theme, m=mixture: figures.reasons(study, m, theme),
                )
    reference = reference_run(study)
    if reference and len(study.runs) > 1:
        yield "gains", f"held-out loss against {reference}, task by task", lambda theme: (
            figures.gains(study, reference, theme)
        )
    if study.curves:
        yield "training", "training loss of each run", lambda theme: figures.training(study, theme)


def reference_run(study: Study) -> str | None:
    """The run that others are set against: uniform, or else the first."""
    return "uniform" if "uniform" in study.runs else next(iter(study.runs), None)


def render(study: Study, pictures: Mapping[str, Picture]) -> str:
    """The HTML of the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        study=study,
        finding=findings.finding(study),
        facts=facts(study),
        pictures=pictures,
        css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "sort.js").read_text(encoding="utf-8"),
        columns=findings.COLUMNS,
        results=results_cells(study),
        runs=list(study.runs),
        reference=reference_run(study),
        by_family=loss_cells(study, "families"),
        by_task=loss_cells(study, "tasks"),
        explained=[
            (mixture, task_rows(study, mixture))
            for mixture in sorted(study.mixtures.values(), key=lambda m: m.name != study.main)
        ],
        affinity_notes={kind: affinity_note(study, kind) for kind in study.affinities},
        light=family_colours(study.families, THEMES[0]),
        dark=family_colours(study.families, THEMES[1]),
        families=[family for family in study.families if family],
        config=json.dumps(study.config, indent=2, default=str),
        command=" ".join(study.command),
        versions=versions(study),
    )


def facts(study: Study) -> list[tuple[str, str]]:
    """The numbers under the title: (value, what it is)."""
    named = [family for family in study.families if family]
    found = [(f"{len(study.tasks):,}", "tasks")]
    if named:
        found.append((f"{len(named):,}", "families"))
    if study.train:
        found.append((f"{sum(study.train.values()):,}", "training examples"))
    if study.heldout:
        found.append((f"{sum(study.heldout.values()):,}", "held-out examples"))
    mixture = study.mixtures.get(study.main or "")
    if mixture and mixture.counts:
        found.append((f"{sum(mixture.counts):,}", "examples in a mixture"))
    if mixture:
        found.append((f"{mixture.support} of {len(study.tasks)}", f"tasks kept by {mixture.name}"))
    steps = {run.get("steps") for run in study.runs.values()} - {None}
    if len(steps) == 1:
        found.append((f"{steps.pop():,}", "steps a run"))
    return found


def results_cells(study: Study) -> list[tuple[str, list[Cell], str, str]]:
    """Rows of the results table: (name, measures, effective tasks, epochs and seconds)."""
    rows = findings.results_rows(study)
    winners = [
        findings.best([row.values[j] for row in rows], column.lower_is_better)
        for j, column in enumerate(findings.COLUMNS)
    ]
    table = []
    for i, row in enumerate(rows):
        cells = [
            Cell(_number(value, column.measure), best=i in winners[j])
            for j, (value, column) in enumerate(zip(row.values, findings.COLUMNS, strict=True))
        ]
        effective = "" if row.effective is None else f"{row.effective:.1f}"
        run = study.runs.get(row.name, {})
        spent = [f"{run['epochs']:.2f} epochs"] if run.get("epochs") is not None else []
        spent += [f"{run['seconds']:,.0f} s"] if run.get("seconds") is not None else []
        table.append((row.name, cells, effective, ", ".join(spent)))
    return table


def loss_cells(study: Study, section: str) -> list[tuple[str, str, list[Cell]]]:
    """Loss and exact match of each family or task under each run: (name, family, cells).

    The tint is the difference to the reference run, relative to it.
    """
    runs = ([study.base] if study.base.get(section) else []) + list(study.runs.values())
    named = list(study.families if section == "families" else study.tasks)
    rank = {family: i for i, family in enumerate(study.families)}
    if section == "tasks":
        named.sort(key=lambda task: rank[study.family[task]])
    reference = (study.runs.get(reference_run(study) or "") or {}).get(section) or {}
    table = []
    for name in named:
        reports = [(run.get(section) or {}).get(name) or {} for run in runs]
        values = [report.get("loss") for report in reports]
        if all(value is None for value in values):
            continue
        winners = findings.best(values, True)
        anchor = (reference.get(name) or {}).get("loss")
        cells = []
        for i, (report, value) in enumerate(zip(reports, values, strict=True)):
            tint = (anchor - value) / (TINT * anchor) if anchor and value is not None else 0.0
            match = report.get("exact_match")
            cells.append(
                Cell(
                    _number(value, "loss"),
                    "" if match is None else f"{match:.0%}",
                    i in winners,
                    max(-1.0, min(1.0, tint)) if report is not reports[0] or not study.base else 0,
                )
            )
        table.append((name, study.family.get(name, name), cells))
    return table


def task_rows(study: Study, mixture: Mixture) -> list[dict[str, Any]]:
    """What decides each task's weight, heaviest first."""
    arrays = {
        key: mixture.array(key)
        for key in ("representativeness", "redundancy", "reduced_cost", "low", "high", "kept_share")
    }
    rows = []
    for i in np.argsort(-mixture.weights, kind="stable"):
        weight = mixture.weights[i]
        at = {key: None if values is None else values[i] for key, values in arrays.items()}
        interval = at["low"] is not None and at["high"] is not None
        rows.append(
            {
                "task": study.tasks[i],
                "family": study.family[study.tasks[i]],
                "train": study.train.get(study.tasks[i]),
                "weight": f"{weight:.2%}",
                "share": float(weight / mixture.weights.max()),
                "low": float(at["low"] / mixture.weights.max()) if interval else None,
                "high": float(at["high"] / mixture.weights.max()) if interval else None,
                "interval": f"{at['low']:.2%} to {at['high']:.2%}" if interval else "",
                "count": None if mixture.counts is None else mixture.counts[i],
                "representativeness": _plain(at["representativeness"]),
                "redundancy": _plain(at["redundancy"]),
                "reduced_cost": "" if weight > 0 else _plain(at["reduced_cost"]),
                "kept_share": "" if at["kept_share"] is None else f"{at['kept_share']:.0%}",
                "notes": study.notes.get(study.tasks[i], ()),
            }
        )
    return rows


def affinity_note(study: Study, kind: str) -> str:
    """Numbers that go with a heat map: within families against between, and how sure."""
    affinity = study.affinities[kind]
    n = len(affinity.tasks)
    if n < 2:
        return ""
    family = np.array([study.family.get(task, "") for task in affinity.tasks])
    off = ~np.eye(n, dtype=bool)
    within = (family[:, None] == family[None, :]) & off & (family != "")[:, None]
    text = ""
    if within.any() and (~within & off).any():
        text = (
            f"Mean within families {affinity.matrix[within].mean():.3f}, between them "
            f"{affinity.matrix[~within & off].mean():.3f}."
        )
    if affinity.low is not None and affinity.high is not None and (affinity.matrix[off] < 0).any():
        sure = (affinity.low > 0) | (affinity.high < 0)
        text += f" The 95% interval leaves out zero for {sure[off].mean():.0%} of the pairs."
    return text


def versions(study: Study) -> list[tuple[str, str]]:
    """Versions the run wrote down, or those the page is made with."""
    if study.versions:
        return list(study.versions.items())
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _number(value: float | None, measure: str) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if measure == "loss" else f"{value:.1%}"


def _plain(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.4f}"


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _write(path: Path, data: bytes) -> None:
    """All or nothing: a temporary name, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
