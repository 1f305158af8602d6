"""Checks a whole config before the first stage starts."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from taskpgm.stages.defaults import keys
from taskpgm.stages.rows import ROWS
from taskpgm.stages.schema import allows, flatten, shown


def validate(config: ConfigDict) -> ConfigDict:
    """Returns the config if it has exactly the keys of the schema, with allowed values that do not
    contradict each other.

    Raises:
      ValueError: names the key and what is allowed.
    """
    check_values(config)
    for problem in conflicts_of(config):
        raise problem
    return config


def check_values(config: ConfigDict) -> None:
    """Refuses a key that is unknown or missing, or has a value that is not allowed.

    Raises:
      ValueError: names the key and what is allowed.
    """
    known, given = keys(), flatten(config.to_dict())
    for name in given.keys() - known.keys():
        raise ValueError(f"config: {unknown_key(name)}")
    for name, key in known.items():
        if name not in given:
            raise ValueError(
                f"config: {name} is missing; begin with taskpgm.stages.default_config()"
            )
        if not allows(key, given[name]):
            value = shown(given[name])
            near = difflib.get_close_matches(value.strip("'"), key.allowed.split("'")[1::2], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config: {name}={value} has to be {key.allowed}{hint}")


def conflicts_of(config: ConfigDict) -> list[Exception]:
    """`conflicts`, as the errors that they are in a run."""
    given = flatten(config.to_dict())
    return [
        ValueError(f"config: {name}={shown(given[name])}: {problem}")
        for name, problem in conflicts(given)
    ]


def conflicts(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, what is wrong) for values that are allowed each, but not together."""
    found = []

    def multiple(of: str, by: str, times: int = 1) -> None:
        if given[of] % (times * given[by]):
            text = f"{times} x " if times > 1 else ""
            found.append((of, f"has to be a multiple of {text}{by}={given[by]}"))

    if not given["base.path"]:
        multiple("embedded.hidden_size", "embedded.num_heads", 2)
        multiple("embedded.num_heads", "embedded.num_kv_heads")
    multiple("train.batch_size", "train.accumulate")
    if 0 < given["adapters.max_steps"] < given["adapters.min_steps"]:
        least = given["adapters.min_steps"]
        found.append(("adapters.max_steps", f"has to be 0, or at least min_steps={least}"))
    for name in ("adapters.source", "adapters.peft"):
        if given[name] and given["adapters.mode"] != "lora":
            found.append((name, "is of LoRA adapters: set adapters.mode=lora"))
    if given["tasks.heldout_fraction"] + given["tasks.test_fraction"] >= 1:
        found.append(("tasks.heldout_fraction", "leaves nothing to train on, with test_fraction"))
    if given["train.log"] == "wandb" and given["train.group"] != 1:
        found.append(("train.log", "shows one run at a time: set train.group=1"))
    if given["export"] and given["affinity.matrix"]:
        found.append(("export", "needs the tasks' examples, and affinity.matrix has none"))
    if not given["base.path"] and given["affinity.vocab_top_k"] >= given["embedded.vocab_size"]:
        most = given["embedded.vocab_size"]
        found.append(("affinity.vocab_top_k", f"has to be below embedded.vocab_size={most}"))
    if given["evaluation.harness_path"] and not given["evaluation.harness"]:
        found.append(
            ("evaluation.harness_path", "no task of it is named: name some in evaluation.harness")
        )
    for name in ("affinity.sizes", "affinity.kind"):
        if given[name] != keys()[name].default and not given["affinity.matrix"]:
            found.append((name, "says what affinity.matrix holds, and there is none"))
    if given["base.attention"] == "splash" and given["tasks.length"] % 128:
        found.append(("base.attention", "needs a tasks.length that is a multiple of 128"))
    axes = [name for name in given if name.startswith("mesh.") and given[name] == -1]
    if len(axes) > 1:
        found.append((axes[1], f"only one axis can be what is left, and {axes[0]} is"))
    if given["evaluation.max_new_tokens"] >= given["tasks.length"]:
        found.append(("evaluation.max_new_tokens", "leaves no room for a prompt in tasks.length"))
    return found


def misspelt(argv: Sequence[str]) -> str:
    """The message for the first `--config.a.b=value` in argv whose key does not exist."""
    for argument in argv:
        key = argument.lstrip("-").split("=")[0].removeprefix("config.")
        if argument.lstrip("-").startswith("config.") and key not in keys():
            return f"{argument}: {unknown_key(key)}"
    return "a --config.KEY=VALUE names a key that is not a key of the config"


def unreadable(argv: Sequence[str]) -> str | None:
    """The message for the first `--config.a.b=value` in argv whose value is of another type, which
    the flag's own reader refuses without a word of what is allowed; None if there is none."""
    for argument in argv:
        name, equals, text = argument.lstrip("-").partition("=")
        key = keys().get(name.removeprefix("config."))
        if not (equals and name.startswith("config.") and key):
            continue
        kind = type(key.default)
        try:
            if kind in (int, float):
                kind(text)
            elif kind is bool and text.lower() not in ("true", "false", "1", "0"):
                raise ValueError
        except ValueError:
            return f"config: {name.removeprefix('config.')}={text} has to be {key.allowed}"
    return None


def unknown_key(key: str) -> str:
    """ "no such key", and which one was meant: one of that last name, or else one spelt like it."""
    if reason := not_swept(key):
        return f"no such key {key!r}: {reason}"
    known = [k for k in keys() if k.startswith("sweep.") == key.startswith("sweep")]
    namesakes = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, namesakes or known, 1, 0.0 if namesakes else 0.6)
    return f"no such key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def not_swept(key: str) -> str:
    """Why something that exists cannot be swept, and the way out; "" for any other key."""
    if not key.startswith("sweep."):
        return ""
    name = key.removeprefix("sweep.")
    section, _, rest = name.partition(".")
    if name in keys() and f"sweep.{rest}" in keys() and section in ("mixture", "train"):
        return f"write sweep.{rest}"
    if name in keys():
        return (
            "only what follows the single-task models is swept, mixture and train: take a "
            "--workdir for each value"
        )
    rows = [head for head, row in ROWS.items() if name in row.arguments]
    if rows:
        return (
            f"it is an argument of rows: name each value in compare, as in "
            f"('{rows[0]}:{name}=...', '{rows[0]}:{name}=...')"
        )
    return ""
