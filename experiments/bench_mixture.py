"""How fast and how exact are the mixture solvers, against what one would reach for instead?

    python experiments/bench_mixture.py PATH.npy            # minutes on 2 CPU cores
    python experiments/bench_mixture.py PATH.npy --quick    # small sizes, few repeats: does it run?
    python experiments/bench_mixture.py PATH.npy --only path --only batch

On a machine that others use, OPENBLAS_NUM_THREADS=1 in front: LAPACK's threads wait for each other
actively, and a call of a millisecond becomes one of a second when a core is taken.

Needs cvxpy, osqp, clarabel, cvxcla and submodlib-py (the extra `bench`); a table that needs what is
not installed is left out. PATH.npy is an affinity matrix;
the targets are stated for the 316 x 316 PMI matrix that the authors of arXiv 2507.12612 published
(sim_mat.npy of ParthPratim/task-mixtures). Without it the tables that need it are left out, and
that is said. Rivals need a matrix that is convex everywhere, so they are compared on the paper's
shift. Writes experiments/results/mixture_bench.json, .md and .png with the machine, its load, the
versions and the command. The sides of a row are measured one after the other in one run, after a
call that is not counted; a time is the best of several, with the median in the JSON.

  solve      solve_exact warm against cvxpy with OSQP and with Clarabel, and OSQP by itself
  path       the whole ratio path to r = 16, S~ included, against 5 cvxpy solves; in a new process;
             to its last breakpoint, against the critical line of cvxcla
  batch      256 ratios at once against 256 cvxpy calls
  bootstrap  200 resampled matrices
  scaling    seconds against n = 16 .. 4096, the first call apart
  project    project_simplex of 1000 vectors against optax
  greedy     select_greedy against solving afresh for every candidate
  smart      facility location against submodlib: the same picks?
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from record import header, machine
from taskpgm import mixture
from taskpgm.mixture import baselines

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "numpy", "cvxpy", "osqp", "clarabel", "cvxcla", "optax", "submodlib-py")
RATIOS = (0.0, 0.5, 2.0, 4.0, 16.0, 63.2, 158.0)


def clock(function: Callable, repeats: int) -> dict:
    """Best and median seconds of several calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return {"best": min(times), "median": statistics.median(times), "repeats": repeats}


def relative_gap(energy: mixture.Energy, p: np.ndarray) -> float:
    """The certificate of any solver's answer, made feasible first, over max(1, |E|)."""
    p = np.maximum(p, 0)
    p = p / p.sum()
    g = energy.gradient(p)
    return float(max(g @ p - g.min(), 0) / max(1, abs(energy.energy(p))))


# --- Peers ----------------------------------------------------------------------------------------


def cvxpy_solve(energy: mixture.Energy, solver: str, **settings) -> np.ndarray:
    """As one would write it: a new problem for each call."""
    import cvxpy as cp

    p = cp.Variable(len(energy.unary))
    objective = 0.5 * cp.quad_form(p, cp.psd_wrap(energy.pairwise)) - energy.unary @ p
    cp.Problem(cp.Minimize(objective), [p >= 0, cp.sum(p) == 1]).solve(solver=solver, **settings)
    return p.value


def osqp_solve(energy: mixture.Energy) -> np.ndarray:
    """OSQP without cvxpy, set to the accuracy asked for here, with its polishing."""
    import osqp
    from scipy import sparse

    n = len(energy.unary)
    problem = osqp.OSQP()
    problem.setup(
        sparse.csc_matrix(np.triu(energy.pairwise)),
        -energy.unary,
        sparse.vstack([sparse.eye(n), np.ones((1, n))], format="csc"),
        np.append(np.zeros(n), 1.0),
        np.append(np.full(n, np.inf), 1.0),
        verbose=False,
        eps_abs=1e-9,
        eps_rel=1e-9,
        max_iter=100_000,
        polishing=True,
    )
    return problem.solve().x


# --- Tables: each returns rows --------------------------------------------------------------------


def bench_solve(matrix: np.ndarray, quick: bool) -> list[dict]:
    sides = {
        "taskpgm": (lambda energy: mixture.solve_exact(energy).weights, 5 if quick else 30),
        "cvxpy + OSQP": (lambda energy: cvxpy_solve(energy, "OSQP"), 1 if quick else 5),
        "cvxpy + Clarabel": (lambda energy: cvxpy_solve(energy, "CLARABEL"), 1 if quick else 5),
        "OSQP alone, 1e-9": (osqp_solve, 1 if quick else 5),
    }
    rows = []
    for ratio in RATIOS[::3] if quick else RATIOS:
        energy = mixture.energy_from_affinity(matrix, ratio, psd="shift")
        row = {"r": ratio}
        for name, (solve, repeats) in sides.items():
            timed = clock(partial(solve, energy), repeats)
            row[name] = timed | {"gap": relative_gap(energy, solve(energy))}
        least = mixture.energy_from_affinity(matrix, ratio)
        row["taskpgm, least shift"] = clock(partial(mixture.solve_exact, least), 5 if quick else 30)
        rows.append(row)
    return rows


