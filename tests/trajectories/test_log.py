"""The long log: torn lines, strict lines, and a writer that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdiag.errors import SourceError, UsageError
from specdiag.trajectories.metric_log import LogEntry, append_log, entry, latest, read_log

ENTRIES = [entry(s, m, "alpha", s + len(m) / 7) for s in (10, 20) for m in ("a.weight", "b.weight[q]", "")]


def test_round_trip_is_plain_json_lines(tmp_path):
    log = tmp_path / "specdiag_log.jsonl"
    append_log(log, ENTRIES[:2])
    append_log(log, ENTRIES[2:])
    append_log(log, [])
    assert read_log(log) == ENTRIES
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [list(line) for line in lines] == [["step", "module", "metric", "value"]] * 6
    assert entry(1, "", "loss", float("nan")).value is None
    assert entry(1, "", "loss", -float("inf")).value is None


@given(cut=st.integers(0, 400))
def test_a_torn_last_line_is_repaired(tmp_path_factory, cut):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    append_log(log, ENTRIES)
    data = log.read_bytes()
    log.write_bytes(data[: max(0, len(data) - cut)])
    whole = data[: max(0, len(data) - cut)].count(b"\n")
    assert read_log(log) == ENTRIES[:whole]
    append_log(log, ENTRIES[:1])
    assert read_log(log) == [*ENTRIES[:whole], ENTRIES[0]]


def test_a_torn_line_longer_than_a_block(tmp_path):
    log = tmp_path / "log.jsonl"
    append_log(log, ENTRIES)
    with log.open("ab") as file:
        file.write(b"\x00" * 200_000)
    assert read_log(log) == ENTRIES
    append_log(log, ENTRIES[:1])
    assert read_log(log) == [*ENTRIES, ENTRIES[0]]


@pytest.mark.parametrize(
    "line",
    [
        "", "[]", '{"step": 1}', '{"step": 1.5, "module": "", "metric": "a", "value": 1}', "step,module,metric,value",
        '{"step": 1, "module": "", "metric": "a", "value": "1"}',
        '{"step": 1, "module": "", "metric": "a", "value": 1, "more": 2}',
    ],
)  # fmt: skip
def test_lines_are_strict(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 1, "module": "", "metric": "a", "value": 1}}\n{line}\n')
    with pytest.raises(SourceError, match="line 2: no log entry"):
        read_log(log)


def test_missing_and_unwritable(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(UsageError, match="cannot write"):
        append_log(tmp_path / "no" / "log.jsonl", ENTRIES)
    with pytest.raises(UsageError, match="cannot write"):
        append_log(tmp_path, ENTRIES)


def test_the_later_line_holds():
    again = LogEntry(step=10, module="a.weight", metric="alpha", value=99.0)
    found = latest([*ENTRIES, again])
    assert len(found) == len(ENTRIES)
    assert found[0] == again


def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path):
    log = tmp_path / "log.jsonl"
    code = (
        "import sys; from specdiag.trajectories.metric_log import append_log, entry\n"
        "step = 0\n"
        "while True:\n"
        "    append_log(sys.argv[1], [entry(step, f'module.{i}', 'alpha', i) for i in range(300)]); step += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(log)])
    deadline = time.monotonic() + 30
    while (not log.exists() or log.stat().st_size < 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    before = read_log(log)
    assert len(before) > 1000
    append_log(log, ENTRIES)
    assert read_log(log) == before + ENTRIES
