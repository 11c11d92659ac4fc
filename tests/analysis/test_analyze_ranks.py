"""`torchrun -m specdiag analyze|trajectory|compare`: several processes find what one does, and one may die."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from cached_results import assert_same
from command import call, execute, start, torchrun
from models import QUERY, llama_state, write_checkpoint
from safetensors.numpy import load_file
from several_ranks import side_by_side

from specdiag.analysis.processes import Ranks
from specdiag.report import load_report

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
NAN = {QUERY.format(9): np.full((64, 64), np.nan, np.float32)}


class Together:
    """Exit codes and output of n processes that started as those of torchrun do."""

    def __init__(self, *line, cwd, n=2, env=None):
        done = side_by_side(*line, n=n, cwd=cwd, env=env)
        self.codes = {process.returncode for process in done}
        self.stdout, self.stderr = ("".join(getattr(p, name) for p in done) for name in ("stdout", "stderr"))


def together(*arguments, cwd, n=2, env=None):
    return Together("-m", "specdiag", *arguments, cwd=cwd, n=n, env=env)


def launched(*arguments, cwd, n=2):
    return call(torchrun("-m", "specdiag", *arguments, processes=n), cwd=cwd, env=ENVIRONMENT)


@pytest.mark.parametrize("n", [2, 3])
def test_they_find_what_one_does(tmp_path, n):
    write_checkpoint(tmp_path / "ckpt", llama_state(3, 128, 320))
    assert execute("-q", "analyze", "ckpt", "--randomize", "-o", "one.json", cwd=tmp_path).returncode == 0
    done = together("analyze", "ckpt", "--randomize", "--jobs", "1", "-o", "all.json", n=n, cwd=tmp_path)
    assert done.codes == {0}, done.stderr
    assert done.stdout.count("Roles (medians") == 1
    assert done.stderr.count("report: all.json") == 1
    one, every = (load_report(tmp_path / name) for name in ("one.json", "all.json"))
    assert_same(one, every)
    assert (one.skipped, one.summary) == (every.skipped, every.summary)
    assert every.provenance.processes == n
    assert f"{n} processes of 1 workers" in done.stdout
    names = (tmp_path / f"{x}.spectra.safetensors" for x in ("one", "all"))
    first, second = (load_file(name) for name in names)
    assert {k: v.tobytes() for k, v in first.items()} == {k: v.tobytes() for k, v in second.items()}


def test_each_reads_its_own_share_alone(tmp_path):
    """No matrix is measured in two processes, and the shares are alike."""
    write_checkpoint(tmp_path / "ckpt", llama_state(6, 64, 160))
    done = together("-v", "analyze", "ckpt", "--jobs", "1", cwd=tmp_path)
    assert done.codes == {0}, done.stderr
    measured = re.findall(r"DEBUG: (\S+): \w+, alpha", done.stderr)
    assert len(measured) == len(set(measured)) == len(load_report(tmp_path / "ckpt.specdiag.json"))


def test_shares_are_alike():
    costs = [float(c) for c in np.random.default_rng(0).integers(1, 100, 50)]
    shares = [Ranks(rank, 4, rank, 4).own_part(range(50), costs) for rank in range(4)]
    assert sorted(i for share in shares for i in share) == list(range(50))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) < 1.02 * min(loads)
    assert Ranks(0, 2, 0, 2).own_part(["a"], [1.0]) == ["a"]
    assert Ranks(1, 2, 1, 2).own_part(["a"], [1.0]) == []


def test_more_processes_than_work_and_one_exit_code(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama_state(0) | NAN)
    done = launched("analyze", "ckpt", n=3, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("2 matrices have no spectrum") == 1
    assert set(re.findall(r"exitcode *: (\d+)", done.stderr)) == {"4"}
    report = load_report(tmp_path / "ckpt.specdiag.json")
    assert report.complete
    assert [r.status for r in report] == ["ok", "nonfinite"]


def test_one_error_is_said_once(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama_state(1, 64))
    done = launched("analyze", "ckpt", "--tail-fraction", "7", cwd=tmp_path)
    assert done.returncode == 1
    # A process that is stopped too late, on a busy machine, says it once more under its own name.
    assert len(re.findall("error: (?!process 1: )", done.stderr)) == 1
    assert "--tail-fraction 7.0 is not between 0 and 1" in done.stderr


@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_and_a_second_run_completes(tmp_path, victim):
    write_checkpoint(tmp_path / "ckpt", llama_state(8, 512, 1365))
    arguments = ("-v", "analyze", "ckpt", "--jobs", "1")
    run = start(torchrun("-m", "specdiag", *arguments), cwd=tmp_path, env=ENVIRONMENT)
    lines = (line for line in run.stderr if ", alpha " in line)
    for _ in range(32):  # of 56, half of them of each: whichever is killed, the other has done some
        next(lines)
    os.kill(worker(run.pid, victim), signal.SIGKILL)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert f"process {1 - victim}: interrupted after" in said
    assert "another process may have died" in said
    assert "--resume goes on from it" in said
    saved = tmp_path / ("ckpt.process1.incomplete.specdiag.json" if victim == 0 else "ckpt.specdiag.json")
    partial = load_report(saved)
    assert not partial.complete
    assert len(partial) >= 2
    done = launched("-v", "analyze", "ckpt", "--jobs", "1", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    measured = set(re.findall(r"DEBUG: (\S+): \w+, alpha", done.stderr))
    assert not measured & {r.key for r in partial}
    assert not list(tmp_path.glob("*.incomplete*"))
    assert execute("-q", "analyze", "ckpt", "-o", "one.json", cwd=tmp_path).returncode == 0
    assert_same(load_report(tmp_path / "one.json"), load_report(tmp_path / "ckpt.specdiag.json"))


def worker(launcher, rank):
    """The process of this rank."""
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in children.read_text().split():
            if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
                return int(child)
    raise AssertionError(f"no process of rank {rank}")


def test_processes_that_see_different_checkpoints_say_so(tmp_path):
    """As where each machine has its own folder of that name."""
    write_checkpoint(tmp_path / "0" / "ckpt", llama_state(2, 64))
    write_checkpoint(tmp_path / "1" / "ckpt", llama_state(3, 64))
    code = (
        "import os, specdiag; from specdiag.analysis.processes import Ranks; ranks = Ranks.of_torchrun(); os.chdir(str(ranks.rank))\n"
        "try: specdiag.analyze('ckpt', device='cpu', ranks=ranks)\n"
        "except specdiag.ComputationError as error: print(f'<{error}>\\n', end='', flush=True)\n"
    )
    (tmp_path / "call.py").write_text(code)
    done = Together("call.py", cwd=tmp_path)
    assert done.stdout.count("<the processes do not see the same checkpoint") == 2, done.stderr


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [("before it begins", r"RankLost\('another"), ("before it says what it found", r"\d+ RankLost\('another")],
)
def test_one_that_ends_early_is_missed(tmp_path, leaves, expected):
    """An exchange with a process that is gone is an error, and what was measured is kept."""
    write_checkpoint(tmp_path / "ckpt", llama_state(2, 64))
    code = (
        "import os, specdiag; from specdiag.analysis import processes as ranks; ranks._STOP_SECONDS = 0.0; mine = ranks.Ranks.of_torchrun()\n"
        f"if mine.rank and {leaves == 'before it begins'}: os._exit(0)\n"
        "progress = (lambda _: os._exit(0)) if mine.rank else None\n"
        "try: specdiag.analyze('ckpt', device='cpu', ranks=mine, progress=progress)\n"
        "except specdiag.Interrupted as stopped: print(len(stopped.report), repr(stopped.__cause__))\n"
        "except specdiag.ComputationError as error: print(repr(error))\n"
    )
    (tmp_path / "call.py").write_text(code)
    done = Together("call.py", cwd=tmp_path)
    assert re.match(expected, done.stdout), done.stdout + done.stderr


def test_what_one_cannot_begin_ends_all(tmp_path):
    """Memory, a cache or a device that is refused at one process alone, before the processes share what they found."""
    write_checkpoint(tmp_path / "a", llama_state(2, 128))
    write_checkpoint(tmp_path / "b", llama_state(2, 128, seed=1))
    (tmp_path / "file").touch()
    code = (
        "import specdiag; from specdiag.analysis.processes import Ranks\n"
        "partial = specdiag.analyze('b', device='cpu')\n"
        "ranks = Ranks.of_torchrun()\n"
        "def said(call):\n"
        "    try: call()\n"
        "    except specdiag.SpecdiagError as error: print(f'{ranks.rank} {error}\\n', end='', flush=True)\n"
        "only = lambda **given: given if ranks.rank else {}\n"
        "said(lambda: specdiag.analyze('a', device='cpu', ranks=ranks, **only(memory=1000)))\n"
        "said(lambda: specdiag.analyze('a', ranks=ranks, **{'device': 'cpu'} | only(device='cuda:99')))\n"
        "said(lambda: specdiag.analyze('a', device='cpu', ranks=ranks, **only(partial_reports=partial)))\n"
        "from specdiag.comparison import deltas\n"
        "if ranks.rank: deltas.affordable_workers = lambda *_: ranks.nothing\n"
        "try: specdiag.compare('a', 'b', device='cpu', subspace=2, ranks=ranks)\n"
        "except Exception as error: print(f'{ranks.rank} {error}\\n', end='', flush=True)\n"
    )
    (tmp_path / "call.py").write_text(code)
    done = Together("call.py", cwd=tmp_path)
    assert done.codes == {0}, done.stderr
    said = {rank: [line[2:] for line in done.stdout.splitlines() if line.startswith(rank)] for rank in "01"}
    assert [len(lines) for lines in said.values()] == [4, 4], done.stdout
    assert said["0"] == [f"process 1 failed: {line}" for line in said["1"]]
    assert "memory= allows 1000" in said["1"][0]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    state = llama_state(2, 128, 320)
    write_checkpoint(folder / "run" / "step1", state)
    state = {name: (w * 1.01 + 0.01 * (w > 0)).astype(np.float32) for name, w in state.items()}
    write_checkpoint(folder / "run" / "step2", state)
    return folder


def test_compare(run_folder):
    steps = ["run/step1", "run/step2"]
    one = execute("-q", "compare", *steps, "-f", "json", cwd=run_folder)
    every = together("-q", "compare", *steps, "-f", "json", cwd=run_folder)
    assert every.codes == {0}, every.stderr
    assert one.stdout == every.stdout
    assert len(one.stdout) > 1000
    done = together("compare", *steps, "--fail-above", "relative_change=1e-3", "-o", "c.json", cwd=run_folder)
    assert done.codes == {1}
    assert (run_folder / "c.json").read_text().strip() == one.stdout.strip()


def test_trajectory(run_folder):
    one = execute("-q", "trajectory", "run", "-o", "one", "-f", "csv", cwd=run_folder)
    every = together("-q", "trajectory", "run", "-o", "all", "-f", "csv", cwd=run_folder)
    assert every.codes == {0}, every.stderr
    assert one.stdout == every.stdout
    logs = [(run_folder / name / "specdiag_log.jsonl").read_text() for name in ("one", "all")]
    assert logs[0] == logs[1]
    again = together("trajectory", "run", "-o", "all", "-f", "csv", cwd=run_folder)
    assert again.stdout == one.stdout
    assert again.stderr.count("(finished before)") == 2


def test_processes_share_one_cache(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama_state(2, 256, 256))
    environment = {"SPECDIAG_CACHE": str(tmp_path / "cache")}
    for expected in (0, 15):
        done = together("analyze", "ckpt", cwd=tmp_path, env=environment)
        assert done.codes == {0}, done.stderr
        report = load_report(tmp_path / "ckpt.specdiag.json")
        assert report.provenance.n_cached == expected


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert Ranks.of_torchrun() is None
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert Ranks.of_torchrun() is None
    assert Ranks(1, 2, 1, 2).device("cpu") == "cpu"
