"""YAML whose values stay text as written, and whose aliases cannot exhaust memory."""

from pathlib import Path
from typing import Any

import yaml

from taskpgm.tasks.messages import printable

MERGED = 1000  # entries that `<<` may bring into one mapping
KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class ManifestLoader(yaml.SafeLoader):
    """A safe loader that leaves booleans, numbers and dates as text, and refuses repeated keys.

    YAML 1.1 reads `no` as False, `1:30` as 90 and `007` as 7, and a label may be any of these.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[:60]!a} appears twice", node.start_mark
            )
        return node

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MERGED:  # each level of aliases would multiply them
            raise yaml.constructor.ConstructorError(
                None, None, f"`<<` merges more than {MERGED} entries", node.start_mark
            )


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; None for an empty one. Raises ValueError naming file and line."""
    try:
        return yaml.load(path.read_bytes().decode("utf-8"), ManifestLoader)  # noqa: S506  a safe one
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: malformed YAML: nested too deeply") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # YAML's own, and what a tag's constructor raises for a bad value
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).strip() or type(error).__name__
        problem = printable(problem.splitlines()[0][:300])
        raise ValueError(f"{path}{line}: malformed YAML: {problem}") from error
