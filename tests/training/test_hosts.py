"""How processes find each other, and what a process alone does; test_distributed has several."""

import jax
import pytest

from taskpgm.training.hosts import VISIBLE, agree, by_first, fail, initialize_distributed


@pytest.fixture
def calls(monkeypatch):
    """Arguments of jax.distributed.initialize, which hides all GPUs but one as under SLURM."""
    made = []

    def initialize(*args):
        made.append(args)
        jax.config.update(VISIBLE[0], "0")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    visible, platforms = jax.config.values[VISIBLE[0]], jax.config.jax_platforms
    yield made
    jax.config.update(VISIBLE[0], visible)
    jax.config.update("jax_platforms", platforms)


def test_alone_there_is_nothing_to_join(calls):
    assert initialize_distributed() == (0, 1) and not calls


def test_a_coordinator_needs_numbers(calls):
    with pytest.raises(ValueError, match="number of processes"):
        initialize_distributed("localhost:1234")
    initialize_distributed("localhost:1234", 2, 0)
    assert calls == [("localhost:1234", 2, 0)]


@pytest.mark.parametrize(("nodes", "visible"), [("2", "all"), ("1", "0")])
def test_slurm_gives_one_process_a_node_all_its_gpus(calls, monkeypatch, nodes, visible):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NNODES", nodes)
    initialize_distributed()  # in an allocation, but not under srun
    assert not calls
    monkeypatch.setenv("SLURM_PROCID", "0")
    initialize_distributed()
    assert calls == [()] and jax.config.values[VISIBLE[0]] == visible


def test_hosts_with_a_tpu_look_for_each_other(calls, monkeypatch):
    jax.config.update("jax_platforms", "tpu,cpu")
    initialize_distributed()
    assert calls == [()]

    def lost():
        raise ValueError("no metadata")

    monkeypatch.setattr(jax.distributed, "initialize", lost)
    assert initialize_distributed() == (0, 1)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="4 TPU hosts that do not find each other .no metadata"):
        initialize_distributed()


def test_alone_a_process_acts_for_itself():
    assert by_first(lambda x: x + 1)(1) == 2
    with pytest.raises(KeyError):
        by_first({}.__getitem__)("a")
    agree("a", "the letter")


def test_alone_a_process_ends_by_itself(capsys):
    with pytest.raises(SystemExit) as end:
        fail("error: no", 1)
    assert end.value.code == 1 and capsys.readouterr().err == "error: no\n"
