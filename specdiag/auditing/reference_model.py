"""Transformers' own model of a config.json, without values, in a process beside the analysis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import msgspec

from specdiag.auditing.config_damage import without_config
from specdiag.auditing.reference import Reference, Trial
from specdiag.auditing.reference_config import checked_copy, names_elsewhere, refusal, stated_type
from specdiag.auditing.reference_process import __main__ as process
from specdiag.checkpoint.folder import reopened
from specdiag.checkpoint.quantised.dequantise import SCALE
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
from specdiag.errors import SourceError
from specdiag.files import json_decoder

SECONDS = 60
"""Processor time. The process takes four on an idle core, most of them to import transformers."""
WAIT = 600.0
"""Seconds that it may take on a busy machine."""
MEMORY = 4 << 30
_LOADED = (".safetensors", ".bin")
"""Files that transformers loads by the names in them."""
_GENERATION = "generation_config.json"
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "USE_HUB_KERNELS": "0",
    "HF_DEACTIVATE_ASYNC_LOAD": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TQDM_DISABLE": "1",
}  # fmt: skip
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")


_decode = json_decoder(Reference)
_decode_trial = json_decoder(Trial)


@contextmanager
def compared(checkpoint: Checkpoint, *, left_out: str | None) -> Generator[Pending]:
    """Compare the names and shapes of a checkpoint with transformers' own model, beside what is done in the meantime.

    Args:
        checkpoint: its tensors are listed; no values are read.
        left_out: why it is not made; None to make it.

    Yields:
        The comparison; its `answer` waits for it.
    """
    tensors = () if checkpoint.stored is None else checkpoint.stored
    reason = left_out or _refusal(checkpoint, tensors)
    shapes = {t.name: t.shape for t in tensors if t.reason != SCALE}
    if reason is None:
        reason = refusal(checkpoint.config, shapes)
    if reason is not None:
        yield Pending(reason=reason)
        return
    request: dict[str, object] = {
        "config": checked_copy(checkpoint.config), "dtype": stated_type(checkpoint.config),
        "whole": not names_elsewhere(checkpoint.config),
        "own_code": "auto_map" in checkpoint.config, "tensors": shapes, "memory": MEMORY, "seconds": SECONDS,
    }  # fmt: skip
    if (generation := _generation(checkpoint)) is not None:
        request["generation"] = generation
    with tempfile.TemporaryDirectory(prefix="specdiag-") as scratch:
        order = Path(scratch) / "request.json"
        order.write_text(json.dumps(request))
        with order.open("rb") as stdin:
            child = subprocess.Popen(
                [sys.executable, "-P", process.__file__],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scratch,
                env={k: v for k, v in os.environ.items() if k not in _SECRETS} | _ENVIRONMENT | {"HF_HOME": scratch},
                start_new_session=True,  # Ctrl-C ends the audit, which ends it
            )
        try:
            yield Pending(child=child, parametrized=frozenset(t.name for t in tensors if t.parametrized))
        finally:
            child.kill()
            child.communicate()


class Pending:
    """A comparison under way."""

    def __init__(
        self,
        *,
        reason: str | None = None,
        child: subprocess.Popen[bytes] | None = None,
        parametrized: frozenset[str] = frozenset(),
    ) -> None:
        self._reason, self._child, self._parametrized = reason, child, parametrized
        self._deadline = time.monotonic() + WAIT

    def answer(self) -> Reference:
        """Wait for the answer. Whatever goes wrong is its reason, and no failure."""
        if self._child is None:
            return Reference(reason=self._reason)
        try:
            written, _ = self._child.communicate(timeout=max(1.0, self._deadline - time.monotonic()))
            found = _decode(written.partition(b"\n")[0])
        except subprocess.TimeoutExpired:
            return Reference(reason=f"transformers' own model was not built within {WAIT:g} s")
        except msgspec.DecodeError:
            return Reference(
                reason=f"transformers' own model was not built: its process ended with {self._child.poll()}"
            )
        found = msgspec.structs.replace(found, trial=_trial(written.partition(b"\n")[2], self._child.poll()))
        return _without_parametrized(found, self._parametrized)


def _trial(written: bytes, code: int | None) -> Trial:
    """Read the second answer of the process, which may have ended before it."""
    try:
        return _decode_trial(written)
    except msgspec.DecodeError:
        return Trial(not_run=f"its process ended with {code} during the forward pass")


def _generation(checkpoint: Checkpoint) -> object:
    """Read generation_config.json beside the weights; None without one that is JSON, as loaders go on then."""
    try:
        folder = reopened(checkpoint)
        if folder is None or not folder.has(_GENERATION):
            return None
        folder.files.fetch([_GENERATION])
        return json.loads(folder.files.read(_GENERATION, folder.label(_GENERATION)))
    except (SourceError, OSError, ValueError, RecursionError):
        return None


def _without_parametrized(found: Reference, names: frozenset[str]) -> Reference:
    """Leave out weights that are stored by their parts, as under a weight norm: listed under the whole's name."""
    if not names:
        return found
    return msgspec.structs.replace(
        found,
        missing={name: shape for name, shape in found.missing.items() if ".parametrizations." not in name},
        unused=tuple(name for name in found.unused if name not in names),
    )


def _refusal(checkpoint: Checkpoint, tensors: Sequence[StoredTensor]) -> str | None:
    """Explain why names and shapes of a checkpoint are not compared, before its configuration is looked at."""
    if not checkpoint.config:
        return without_config("config.json", checkpoint.notes)
    if checkpoint.stored is None or checkpoint.source.part is not None or checkpoint.source.base is not None:
        return "transformers' own model is compared with the files of one whole model"
    other = next((name for name in checkpoint.source.files if not name.endswith(_LOADED)), None)
    if checkpoint.source.kind == "memory" or other is not None:
        return f"transformers does not load {other or 'a model in memory'} by its names"
    is_quantised = "quantization_config" in checkpoint.config or any(t.rounding is not None for t in tensors)
    unread = next((t for t in tensors if t.reason not in (None, SCALE)), None)
    if is_quantised and unread is not None:
        return f"{unread.name} of the quantised model is not understood: {unread.reason}"
    if find_spec("transformers") is None:
        return "transformers is not installed"
    return None
