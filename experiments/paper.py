"""Runs a table of the paper (arXiv 2507.12612), defined in configs/paper.py, by launch.py.

    python experiments/paper.py --list
    python experiments/paper.py --table=budgets-llama2 --config.base.path=/models/Llama-2-7b-hf \
        --config.proxy.path=/models/gpt2
    python experiments/paper.py --table=budgets-llama2 --dry_run --device=h100x8

Prints the command of launch.py that it runs; options that it does not know are launch.py's. The
tables of a family share a workdir, so what they have in common is made once. `proxy-FAMILY` is the
proxy study: it makes the mixtures of `gpt2` (single-task models are GPT-2's adapters) and of `own`
(adapters of the model itself), trains nothing on them, and compares both. `--scale=tiny`
makes everything so small that stand-ins run in seconds: give it a model and tasks of that size.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
STUDY = "proxy"
TINY = (
    *("tasks.length=64", "tasks.chat_template=", "base.remat=none", "base.dtype=float32"),
    *("adapters.max_steps=2", "adapters.batch_size=2", "affinity.bootstrap=0"),
    *("embeddings.examples=4", "mixture.budget=20", "mixture.max_epochs=4"),
    *("train.steps=2", "train.batch_size=4", "train.accumulate=1", "evaluation.harness=()"),
    *("evaluation.max_new_tokens=2", "evaluation.exact_match_examples=1"),
)
TINY_SWEEPS = {"budget": (20, 30), "ratio": (0, 2), "k": (1, 2)}


def tables() -> ModuleType:
    """configs/paper.py, wherever this is started from."""
    sys.path.insert(0, str(ROOT))
    from configs import paper

    return paper


def command(name: str, workdir: Path, scale: str, rest: list[str]) -> list[str]:
    """launch.py's command for one table; `rest` comes last, and so counts."""
    paper = tables()
    options = []
    if scale == "tiny":
        swept = {key: TINY_SWEEPS[key] for key in paper.TABLES[name.partition("-")[0]][2]}
        options = [f"--config.{setting}" for setting in TINY]
        options += [f"--config.sweep.{key}={values}" for key, values in swept.items()]
    files = (os.path.relpath(ROOT / file) for file in ("launch.py", "configs/paper.py"))
    launch, config = files
    return [launch, f"--config={config}:{name}", f"--workdir={workdir}", *options, *rest]


def run(name: str, workdir: Path, scale: str, rest: list[str]) -> None:
    """Runs one table; ends with launch.py's exit code where that is not 0."""
    told = command(name, workdir, scale, rest)
    print("python", *(f'"{x}"' if set(x) & set(" ()'") else x for x in told), flush=True)
    code = subprocess.run([sys.executable, *told]).returncode
    if code:
        sys.exit(code)


# --- The proxy study ------------------------------------------------------------------------------
def compared(one: Path, other: Path) -> list[str]:
    """A table in Markdown: the mixtures of two workdirs that have the same tasks, row by row.

    Total variation is half the sum of absolute differences of weights, from 0 to 1. Spearman's
    correlation is of the ranks that tasks have by weight, ties shared.
    """
    import numpy as np
    from scipy.stats import rankdata

    from taskpgm.stages.mixture import read_weights

    ours, theirs = read_weights(one), read_weights(other)
    if ours.tasks != theirs.tasks:
        sys.exit(f"error: {one} and {other} do not have the same tasks")
    lines = [
        "| mixture | total variation | Spearman | tasks kept by GPT-2, by the model, by both |",
        "|---|---|---|---|",
    ]
    for name in ours.mixtures.keys() & theirs.mixtures.keys():
        p, q = (np.array(each.mixtures[name].weights) for each in (ours, theirs))
        flat = np.ptp(p) < 1e-12 or np.ptp(q) < 1e-12  # no ranks
        rank = "" if flat else f"{np.corrcoef(rankdata(p), rankdata(q))[0, 1]:.3f}"
        kept = (p > 0).sum(), (q > 0).sum(), ((p > 0) & (q > 0)).sum()
        lines.append(
            f"| {name} | {np.abs(p - q).sum() / 2:.3f} | {rank} | {', '.join(map(str, kept))} |"
        )
    return lines[:2] + sorted(lines[2:])


def study(family: str, workdir: Path, scale: str, rest: list[str]) -> None:
    """Both kinds of single-task models, then how far their mixtures are apart."""
    own = workdir.with_name(f"{workdir.name}-own")
    for name, folder in (("gpt2", workdir), ("own", own)):
        run(f"{name}-{family}", folder, scale, [*rest, "--stage=mixture"])
    if not any(option.lstrip("-").startswith("dry_run") for option in rest):
        lines = compared(workdir, own)
        (workdir / "proxy_study.md").write_text("\n".join(lines) + "\n")
        print(*lines, sep="\n")


def main() -> None:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="the tables, and what each shows")
    parser.add_argument("--table", help="one of --list")
    parser.add_argument("--workdir", type=Path, help="default: runs/paper/FAMILY")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    given, rest = parser.parse_known_args()
    paper = tables()
    shown = {name: title for name, (title, *_) in paper.TABLES.items()}
    shown[STUDY] = "the proxy study: how far `gpt2` and `own` are apart, in weights and ranks"
    names = {f"{table}-{family}": shown[table] for table in shown for family in paper.FAMILIES}
    if given.list:
        for name, title in names.items():
            print(f"{name:18} {title}")
        return
    if given.table not in names:
        sys.exit(f"error: --table={given.table}: name one of {', '.join(names)}")
    table, _, family = given.table.partition("-")
    workdir = given.workdir or Path("runs/paper") / (f"{family}-own" if table == "own" else family)
    if table == STUDY:
        study(family, workdir, given.scale, rest)
    else:
        run(given.table, workdir, given.scale, rest)


if __name__ == "__main__":
    main()
