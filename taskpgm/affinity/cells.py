"""Which cells of the n x n scores there are, and in which of them a pair of models is kept.

Cells of model i on the examples of task k:
  likelihood  sums of log-probabilities ["m"] and numbers of response tokens ["m"], by example;
  divergence  JSD of model i and its partners, by bin of examples, float32 ["e q"], and the
              partners' keys ["q"]. A pair is kept in one of its two models' cells; a new model's
              cells hold its pairs with all older models, whose cells stay as they are.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from taskpgm.affinity import store
from taskpgm.affinity.budget import Layout
from taskpgm.affinity.stream import Sums
from taskpgm.multihost import on_primary


@dataclass(frozen=True)
class Grid:
    """The cells of these models (one per task) on these tasks, in one folder.

    Of several processes the first alone reads and writes them, and all go by what it has found.
    """

    folder: Path
    models: tuple[str, ...]  # keys
    tasks: tuple[str, ...]
    num_examples: tuple[int, ...]
    bins: int  # at most, for the divergences of a task
    contexts: str | None  # as in `compute_scores`
    vocab_top_k: int | None

    @property
    def n(self) -> int:
        return len(self.models)

    def _likelihood(self, i: int, k: int) -> str:
        return store.key("likelihood", self.models[i], self.tasks[k])

    def _divergence(self, i: int, k: int) -> str:
        kind = f"divergence, {self.bins} bins, {self.vocab_top_k or 'all'} entries"
        return store.key(kind, self.models[i], self.tasks[k])

    def _unit(self, k: int) -> str:
        return store.key(f"unit, {self.vocab_top_k or 'all'} entries", self.tasks[k])

    def names(self) -> list[str]:
        """Of all cells that there may be when all is done."""
        kinds = [self._likelihood] + [self._divergence] * (self.contexts is not None)
        return [name(i, k) for name in kinds for i in range(self.n) for k in range(self.n)]

    @on_primary
    def likelihoods(self, k: int) -> list[dict[str, np.ndarray] | None]:
        """Those of all models on task k; None for what is not stored."""
        return [store.read(self.folder, self._likelihood(i, k)) for i in range(self.n)]

    @on_primary
    def write_likelihood(
        self, i: int, k: int, sums: Float[np.ndarray, "m"], tokens: Int[np.ndarray, "m"]
    ) -> None:
        store.write(self.folder, self._likelihood(i, k), sums=sums, tokens=tokens)

    def wanted(self, k: int) -> Bool[np.ndarray, "n n"]:
        """Which pairs are asked for on task k."""
        want = np.full((self.n, self.n), self.contexts == "pool")
        if self.contexts == "pair":
            want[k], want[:, k] = True, True
        np.fill_diagonal(want, False)
        return want

    @on_primary
    def divergence(self, k: int) -> Float[np.ndarray, "e n n"]:
        """All stored pairs on task k; NaN for the others."""
        place = {key: i for i, key in enumerate(self.models)}
        out = np.full((min(self.bins, self.num_examples[k]), self.n, self.n), np.nan)
        out[:, range(self.n), range(self.n)] = 0.0
        for i in range(self.n):
            cell = store.read(self.folder, self._divergence(i, k))
            if cell is not None:
                partners = [place.get(str(key), -1) for key in cell["partners"]]
                known = [at for at, j in enumerate(partners) if j >= 0]
                others = [partners[at] for at in known]
                out[:, i, others] = out[:, others, i] = cell["values"][:, known]
        return out

    @on_primary
    def keep(self, k: int, new: Sequence[int], old: Sequence[int], cut: Layout, sums: Sums) -> None:
        """Notes how far the models `new` and `old`, scored together on task k, have come.

        Killed, a run goes on from there. And it goes on with these models, whichever of their cells
        are written by then: in other blocks rounding would differ, so S is equal to the bit.
        """
        new, old = (_text([self.models[i] for i in part]) for part in (new, old))
        store.write(
            self.folder, self._unit(k), new=new, old=old, cut=np.array(str(cut)), **sums._asdict()
        )

    @on_primary
    def kept(
        self, k: int, owners: Sequence[int], partners: Sequence[int], cut: Layout
    ) -> tuple[list[int], list[int], Sums | None] | None:
        """(new, old, sums) of what was begun on task k, if those models have all that is missing.

        Without sums where they were cut in another way: then the same models begin again.
        """
        unit = store.read(self.folder, self._unit(k))
        if unit is None or not {*unit["new"], *unit["old"]} <= set(self.models):
            return None
        new, old = ([self.models.index(key) for key in unit[part]] for part in ("new", "old"))
        if not ({*owners} <= {*new} and {*partners} <= {*new, *old}):
            return None
        sums = Sums(int(unit["windows"]), unit["log_likelihood"], unit["divergence"])
        return new, old, sums if str(unit["cut"]) == str(cut) else None

    @on_primary
    def end(self, k: int) -> None:
        store.path(self.folder, self._unit(k)).unlink(missing_ok=True)

    @on_primary
    def missing(self, k: int, new: Collection[int]) -> tuple[list[int], list[int]]:
        """(models whose divergence cells lack pairs on task k, other models in those pairs).

        Every missing pair has a model in the first list, which is chosen greedily: most missing
        pairs first, among equals one in `new`, then the later one.
        """
        left = self.wanted(k) & np.isnan(self.divergence(k)[0])
        partners, owners = left.any(1), []
        while left.any():
            i = max(range(self.n), key=lambda i: (left[i].sum(), i in new, i))  # noqa: B023
            owners.append(i)
            left[i], left[:, i] = False, False
        return sorted(owners), [j for j in np.flatnonzero(partners) if j not in owners]

    @on_primary
    def write_divergence(
        self, k: int, owners: list[int], values: Float[np.ndarray, "e n n"]
    ) -> None:
        """Adds to the owners' cells the pairs that are not stored yet; NaN is no value.

        Of a pair of two owners the later one keeps it.
        """
        lack = self.wanted(k) & np.isnan(self.divergence(k)[0]) & np.isfinite(values[0])
        for i in owners:
            partners = [j for j in np.flatnonzero(lack[i]) if j not in owners or j < i]
            if not partners:
                continue
            keys = _text([self.models[j] for j in partners])
            fresh = values[:, i, partners].astype(np.float32)
            before = store.read(self.folder, self._divergence(i, k))
            if before is not None:
                keys = np.concatenate([before["partners"], keys])
                fresh = np.concatenate([before["values"], fresh], axis=1)
            store.write(self.folder, self._divergence(i, k), partners=keys, values=fresh)


def _text(keys: Sequence[str]) -> np.ndarray:
    return np.array(keys, dtype=np.str_)
