"""Which models a config asks for: every row of `compare`, under every value of the swept keys.

A *point* is a row under settings of `mixture` and `train`. It is named by its row and by what
differs from the settings that the workdir's first model was trained under, as in
`taskpgm-pmi@ratio=4,budget=50000`: so another ratio or budget in a workdir replaces nothing.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from taskpgm.artefact import read_json, write_json
from taskpgm.multihost import on_primary
from taskpgm.stages import compare
from taskpgm.stages.defaults import HOW, keys
from taskpgm.stages.proxy_runs import LENGTH
from taskpgm.stages.schema import allows, flatten
from taskpgm.stages.validation import validate

FILE = "settings.json"
SEEDS = "train.seeds"
# Keys that decide what a model becomes, beside its row and seed; and what sweeps each of them.
RUN_KEYS = tuple(
    key for key in keys() if key.split(".")[0] in ("mixture", "train") and key not in HOW
)
SWEPT = {"sweep.k": "k"} | {f"sweep.{key.split('.', 1)[1]}": key for key in (*RUN_KEYS, SEEDS)}
# Rows that weigh tasks without `importance`.
UNWEIGHED = (
    *("uniform", "uniform-families", "size-proportional", "random-instances", "weights"),
    *("smart", "chameleon", "doremi"),
)


@dataclass(frozen=True)
class Point:
    """A row of `compare` under settings.

    Attributes:
      name: of its mixture. label: of its models, one for each seed.
      row: its mixture's row, with arguments.
      settings: the swept keys that it depends on, and those that differ from the first settings.
      group: those of them that all mixtures have in common which may be compared: budget, training.
      config: the whole config under these settings.
    """

    name: str
    label: str
    row: str
    settings: Mapping[str, Any]
    group: str
    config: Any

    @property
    def seeds(self) -> int:
        return self.config.train.seeds


def points(context: Any) -> list[Point]:
    """Every point that the config asks for: of each setting all rows, in the order of `compare`."""
    return points_of(context.config, first_settings(context.folder, context.config))


def own_group(context: Any) -> str:
    """The group of the config's own settings, without a sweep."""
    config = context.config
    alone = changed(config, {key: () for key in SWEPT})
    return points_of(alone, first_settings(context.folder, config))[0].group


def points_of(config: Any, first: Mapping[str, Any]) -> list[Point]:
    """`points` of a workdir whose first settings are `first`."""
    now, swept = settings_of(config), read_sweep(config)
    found: dict[tuple[str, int], Point] = {}
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        under = changed(config, chosen)
        for row in config.compare:
            kept = {k: v for k, v in chosen.items() if k == SEEDS or depends(row, k)}
            other = {k: v for k, v in now.items() if v != first.get(k, v) and depends(row, k)}
            settings = {k: v for k, v in {**other, **kept}.items() if k != "k"}
            full = f"{row}{',' if ':' in row else ':'}k={kept['k']}" if "k" in kept else row
            new = {k: v for k, v in settings.items() if k != SEEDS and v != first.get(k)}
            name = full + suffix({k: v for k, v in new.items() if decides_mixture(row, k)})
            group = suffix({k: v for k, v in new.items() if not of_mixture_alone(k)})
            point = Point(name, full + suffix(new), full, kept | settings, group, under)
            found.setdefault((point.label, point.seeds), point)
    return list(found.values())


def settings_of(config: Any) -> dict[str, Any]:
    """The keys of `mixture` and `train` that decide what a model becomes, but for its seed."""
    flat = flatten({name: config[name].to_dict() for name in ("mixture", "train")})
    return {key: one_spelling(key, flat[key]) for key in RUN_KEYS}


def read_sweep(config: Any) -> dict[str, list[Any]]:
    """The keys that are swept, with the values of each: {"mixture.ratio": ["0", "4"]}; k by itself.

    Raises:
      ValueError: a value that the key cannot have, one that comes twice, or a key that no row of
        `compare` depends on.
    """
    given, known, swept = flatten({"sweep": config.sweep.to_dict()}), keys(), {}
    for name, key in SWEPT.items():
        values = [as_value(key, value, known) for value in given[name]]
        if not values:
            continue
        for value in values:
            right = value >= 1 if key == "k" else allows(known[key], value)
            if not right:
                allowed = "a whole number >= 1" if key == "k" else known[key].allowed
                raise ValueError(f"{name}: {value!r} has to be {allowed}")
            if values.count(value) > 1:
                raise ValueError(f"{name}: {value!r} comes twice")
        if key != SEEDS and not any(depends(row, key) for row in config.compare):
            raise ValueError(f"{name}: no row of compare depends on it")
        swept[key] = values
    return swept


