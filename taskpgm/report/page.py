"""The page: one self-contained HTML file, made only from what is in a workdir."""

import base64
import json
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from taskpgm.artefact import write_bytes
from taskpgm.report import (
    figures,
    findings,
    records_tables,
    sweep,
    tables,
    terminal,
    transfer,
    worth,
)
from taskpgm.report.heatmap import heat_map
from taskpgm.report.optimality import optimality
from taskpgm.report.study import Study, read_study
from taskpgm.report.style import LIGHT, THEMES, family_colours
from taskpgm.report.table_files import write_tables

MOST_EXPLAINED = 8  # mixtures of a sweep that have a figure of their own; all have a table
TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = (
    "taskpgm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
    "datasets",
    "matplotlib",
)


class Picture(NamedTuple):
    """One figure in both themes, as data URIs."""

    name: str
    light: str
    dark: str
    alt: str


def write_page(workdir: str | Path, command: Sequence[str] = ()) -> Path:
    """Writes report/index.html, its PNGs and the tables' files from what the workdir holds.

    What is missing is left out. The same artefacts give the same bytes.

    Args:
      command: what was typed to run it, for "Run it again"; its first word is the script.

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
            write_bytes(folder / f"{name}{suffix}.png", image)
        light, dark = map(_data_uri, images)
        pictures[name] = Picture(name, light, dark, alt)
    write_tables(study, folder)
    page = folder / "index.html"
    write_bytes(page, render(study, pictures, command).encode())
    return page


def results_table(workdir: str | Path) -> str:
    """The results for a terminal: the finding, then the table."""
    study = read_study(workdir)
    return terminal.results_text(study) + "\n" + findings.finding(study) + "\n"


def plan(study: Study) -> Iterator[tuple[str, str, Any]]:
    """The figures that this study can have: (name, text in place of the image, theme -> PNG)."""
    for kind, affinity in study.affinities.items():
        yield (
            f"affinity-{kind}",
            f"{kind} affinity of {len(affinity.tasks)} tasks, ordered by clustering",
            lambda theme, a=affinity: heat_map(a, study.family, theme),
        )
    if study.transfer:
        told = study.transfer
        yield (
            "transfer",
            f"who helps whom among {len(told.tasks)} tasks, ordered by clustering",
            lambda theme: transfer.transfer_map(told, study.family, theme),
        )
    if study.mixtures:
        yield (
            "weights",
            "weight of each task in each mixture",
            lambda theme: figures.weights(study, theme),
        )
        explained = [m for m in study.mixtures.values() if m.affinity and "redundancy" in m.explain]
        for mixture in explained[:MOST_EXPLAINED]:
            yield (
                f"optimality-{mixture.name}",
                f"representativeness against redundancy under {mixture.name}",
                lambda theme, m=mixture: optimality(study, m, theme),
            )
    if study.paths:
        yield (
            "paths",
            "weights, effective tasks and predicted loss against the ratio",
            lambda theme: worth.along_the_path(study.paths, chosen_ratios(study), theme),
        )
    if any(mixture.selection for mixture in study.mixtures.values()):
        yield (
            "selection",
            "value of the first k tasks as a share of that of all",
            lambda theme: worth.selection_curve(study, theme),
        )
    if len(worth.predicted_and_measured(study)) > 1:
        yield (
            "predicted",
            "predicted against measured loss of every run",
            lambda theme: worth.predicted_against_measured(study, theme),
        )
    reference = findings.reference_run(study)
    if reference and len(study.runs) > 1:
        yield (
            "gains",
            f"test loss against {reference}, task by task",
            lambda theme: figures.gains(study, reference, theme),
        )
    yield from sweep.figures(study)
    if study.curves:
        yield "training", "training loss of each run", lambda theme: figures.training(study, theme)


def chosen_ratios(study: Study) -> dict[str, float]:
    """By affinity, the ratio of the first mixture that was made of it."""
    chosen: dict[str, float] = {}
    for mixture in study.mixtures.values():
        if mixture.affinity and mixture.facts.get("ratio") is not None:
            chosen.setdefault(mixture.affinity, float(mixture.facts["ratio"]))
    return chosen


def render(study: Study, pictures: Mapping[str, Picture], command: Sequence[str] = ()) -> str:
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
        facts=tables.facts(study),
        pictures=pictures,
        css=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "sort.js").read_text(encoding="utf-8"),
        columns=findings.columns(study),
        results=tables.results_cells(study),
        spent=[head.title for _, head in records_tables.SPENT],
        against_first=tables.against_first(study),
        compared=study.comparison.get("tasks"),
        all_pairs=tables.all_pairs(study),
        counts=records_tables.COUNTS,
        choosing=tables.choosing_rows(study),
        choosing_heads=[head.title for _, head in records_tables.CHOOSING],
        swept=[sweep.title(key) for key in sweep.swept_keys(study)],
        sweep=sweep.table(study).text() if study.sweep else [],
        seeds=findings.seeds(study),
        runs=list(study.runs),
        reference=findings.reference_run(study),
        by_family=tables.loss_cells(study, "families"),
        by_task=tables.loss_cells(study, "tasks"),
        by_target=tables.loss_cells(study, "targets"),
        explained=[
            (mixture, tables.task_rows(study, mixture))
            for mixture in sorted(study.mixtures.values(), key=lambda m: m.name != study.main)
        ],
        benchmarks=tables.benchmark_rows(study),
        affinity_notes={kind: tables.affinity_note(study, kind) for kind in study.affinities},
        pairs={kind: tables.pair_rows(study, kind) for kind in study.affinities},
        influences=transfer.influences(study.transfer) if study.transfer else [],
        correlation=worth.rank_correlation(list(worth.predicted_and_measured(study).values())),
        light=family_colours(study.families, THEMES[0]),
        dark=family_colours(study.families, THEMES[1]),
        families=[family for family in study.families if family],
        config=json.dumps(study.config, indent=2, default=str),
        command=shlex.join(["python", *command]) if command else "",
        versions=versions(),
    )


def versions() -> list[tuple[str, str]]:
    """Versions of what made the page, and the runs if the same installation made them."""
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _data_uri(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()