def bench_path(matrix: np.ndarray, quick: bool) -> list[dict]:
    end = 16.0
    path = mixture.ratio_path(matrix, ratio_max=end)
    ours = clock(lambda: mixture.ratio_path(matrix, ratio_max=end), 2 if quick else 10)
    energies = [
        mixture.energy_from_affinity(matrix, r, psd="shift") for r in np.linspace(0, end, 5)
    ]
    peer = clock(lambda: [cvxpy_solve(e, "OSQP") for e in energies], 1 if quick else 3)
    gap = float((path.gap / np.maximum(1, np.abs(path.energy))).max())
    return [
        first_call(matrix, end),
        {
            "psd": "simplex",
            "r_max": end,
            "breakpoints": len(path.ratios) - 2,
            "gap": gap,
            "taskpgm, whole path": ours,
            "5 cvxpy + OSQP solves": peer,
        },
        against_critical_line(matrix, quick),
    ]


def first_call(matrix: np.ndarray, end: float) -> dict:
    """The path in a process that has just imported the package."""
    code = (
        "import sys, time, numpy as np; from taskpgm.mixture import ratio_path\n"
        "s = np.load(sys.argv[1]); start = time.perf_counter()\n"
        f"ratio_path(s, ratio_max={end}); print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/s.npy", matrix)
        command = [sys.executable, "-c", code, f"{folder}/s.npy"]
        times = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(3)
        ]
    return {
        "psd": "simplex, first call",
        "r_max": end,
        "taskpgm, whole path": {"best": min(times), "median": statistics.median(times)},
    }


def against_critical_line(matrix: np.ndarray, quick: bool) -> dict:
    """The same whole path by cvxcla, turn about; its S~ is made beforehand, ours each time."""
    import cvxcla

    n, made = len(matrix), mixture.make_positive_definite(matrix, "shift")
    covariance = cvxcla.IncrementalDenseCovariance(made)

    def theirs() -> cvxcla.CLA:
        return cvxcla.CLA(
            mean=matrix.sum(1) / n,
            covariance=covariance,
            lower_bounds=np.zeros(n),
            upper_bounds=np.ones(n),
            a=np.ones((1, n)),
            b=np.ones(1),
        )

    end = 1.001 * max(t.lamb for t in theirs().turning_points if np.isfinite(t.lamb))
    path = mixture.ratio_path(matrix, ratio_max=end, psd="shift")
    ours, peer = [], []
    for _ in range(2 if quick else 7):
        start = time.perf_counter()
        mixture.ratio_path(matrix, ratio_max=end, psd="shift")
        middle = time.perf_counter()
        theirs()
        ours.append(middle - start)
        peer.append(time.perf_counter() - middle)
    return {
        "psd": "shift",
        "r_max": float(end),
        "breakpoints": len(path.ratios) - 2,
        "gap": float((path.gap / np.maximum(1, np.abs(path.energy))).max()),
        "taskpgm, whole path": {"best": min(ours), "median": statistics.median(ours)},
        "cvxcla": {"best": min(peer), "median": statistics.median(peer)},
    }


def bench_project(quick: bool) -> list[dict]:
    import jax.numpy as jnp
    import optax

    shape = (10, 316) if quick else (1000, 316)
    y = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    ours = jax.jit(jax.vmap(mixture.project_simplex))
    theirs = jax.jit(jax.vmap(optax.projections.projection_simplex))
    return [
        {
            "shape": str(shape),
            "taskpgm": clock(lambda: ours(y).block_until_ready(), 20),
            "optax": clock(lambda: theirs(y).block_until_ready(), 20),
        }
    ]


def bench_batch(matrix: np.ndarray, quick: bool) -> list[dict]:
    count = 16 if quick else 256
    ratios = np.linspace(0, 16, count)
    energies = mixture.energy_from_affinity(matrix, ratios, psd="shift")
    found = mixture.solve_exact(energies)
    ours = clock(lambda: mixture.solve_exact(energies), 3 if quick else 10)
    apart = [mixture.Energy(u, energies.pairwise) for u in energies.unary]
    start = time.perf_counter()
    for energy in apart:
        cvxpy_solve(energy, "OSQP")
    peer = {"best": time.perf_counter() - start, "repeats": 1}
    gap = float((found.gap / np.maximum(1, np.abs(found.energy))).max())
    return [{"ratios": count, "gap": gap, "taskpgm, one batch": ours, "cvxpy + OSQP calls": peer}]


