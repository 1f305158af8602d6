"""Writes docs/api.md: every public name of the package with its signature and docstring.

    python docs/api.py

A name is public when it stands in the `__all__` of a package.
"""

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

PAGE = Path(__file__).with_name("api.md")
# In the order in which data flow through them.
PACKAGES = ("tasks", "models", "training", "affinity", "mixture", "evaluation", "report", "stages")


def page() -> str:
    """The whole page, in Markdown."""
    parts = ["# API", "Made from the docstrings by `python docs/api.py`; do not edit.", contents()]
    for name in PACKAGES:
        package = importlib.import_module(f"taskpgm.{name}")
        parts += [f"## taskpgm.{name}", inspect.cleandoc(package.__doc__ or "")]
        for public in sorted(package.__all__, key=str.lower):
            parts += entry(f"taskpgm.{name}.{public}", getattr(package, public))
    return "\n\n".join(parts) + "\n"


def contents() -> str:
    """One line a package, with its public names."""
    lines = []
    for name in PACKAGES:
        names = importlib.import_module(f"taskpgm.{name}").__all__
        lines.append(f"- [taskpgm.{name}](#taskpgm{name}): {', '.join(f'`{n}`' for n in names)}")
    return "\n".join(lines)


def entry(name: str, value: object) -> list[str]:
    """Heading, signature and docstring of one public name."""
    if inspect.ismodule(value):
        return [f"### {name}", block(inspect.getdoc(value) or "")]
    if not (inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value))):
        return [f"### {name}", "A constant."]
    node = source(value)
    parts = [f"### {name}", f"```python\n{signature(node)}\n```"]
    if text := inspect.cleandoc(ast.get_docstring(node) or ""):
        parts.append(block(text))
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            parts.append(f"`.{signature(member).removeprefix('def ')}`")
            if text := inspect.cleandoc(ast.get_docstring(member) or ""):
                parts.append(block(text))
    return parts


def source(value: object) -> ast.ClassDef | ast.FunctionDef:
    """The definition of a class or function, as it is written."""
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(value)))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef), value
    return node


def signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """The head of a definition; of a class its annotated fields too."""
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"def {node.name}({ast.unparse(node.args)}){returns}"
    fields = [ast.unparse(member) for member in node.body if isinstance(member, ast.AnnAssign)]
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    return "\n    ".join([f"class {node.name}{bases}:", *fields]).removesuffix(":")


def block(text: str) -> str:
    """A docstring as it stands: its columns and examples are made for a fixed width."""
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
