"""Broken streams, signals and a small address space end a process in a defined way."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys

import pytest
from command import execute, shell, start_and_wait, words
from models import QUERY, queries, write_checkpoint
from specdiag_cli import entry, main

from specdiag.errors import ComputationError
from specdiag.report import load_report
from specdiag.system import address_space, interrupts

ANALYSIS = ("analyze", "m", "--jobs", "1", "-o", "r.json")


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path / "m", queries(2, 64, 64), config=None)
    return tmp_path


@pytest.fixture
def large(tmp_path):
    """Matrices that take a while each."""
    (w,) = queries(1, 700, 700).values()
    write_checkpoint(tmp_path / "m", {QUERY.format(i): w + i for i in range(60)}, config=None)
    return tmp_path


def run(script, folder, **environment):
    """Run a script, and give what it prints, in bytes."""
    return shell(script, cwd=folder, env=environment, text=False)


# Streams


@pytest.mark.parametrize("how", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "| true", "2>&1 | true", "2> >(true)"])  # fmt: skip
def test_the_report_does_not_need_them(folder, how):
    done = run(f"set -o pipefail; specdiag -v analyze m -o r.json {how}", folder)
    assert done.returncode == 0, done.stderr
    report = load_report(folder / "r.json")
    assert len(report) == 2
    assert report.eigenvalues("model.layers.0.self_attn.q_proj.weight").size == 64
    assert b"Traceback" not in done.stderr
    assert b"error" not in done.stderr


def test_a_full_disk_behind_stdout_costs_the_table_alone(folder):
    done = run("specdiag analyze m -o r.json >/dev/full", folder)
    assert done.returncode == 4
    assert done.stderr.endswith(b"error: stdout: No space left on device: what was to be printed is lost\n")
    assert b"report: r.json" in done.stderr
    assert load_report(folder / "r.json").complete


@pytest.mark.parametrize("arguments", ["--help", "--version", "analyze --help", "--show-completion", ""])
def test_a_full_disk_behind_help(folder, arguments):
    done = run(f"specdiag {arguments} >/dev/full", folder)
    assert done.returncode == 4
    assert done.stderr == b"error: stdout: No space left on device: what was to be printed is lost\n"


def test_a_folder_that_was_deleted_meanwhile(folder):
    done = run(f"mkdir gone; cd gone; rmdir ../gone; specdiag -q analyze {folder}/m", folder)
    assert done.returncode == 2
    assert done.stderr == b"error: the folder in which this was started does not exist any more: change to another\n"


@pytest.mark.parametrize("arguments", ["analyze m -f json", "analyze m -f csv", "audit m -f json", "recommend m --export toml"])  # fmt: skip
def test_data_that_goes_nowhere_is_a_failure(folder, arguments):
    done = run(f"specdiag -q {arguments} >&-", folder)
    assert done.returncode == 4
    assert done.stderr == b"error: stdout: it is closed: what was to be printed is lost\n"


@pytest.mark.parametrize(
    ("encoding", "arguments"),
    [
        *(("ascii", arguments) for arguments in ("analyze m --all", "compare m m", "audit m", "--help")),
        ("latin-1", "analyze m --all"),
        ("utf-16", "analyze m --all"),
    ],
)
def test_a_terminal_that_knows_no_unicode(folder, encoding, arguments):
    done = run(f"specdiag {arguments}", folder, PYTHONIOENCODING=encoding)
    assert done.returncode in (0, 1), done.stderr
    shown = done.stdout.decode(encoding)
    assert shown.isascii() or encoding != "ascii"
    assert "Traceback" not in done.stderr.decode(encoding)
    if "analyze" in arguments:
        assert "model.layers.1.self_attn.q_proj.weight" in shown
        assert ("+- arith." if encoding == "ascii" else "± arith.") in shown


def test_json_is_utf8_whatever_the_terminal(folder):
    (folder / "m").rename(folder / "modell-ä")
    done = run("specdiag -q analyze modell-ä -f json", folder, PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout.decode())["source"]["location"] == "modell-ä"


@pytest.mark.parametrize(
    "environment",
    [{"COLUMNS": c} for c in ("0", "1", "abc", "²", "99999999999999999999")]
    + [{"LINES": "²"}, {"TERM": "dumb"}, {"TERM": "no-such", "COLUMNS": "3", "NO_COLOR": "1"}],
    ids=str,
)  # fmt: skip
def test_terminals_of_odd_sizes(folder, environment):
    done = run("specdiag analyze m --all; specdiag no-such", folder, **environment)
    assert done.returncode == 2
    assert b"alpha" in done.stdout
    assert b"Traceback" not in done.stderr
    assert b"model.layers.0" in done.stdout or "COLUMNS" in environment


def test_a_terminal_that_goes_away_costs_nothing(large):
    """The progress bar is drawn on it, and then it is not there any more."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        words(*ANALYSIS), cwd=large, stdin=child, stdout=child, stderr=child,
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"} | {"TERM": "xterm"}, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    os.close(child)
    seen = b""
    while b"%" not in seen:
        seen += os.read(parent, 4096)
    os.close(parent)
    process.wait(timeout=120)
    assert load_report(large / "r.json").complete