def bench_bootstrap(matrix: np.ndarray, quick: bool) -> list[dict]:
    count = 10 if quick else 200
    noise = np.random.default_rng(0).normal(size=(count, *matrix.shape)) * matrix.std() * 0.1
    resamples = matrix + 0.5 * (noise + noise.swapaxes(1, 2))
    made = mixture.energy_from_affinity(resamples, 4.0, psd="shift")
    whole = clock(lambda: mixture.bootstrap_weights(resamples, 4.0, psd="shift"), 1)
    solves = clock(lambda: mixture.solve_exact(made), 1)
    gap = float(mixture.solve_exact(made).gap.max())
    return [
        {
            "n": len(matrix),
            "resamples": count,
            "gap": gap,
            "eigenvalues and solves": whole,
            "solves alone": solves,
        }
    ]


def families(n: int) -> np.ndarray:
    """A positive definite affinity of n tasks in families, made without an eigensolver."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(max(2, n // 10), 32))[rng.integers(0, max(2, n // 10), n)]
    x = x + 0.7 * rng.normal(size=(n, 32)) + 0.5
    return x @ x.T / 32 + 0.05 * np.eye(n)


def bench_scaling(quick: bool) -> list[dict]:
    rows = []
    for n in (16, 64, 316) if quick else (16, 32, 64, 128, 256, 512, 1024, 2000, 4096):
        s = families(n)
        energy = mixture.Energy(2.0 * s.mean(1), s)
        jax.clear_caches()
        start = time.perf_counter()
        found = mixture.solve_exact(energy)
        first = time.perf_counter() - start
        warm = clock(lambda energy=energy: mixture.solve_exact(energy), 3 if n > 1000 else 10)
        row = {
            "n": n,
            "support": int(found.support),
            "gap": float(found.gap),
            "solve": warm,
            "first call": {"best": first},
        }
        if n <= 2000:
            mixture.energy_from_affinity(s, 2.0)
            row["energy_from_affinity"] = clock(
                lambda s=s: mixture.energy_from_affinity(s, 2.0), 1 if n > 300 else 5
            )
        rows.append(row)
    return rows


def greedy_afresh(energy: mixture.Energy, k: int) -> list[int]:
    """The same greedy with a solve for every candidate, non-negative, by Lawson and Hanson."""
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    unary = energy.unary - min(energy.unary.min(), 0)
    chosen: list[int] = []
    for _ in range(k):
        best, value = -1, -1.0  # f is never negative
        for i in range(len(unary)):
            if i in chosen:
                continue
            a = [*chosen, i]
            upper = cholesky(energy.pairwise[np.ix_(a, a)])
            w = nnls(upper, solve_triangular(upper, unary[a], trans="T"))[0]
            f = unary[a] @ w - 0.5 * w @ energy.pairwise[np.ix_(a, a)] @ w
            if f > value:
                best, value = i, f
        chosen.append(best)
    return chosen


def bench_greedy(matrix: np.ndarray, quick: bool) -> list[dict]:
    energy = mixture.energy_from_affinity(matrix, 2.0, psd="shift")
    rows = []
    for k in (5,) if quick else (10, 50):
        ours = clock(lambda k=k: mixture.select_greedy(energy, k), 3)
        start = time.perf_counter()
        picks = greedy_afresh(energy, k)
        peer = {"best": time.perf_counter() - start, "repeats": 1}
        same = picks == mixture.select_greedy(energy, k).order.tolist()
        rows.append(
            {"n": len(matrix), "k": k, "same picks": same, "taskpgm": ours, "solving afresh": peer}
        )
    return rows


def bench_smart(quick: bool) -> list[dict]:
    import contextlib
    import io

    from submodlib import FacilityLocationFunction, GraphCutFunction

    rows = []
    for n, k in ((40, 5),) if quick else ((316, 50), (1000, 100)):
        s = baselines.cosine_similarity(np.random.default_rng(n).normal(size=(n, 32)) + 0.3)
        # submodlib holds float32; the same rounded matrix for both.
        s32 = s.astype(np.float32)
        functions = {
            "facility location": (
                baselines.facility_location,
                lambda s=s32, n=n: FacilityLocationFunction(
                    n=n, mode="dense", sijs=s, separate_rep=False
                ),
            ),
            "graph cut": (
                baselines.graph_cut,
                lambda s=s32, n=n: GraphCutFunction(
                    n=n, mode="dense", lambdaVal=0.4, ggsijs=s, separate_rep=False
                ),
            ),
        }
        for name, (ours, theirs) in functions.items():
            found = ours(s32, k).order.tolist()

            def run(theirs=theirs, k=k):
                with contextlib.redirect_stdout(io.StringIO()):
                    return theirs().maximize(budget=k, optimizer="NaiveGreedy", show_progress=False)

            picks = [i for i, _ in run()]
            rows.append(
                {
                    "function": name,
                    "n": n,
                    "k": k,
                    "same picks": picks == found,
                    "taskpgm": clock(lambda o=ours, s=s32, k=k: o(s, k), 3),
                    "submodlib": clock(run, 3),
                }
            )
    return rows


# --- Writing --------------------------------------------------------------------------------------


def cell(value: object) -> str:
    if isinstance(value, dict):
        gap = f" (gap {value['gap']:.0e})" if "gap" in value else ""
        return f"{1e3 * value['best']:.3g} ms{gap}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_markdown(report: dict) -> str:
    lines = header("Mixture solvers", report["machine"])
    for name, rows in report["tables"].items():
        lines += ["", f"## {name}", ""]
        if isinstance(rows, str):
            lines.append(rows)
            continue
        columns = list(dict.fromkeys(column for row in rows for column in row))
        timed = [c for c in columns if any(isinstance(row.get(c), dict) for row in rows)]
        peers = [] if name in ("scaling", "bootstrap") else timed[1:]
        titles = columns + [f"times faster than {p}" for p in peers]
        lines += [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
        for row in rows:
            cells = [cell(row[c]) if c in row else "" for c in columns]
            cells += [
                f"{row[p]['best'] / row[timed[0]]['best']:.1f}" if p in row else "" for p in peers
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw_scaling(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = [row["n"] for row in rows]
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(6.4, 4.2), constrained_layout=True)
        axis.loglog(
            n,
            [row["solve"]["best"] for row in rows],
            "o-",
            color="#2f6db3",
            ms=4,
            label="solve_exact, warm",
        )
        axis.loglog(
            n,
            [row["first call"]["best"] for row in rows],
            "s--",
            color="#9a9a96",
            ms=4,
            label="solve_exact, first call",
        )
        made = [row for row in rows if "energy_from_affinity" in row]
        axis.loglog(
            [row["n"] for row in made],
            [row["energy_from_affinity"]["best"] for row in made],
            "^-",
            color="#d9822b",
            ms=4,
            label="energy_from_affinity (eigenvalues)",
        )
        axis.set(xlabel="tasks n", ylabel="seconds", title="Time against the number of tasks")
        axis.set_xticks(n, [str(k) for k in n])
        axis.minorticks_off()
        axis.grid(alpha=0.2)
        axis.legend(frameon=False)
        figure.savefig(file, dpi=150)
        plt.close(figure)


ON_MATRIX = {
    "solve": bench_solve,
    "path": bench_path,
    "batch": bench_batch,
    "bootstrap": bench_bootstrap,
    "greedy": bench_greedy,
}
ALONE = {"scaling": bench_scaling, "smart": bench_smart, "project": bench_project}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("matrix", type=Path, nargs="?", default=Path("pmi_316.npy"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", action="append", choices=[*ON_MATRIX, *ALONE])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", default="mixture_bench")
    given = parser.parse_args()

    threads = os.environ.get("OPENBLAS_NUM_THREADS", "as many as cores")
    report = {"machine": machine(PACKAGES) | {"threads of LAPACK": threads}, "tables": {}}
    matrix = np.load(given.matrix) if given.matrix.exists() else None
    for name in given.only or [*ON_MATRIX, *ALONE]:
        try:
            if name in ALONE:
                rows = ALONE[name](given.quick)
            elif matrix is None:
                rows = f"left out: there is no {given.matrix}"
            else:
                rows = ON_MATRIX[name](matrix, given.quick)
        except ModuleNotFoundError as error:
            rows = f"left out: {error.name} is not installed"
        report["tables"][name] = rows
        print(name, "done", flush=True)

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{given.name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.out / f"{given.name}.md").write_text(as_markdown(report))
    if "scaling" in report["tables"]:
        draw_scaling(report["tables"]["scaling"], given.out / f"{given.name}.png")
    print(as_markdown(report))


if __name__ == "__main__":
    main()
