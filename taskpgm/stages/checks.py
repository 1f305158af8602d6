"""What is refused before anything is spent: inputs that fit neither each other nor this machine.

Each check is a function of the context that raises one line with the key. A run begins only when
all of them hold; a plan says what they say.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from taskpgm.evaluation import check_harness, look_for_data
from taskpgm.multihost import on_primary
from taskpgm.stages import sweep
from taskpgm.stages.adapter_files import check_import
from taskpgm.stages.context import Context
from taskpgm.stages.devices import machine
from taskpgm.stages.estimate import Estimate
from taskpgm.stages.mixture import check_wishes
from taskpgm.stages.model_checks import (
    check_kernels,
    check_matrices,
    check_memory,
    check_mesh,
    check_models,
    models_without_weights,
)
from taskpgm.stages.workdir import check_writable
from taskpgm.training import check_board

Check = Callable[[Context], None]
REFUSED = (ValueError, OSError, ImportError)  # what a check raises


@on_primary
def check_inputs(context: Context) -> None:
    """Refuses what some stage would find out late.

    Raises:
      ValueError, OSError, ImportError: one line that names the key.
    """
    for check in (check_writable, *INPUTS, *SETTINGS, *MACHINE):
        check(context)
    check_kernels(context, machine(None))
    if not context.weights_only:
        if context.config.evaluation.harness:
            section = context.config.evaluation
            check_harness(list(section.harness), section.harness_path)
        context.say_answers_cut_off()


class Problems(NamedTuple):
    """What would stop a run; what is wrong with its inputs; and what makes a measure worthless."""

    said: list[str]
    refused: list[Exception]
    notes: list[str]


def problems_of_plan(context: Context, estimate: Estimate) -> Problems:
    """What a plan says.

    Nothing is loaded: of benchmarks it is only asked whether their data could be had.
    """
    section = context.config.evaluation
    said = list(filter(None, [estimate.mesh_problem]))
    refused = list(problems(context, INPUTS))
    found = list(problems(context, SETTINGS))
    found += problems(context, [lambda context: check_kernels(context, estimate.machine)])
    found += problems(context, [check_writable])
    if section.harness and not context.weights_only:
        found += look_for_data(list(section.harness), section.harness_path)
    said += [" ".join(str(error).split()) for error in found]
    said += [f"{key}: no weights there yet" for key in models_without_weights(context)]
    matrix_only = context.weights_only
    notes = [] if refused or matrix_only else context.answers_cut_off
    return Problems(said, refused, notes)


def problems(context: Context, checks: Sequence[Check]) -> Iterator[Exception]:
    """What some checks raise."""
    for check in checks:
        try:
            check(context)
        except REFUSED as error:
            yield error


# --- Mixtures ------------------------------------------------------------------------------------
def check_mixtures(context: Context) -> None:
    """Refuses rows of `compare`, an importance, bounds or a budget that no mixture could obey.

    Raises:
      ValueError: names the key or the file.
    """
    sweep.check(context.config, None if context.weights_only else context.sizes, context.folder)
    check_wishes(context)


def check_logging(context: Context) -> None:
    """Refuses a board whose package is not there."""
    check_board(context.config.train.log)


INPUTS: tuple[Check, ...] = (check_models, check_matrices, check_import)
MACHINE: tuple[Check, ...] = (check_mesh, check_memory)
SETTINGS: tuple[Check, ...] = (check_mixtures, check_logging)
