"""Files without tensors that hold weights all the same: arrays of numpy, programs that were frozen."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.checkpoint.nested import all_values
from specdiag.checkpoint.numpy_pickles import is_array
from specdiag.errors import SourceError
from specdiag.text.counts import counted


def refuse_arrays(content: object, label: str) -> None:
    """Refuse arrays of numpy in a pickle.

    Args:
        content: of the file.
        label: its name in messages.

    Raises:
        SourceError: it holds any.
    """
    n_arrays = sum(map(is_array, all_values(content)))
    if n_arrays:
        raise SourceError(
            f"'{label}' holds {counted(n_arrays, 'array')} of numpy and no tensors: save them with "
            "numpy.savez, whose .npz is read"
        )


def refuse_empty_module(kind: str, members: Sequence[str], label: str) -> SourceError:
    """Make the error of a module or TorchScript program that has no tensors of its own.

    Args:
        kind: the name of its class.
        members: names of the archive's members.
        label: its name in messages.
    """
    if any("constants" in name.split("/")[:-1] for name in members):
        return SourceError(
            f"'{label}' is a frozen TorchScript program: torch.jit.freeze made its weights constants without names; "
            "give the program from before, or the model's state_dict"
        )
    return SourceError(f"'{label}' holds a {kind} without tensors: give the file of the weights")