# Signals


ENDING = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGALRM, signal.SIGRTMIN]  # fmt: skip


@pytest.mark.parametrize("number", ENDING, ids=lambda n: n.name)
def test_a_partial_report_survives_every_signal(large, number):
    process = start_and_wait(*ANALYSIS, matrices=3, cwd=large, preexec_fn=reset)
    process.send_signal(number)
    process.send_signal(number)  # a closed terminal sends two, and schedulers repeat themselves
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    report = load_report(large / "r.json")
    assert not report.complete
    assert 0 < len(report) < 60
    assert "--resume goes on from it" in said


@pytest.mark.parametrize("command", ["audit", "compare"])
def test_commands_that_keep_nothing_say_so(large, command):
    sources = ["m"] * (1 if command == "audit" else 2)
    process = start_and_wait(command, *sources, "--jobs", "1", matrices=3, cwd=large, preexec_fn=reset)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 129
    assert "interrupted: " in said


def reset():
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


def test_nohup_stays_in_force(large):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    process = start_and_wait(*ANALYSIS, matrices=3, cwd=large, preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert load_report(large / "r.json").complete


@pytest.fixture
def caught(monkeypatch):
    """The handlers of the command in this process, for a while."""
    monkeypatch.setattr(interrupts, "_received", [])
    before = {n: signal.getsignal(n) for n in interrupts.stopping_signals()}
    interrupts.catch()
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_is_caught(caught):
    assert {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGXCPU, signal.SIGRTMAX} <= set(caught)
    assert not {signal.SIGSEGV, signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT} & set(caught)  # fmt: skip


def test_only_the_first_signal_raises(caught):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert interrupts.exit_code() == 128 + signal.SIGUSR1


def test_a_signal_waits_for_what_is_being_saved(caught):
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the place matters
        with interrupts.delay_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("saved")
        done.append("not reached")
    assert done == ["saved"]
    with interrupts.delay_signals():
        done.append("and again")  # the first signal is on its way out: what it saves is not cut off


# Address space


def test_little_address_space_is_refused_in_a_sentence(folder):
    def limited(megabytes, *arguments):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

        return execute(*arguments, cwd=folder, env={"OPENBLAS_NUM_THREADS": "1"}, preexec_fn=limit)

    for command in ("analyze", "audit"):
        done = limited(200, command, "m")
        assert done.returncode == 4
        assert "address space is limited to 200 MiB" in done.stderr
        assert "ulimit -v" in done.stderr
    done = limited(800, "analyze", "m", "--jobs", "500")  # which its threads alone would fill
    assert done.returncode == 0, done.stderr


def test_workers_within_an_address_space():
    assert address_space.jobs_within(None, 7, 1 << 40) == 7
    assert address_space.jobs_within(1 << 30, 100, 0) == 8
    assert address_space.jobs_within(1 << 30, 2, 0) == 2
    assert address_space.jobs_within(1 << 30, 100, 128 << 20) == 4
    with pytest.raises(ComputationError, match="largest matrix takes about"):
        address_space.jobs_within(1 << 30, 100, 1 << 30)


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (MemoryError(), "memory ran out (an allocation failed)", 4),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out", 4),
        (OSError(12, "Cannot allocate memory"), "memory ran out", 4),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory ran out", 4),
        (RuntimeError("can't start new thread"), "--jobs", 4),
        (RecursionError("maximum recursion depth exceeded"), "nests deeper", 4),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "no Unicode", 3),
        (KeyboardInterrupt(), "interrupted", 130),
    ],
    ids=lambda v: type(v).__name__,
)
def test_failures_of_the_machine_are_sentences(error, words, code, monkeypatch):
    from specdiag_cli.failures import sentence

    monkeypatch.setattr(interrupts, "_received", [])
    said, number = sentence(error)
    assert words in said
    assert number == code
    assert "unexpected" not in said


def test_a_signal_outside_of_any_command_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal between the first handler and the command is named, without a traceback."""

    def hang_up() -> None:
        interrupts.remember(signal.SIGHUP)
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", hang_up)
    monkeypatch.setattr(interrupts, "catch", lambda: None)
    monkeypatch.setattr(entry.streams, "prepare", lambda: None)
    interrupts.forget()
    try:
        with pytest.raises(SystemExit) as ended:
            entry.run()
    finally:
        interrupts.forget()
    assert ended.value.code == 129


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("place", ["import", "parsing"])
def test_a_signal_before_the_command_ends_with_its_code_and_no_traceback(number: int, place: str) -> None:
    end = f"os.kill(os.getpid(), {int(number)})"
    program = (
        "import os, sys\n"
        "from specdiag_cli import entry\n"
        "class Signalling:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'specdiag_cli.audit': {end}\n"
        "sys.meta_path.insert(0, Signalling())\n"
        if place == "import"
        else f"import os\nfrom specdiag_cli import entry, output\noutput.configure = lambda **_: {end}\n"
    )
    call = [sys.executable, "-c", f"{program}entry.run()", "doctor"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
