"""Checks a whole config before the first stage starts."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from taskpgm.stages.defaults import keys
from taskpgm.stages.schema import allows, flatten


def validate(config: ConfigDict) -> ConfigDict:
    """Returns the config if it has exactly the keys of the schema, with allowed values.

    Raises:
      ValueError: a key is unknown or missing, or has a bad value; names the key and what is
        allowed.
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
            near = difflib.get_close_matches(str(given[name]), key.allowed.split("'")[1::2], 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config: {name}={given[name]!r} has to be {key.allowed}{hint}")
    for name, problem in conflicts(given):
        raise ValueError(f"config: {name}={given[name]!r}: {problem}")
    return config


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
    if given["export"] and given["affinity.matrix"]:
        found.append(("export", "needs the tasks' examples, and affinity.matrix has none"))
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


def unknown_key(key: str) -> str:
    """ "no such key", and which one was meant: one of that last name, or else one spelt like it."""
    known = [k for k in keys() if k.startswith("sweep.") == key.startswith("sweep")]
    namesakes = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, namesakes or known, 1, 0.0 if namesakes else 0.6)
    return f"no such key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