def as_value(key: str, value: Any, known: Mapping[str, Any]) -> Any:
    """A value of a tuple on the command line as one of the key's own type."""
    kind = int if key == "k" else type(known[key].default)
    if kind is str and isinstance(value, int | float):
        return f"{value:.12g}"
    if kind is str and isinstance(value, str):
        return one_spelling(key, value)
    if kind is tuple and isinstance(value, list | tuple):
        return list(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is not int:
        raise ValueError(f"sweep: {value!r} is no whole number, which {key} has to be")
    return value


def one_spelling(key: str, value: Any) -> Any:
    """A ratio that is one number as every number is written: 2.0 and 2 ask for one model."""
    try:
        return f"{float(value):.12g}" if key == "mixture.ratio" else value
    except ValueError:  # auto, or one for each affinity
        return value


def depends(row: str, key: str) -> bool:
    """Whether the model of a row can depend on a key."""
    head, arguments = row.partition(":")[0], compare.parse(row, needs=False)
    name = key.removeprefix("mixture.")
    if key == "k":
        return "k" in arguments[0].arguments and "k" not in arguments[1]
    stands = {of: argument for argument, of in compare.KEYS.items()}
    if key.startswith("mixture.") and name in stands:
        return stands[name] in arguments[0].arguments and stands[name] not in arguments[1]
    return key != "mixture.importance" or head not in UNWEIGHED


def decides_mixture(row: str, key: str) -> bool:
    """Whether the weights of a row can depend on a key of `mixture` or `train`: the latter where
    its own runs are as long as those on mixtures."""
    found, arguments = compare.parse(row, needs=False)
    follows = found.lasts_as_long and "steps" not in arguments
    return key.startswith("mixture.") or (follows and key in LENGTH)


def of_mixture_alone(key: str) -> bool:
    """Whether a setting affects only the proportions, not the budget or the training."""
    return key in ("k", SEEDS) or (
        key.startswith("mixture.") and key not in ("mixture.budget", "mixture.max_epochs")
    )


def changed(config: Any, settings: Mapping[str, Any]) -> Any:
    """The config with other values for some keys, and one spelling of its ratio."""
    copy = ConfigDict(config.to_dict())
    copy.mixture.ratio = one_spelling("mixture.ratio", copy.mixture.ratio)
    for key, value in settings.items():
        if key != "k":  # an argument of rows, and no key
            *way, last = key.split(".")
            at = copy
            for part in way:
                at = at[part]
            at[last] = tuple(value) if isinstance(value, list) else value
    return copy


def suffix(settings: Mapping[str, Any]) -> str:
    """`@ratio=4,optimizer.lr=0.001`; "" if no setting differs."""
    parts = [f"{key.split('.', 1)[-1]}={value_text(value)}" for key, value in settings.items()]
    return "@" + ",".join(sorted(parts)) if parts else ""


def value_text(value: Any) -> str:
    """A value as names and tables write it."""
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# --- What was first ------------------------------------------------------------------------------
@on_primary
def first_settings(folder: Path, config: Any) -> dict[str, Any]:
    """The settings that names leave out: those of the workdir's first models."""
    path = folder / FILE
    if not path.is_file():
        return settings_of(config)
    return {key: one_spelling(key, value) for key, value in read_json(path).items()}


@on_primary
def keep_first_settings(folder: Path, config: Any) -> None:
    """Writes them down, once: until a model is begun, they are those of the config at hand."""
    path, before = folder / FILE, folder / "config.json"
    if not (folder / "runs").is_dir():
        write_json(path, settings_of(config))
    elif not path.is_file() and before.is_file():  # of a workdir that had none yet
        old = flatten(read_json(before))
        write_json(path, {key: old[key] for key in RUN_KEYS if key in old})


# --- Checks before anything is spent -------------------------------------------------------------
def check(config: Any, size: np.ndarray | None, folder: Path) -> None:
    """Refuses what no mixture could be made of, at any point.

    Raises:
      ValueError: as `compare.check` and `read_sweep`; or two points would have one folder.
    """
    if not config.compare:
        compare.check(config, size)
    found = points_of(config, first_settings(folder, config))
    for _, same in itertools.groupby(found, key=lambda point: point.config):
        rows = list(same)
        validate(rows[0].config)
        compare.check(changed(rows[0].config, {"compare": [p.row for p in rows]}), size)
    folders: dict[str, str] = {}
    for point in found:
        other = folders.setdefault(compare.folder_name(point.label), point.label)
        if other != point.label:
            raise ValueError(f"sweep: {point.label!r} and {other!r} would have one folder")


def mixtures(context: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, row, the whole config) of every mixture that is asked for, each once."""
    seen = set()
    for point in points(context):
        if point.name not in seen:
            seen.add(point.name)
            yield point.name, point.row, point.config
