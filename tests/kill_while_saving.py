"""Goes on with a run in forked children, each killed (-9) at another point of saving checkpoint-4.

`python kill_while_saving.py RUN` leaves RUN-NAME for each name of POINTS. Forked, for importing torch takes longest.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import transformers

from specdiag.train.checkpoints import publish as staging
from specdiag.train.checkpoints import trainer
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def cut_then_die(path):
    os.truncate(path, os.path.getsize(path) // 2)
    die()


def half_the_weights():
    trainer.Trainer.save_model = lambda self, folder, **_: (
        self._save(folder),
        cut_then_die(f"{folder}/model.safetensors"),
    )


def half_the_optimizer():
    save = torch.save
    torch.save = lambda held, path, **_: (save(held, path), str(path).endswith("optimizer.pt") and cut_then_die(path))


def before_the_state():
    transformers.TrainerState.save_to_json = die


def before_the_manifest():
    staging.write_manifest = die


def after_the_manifest():
    Path.rename = die


def while_rotating():
    staging.shutil.rmtree = lambda path, **_: (
        str(path).endswith(".gone-checkpoint-2") and cut_then_die(f"{path}/optimizer.pt")
    )


POINTS = [
    half_the_weights,
    half_the_optimizer,
    before_the_state,
    before_the_manifest,
    after_the_manifest,
    while_rotating,
]


def main(run):
    torch.set_num_threads(1)
    for point in POINTS:
        copy = Path(f"{run}-{point.__name__}")
        shutil.copytree(run, copy)
        child = os.fork()
        if child == 0:
            ready = prepare(Request(source=copy))
            point()
            ready.train()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), (point.__name__, status)
        assert os.WTERMSIG(status) == signal.SIGKILL, point.__name__


if __name__ == "__main__":
    main(sys.argv[1])
