"""Running one forward pass without values, of the model of a configuration or of the default one of its type."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from specdiag.auditing.reference_process import confinement
from specdiag.auditing.reference_process.building import build
from specdiag.auditing.reference_process.failures import OURS, in_a_line
from specdiag.auditing.reference_process.inputs import Inputs
from specdiag.auditing.reference_process.known_integers import KnownIntegers

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

_WITHOUT_VALUES = ("meta tensor", "'meta'", "meta device", "Meta", "data-dependent", "not available on the CPU")
"""Words of errors that come from the lack of values."""


class TooSlowError(Exception):
    """The time is over."""


class Failure(NamedTuple):
    """The error that ends a forward pass.

    Attributes:
        words: its kind and its text.
        is_ours: whether it comes from the lack of values, or from what is kept from the process.
    """

    words: str
    is_ours: bool


def failure(model: PreTrainedModel, given: Inputs) -> Failure | None:
    """Run a forward pass; None where it ends.

    Args:
        model: on the meta device.
        given: its inputs.

    Raises:
        TooSlowError: the time is over.
    """
    _prepare(model)
    confinement.attempts.clear()
    try:
        with torch.no_grad(), KnownIntegers():
            model(**given)
    except TooSlowError:
        raise
    except Exception as error:  # noqa: BLE001 - the error is the answer
        words = in_a_line(error)
        is_ours = isinstance(error, OURS) or bool(confinement.attempts) or any(w in words for w in _WITHOUT_VALUES)
        return Failure(words, is_ours)
    return None


def _prepare(model: Any) -> None:
    """Leave out dropout, and kernels that need values: experts in a loop instead of a grouped product."""
    model.eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def default(config: dict[str, object]) -> dict[str, object]:
    """Make transformers' default configuration of the type.

    Args:
        config: one of the type.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = cast("str", config["model_type"])
    made = CONFIG_MAPPING[kind]().to_dict()
    return {"model_type": kind, **{key: value for key, value in made.items() if key != "architectures"}}


def of_class(model_class: type[PreTrainedModel], config: dict[str, object]) -> PreTrainedModel:
    """Build a model of a class, with the values of its integer buffers.

    Args:
        model_class: of transformers.
        config: a checked configuration of its type.

    Raises:
        NoModelError: it cannot be built.
    """
    with KnownIntegers():  # its buffers of positions and masks are known too
        return build(config | {"architectures": [model_class.__name__]})


@contextlib.contextmanager
def limited(seconds: float) -> Generator[None]:
    """Raise `TooSlowError` after some seconds of processor time.

    Args:
        seconds: of this thread's process.
    """

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
