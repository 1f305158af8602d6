"""A workdir has one owner at a time; the lock of a dead process is taken over."""

import json
import os
import time

import pytest

from taskpgm import owner
from taskpgm.owner import FILE, owned
from tests.stages.forks import Fork

HOLDER = """
import sys, time
from pathlib import Path
from taskpgm.owner import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    process = Fork(HOLDER, ["holder", str(tmp_path)])
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.poll(wait=None)
    process.stdout.close()
    process.stderr.close()


def test_it_is_left_as_it_was_found(tmp_path):
    for _ in range(2):
        with owned(tmp_path):
            assert (tmp_path / FILE).is_file()
        assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), owned(tmp_path):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_living_owner_is_named(holder, tmp_path):
    said = f"in use by another launcher: process {holder.pid} on .*, since 20"
    with pytest.raises(ValueError, match=said) as refused, owned(tmp_path):
        pass
    assert "\n" not in str(refused.value) and (tmp_path / FILE).is_file()


def test_a_killed_owner_is_followed_at_once(holder, tmp_path):
    holder.kill()
    holder.poll(wait=None)
    with owned(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "changed", [{"started": "1"}, {"pid": 2**22 + 1}, {"pid": None}], ids=lambda x: next(iter(x))
)
def test_a_process_with_a_dead_owners_number_is_not_the_owner(holder, tmp_path, changed):
    """Process ids are reused, and the start time tells the processes apart."""
    told = json.loads((tmp_path / FILE).read_text()) | changed
    (tmp_path / FILE).write_text(json.dumps(told))
    with owned(tmp_path):
        pass


def test_an_owner_on_another_host_lives_while_it_gives_signs(holder, tmp_path):
    told = json.loads((tmp_path / FILE).read_text()) | {"host": "elsewhere"}
    (tmp_path / FILE).write_text(json.dumps(told))
    with pytest.raises(ValueError, match="on elsewhere"), owned(tmp_path):
        pass
    long_ago = time.time() - owner.SILENT - 10
    holder.kill()
    os.utime(tmp_path / FILE, (long_ago, long_ago))
    with owned(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_file_cut_off_by_a_kill_is_no_owner(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    os.utime(tmp_path / FILE, (1e9, 1e9))
    with owned(tmp_path):
        pass


def test_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "TOUCH", 0.01)
    with owned(tmp_path):
        os.utime(tmp_path / FILE, (1e9, 1e9))
        end = time.monotonic() + 20
        while (tmp_path / FILE).stat().st_mtime < 2e9 - 5e8:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_of_many_that_start_at_once_one_at_a_time_runs(tmp_path):
    (tmp_path / FILE).write_text('{"host": "gone", "pid": 1}')
    os.utime(tmp_path / FILE, (1e9, 1e9))
    program = """
import sys, time
from pathlib import Path
from taskpgm.owner import owned
while time.time() < float(sys.argv[2]): time.sleep(0.001)
with owned(Path(sys.argv[1])):
    since = time.time()
    time.sleep(0.2)
    print(since, time.time())
"""
    begin = str(time.time() + 1)  # all have started by then
    running = [Fork(program, ["one", str(tmp_path), begin]) for _ in range(4)]
    said = [fork.communicate(timeout=60)[0].split() for fork in running]
    spans = sorted([float(x) for x in each] for each in said if each)
    assert spans and all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert not list(tmp_path.iterdir())
