"""A lock names the only writer of a folder; it passes on from a dead process, never from a living one."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import pytest

from specdiag import UsageError
from specdiag.system.folder_lock import LOCK, FolderLock
from specdiag.trajectories.metric_log import RUN, append_log, entry, read_log

HOLD = "import sys, time; from pathlib import Path; from specdiag.system.folder_lock import FolderLock; \
lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def changed(folder, **changes):
    path = folder / LOCK
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_a_living_process_is_named_and_not_disturbed(holder, tmp_path):
    before = (tmp_path / LOCK).read_bytes()
    with pytest.raises(UsageError, match=rf"process {holder.pid} on .* writes to this run \({tmp_path / LOCK}\)"):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


@pytest.mark.parametrize("collected", [True, False])
def test_a_killed_one_is_taken_over_from_with_a_note(holder, tmp_path, collected):
    holder.send_signal(signal.SIGKILL)
    if collected:
        holder.wait()
    else:  # a zombie: nobody asked for its exit status yet
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    lock = FolderLock(tmp_path)
    assert f"process {holder.pid} holds no more" in lock.note
    assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_another_process_with_the_same_id_is_not_the_owner(holder, tmp_path):
    changed(tmp_path, started="1")
    assert FolderLock(tmp_path).note


def test_a_machine_that_was_started_anew_holds_nothing(holder, tmp_path):
    changed(tmp_path, boot="an earlier one")
    assert FolderLock(tmp_path).note


@pytest.mark.parametrize("changes", [{"host": "other"}, {"machine": "other"}, {"pid_space": 1}])
def test_what_cannot_be_judged_from_here_is_refused_with_the_file(holder, tmp_path, changes):
    holder.kill()
    holder.wait()
    changed(tmp_path, **changes)
    with pytest.raises(UsageError, match=rf"if that process is dead, delete {tmp_path / LOCK}"):
        FolderLock(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 20])
def test_a_lock_without_an_owner_is_refused(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(UsageError, match="does not say which process"):
        FolderLock(tmp_path)


def test_a_copied_folder_is_free(holder, tmp_path):
    copy = shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    assert FolderLock(copy).note


def test_a_moved_folder_is_not(holder, tmp_path):
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    with pytest.raises(UsageError, match="writes to this run"):
        FolderLock(moved)


def test_the_same_process_may_take_it_twice(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.release()
    first.release()
    assert (tmp_path / LOCK).exists()
    del second
    assert not (tmp_path / LOCK).exists()


def test_a_fork_neither_holds_nor_releases(tmp_path):
    lock = FolderLock(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            FolderLock(tmp_path)
        except UsageError:
            lock.release()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (tmp_path / LOCK).exists()


def _race(folder, start, done, results):
    start.wait()
    try:
        lock = FolderLock(folder)
    except UsageError:
        results.put(0)
        return
    results.put(1)
    done.wait()
    lock.release()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_takes_it(tmp_path, stale):
    context = multiprocessing.get_context("fork")
    if stale:
        FolderLock(tmp_path)
        lock = FolderLock(tmp_path)
        content = (tmp_path / LOCK).read_bytes()
        lock.release()
        (tmp_path / LOCK).write_bytes(content)
        changed(tmp_path, started="1")
    start, done, results = context.Event(), context.Event(), context.Queue()
    several = [context.Process(target=_race, args=(tmp_path, start, done, results)) for _ in range(8)]
    for process in several:
        process.start()
    start.set()
    taken = [results.get(timeout=60) for _ in several]
    done.set()
    for process in several:
        process.join()
    assert sum(taken) == 1


def _append(path, number):
    for step in range(50):
        append_log(path, [entry(step, RUN, f"metric{number}-{i}", float(i)) for i in range(20)])


def test_two_writers_of_one_log_lose_nothing(tmp_path):
    path = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=_append, args=(path, number)) for number in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert len(read_log(path)) == 3 * 50 * 20
