"""The table of formats: the first bytes of a file decide its format, its name only makes it a candidate.

A new format is a reader, which makes a `Listing` of a path, and one record in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from specdiag.checkpoint.archives import archive_kind
from specdiag.checkpoint.gguf.file import list_gguf
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.not_weights import describe, is_json
from specdiag.checkpoint.npz_file import list_npz
from specdiag.checkpoint.plain_values import Fill
from specdiag.checkpoint.safetensors_file import list_by_ranges, list_safetensors
from specdiag.errors import SourceError
from specdiag.files import TEXT_LIMIT

N_PROBE = 512
"""Bytes at the beginning of a file that tell its format."""
_HEADER_LIMIT = 100_000_000  # bytes that the safetensors library allows a header


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files of weights.

    Attributes:
        name: its name in messages.
        suffixes: the ends of file names that make a file a candidate, dot included.
        magic: tells the format by the first `N_PROBE` bytes of a file. The records are asked in the order of the table.
        precedence: regular expressions on whole file names, the best first. Among the files of a folder the first
            expression that fits decides, those of an earlier record before those of a later one; the names that
            transformers loads go before all of them.
        list: reads what a file holds from its path and its name in messages.
        list_by_ranges: does so for a file on the hub, from its name in messages, its size, its first bytes, and a
            function that reads ranges; None where a file of this format has to be downloaded.
        list_part: reads one of several models that a file keeps in dictionaries of their own, from path, name in
            messages and the model's name; None for formats that hold one list of tensors.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: Callable[[bytes], bool]
    precedence: tuple[str, ...]
    list: Callable[[Path, str], Listing]
    list_by_ranges: Callable[[str, int, bytes, Fill], Listing] | None = None
    list_part: Callable[[Path, str, str], Listing] | None = None


def _is_safetensors(head: bytes) -> bool:
    """Look for the length of a header as u64, then its JSON. The first byte may be 0x80, which starts a pickle, too."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _HEADER_LIMIT


def _is_torch(head: bytes) -> bool:
    """Look for a zip archive, or a pickle of protocol 2 and later: torch wrote several in a row before 1.6."""
    return head.startswith((b"PK\x03\x04", b"\x80")) and not _is_distributed(head)


def _is_distributed(head: bytes) -> bool:
    """Look for the class that a bare pickle of `.metadata` begins with."""
    return head.startswith(b"\x80") and b"torch.distributed.checkpoint.metadata" in head[:64]


def _is_gguf(head: bytes) -> bool:
    return head.startswith(b"GGUF")


def _list_torch(path: Path, label: str, part: str | None = None) -> Listing:
    """List a file of torch, or another zip archive of weights: their first bytes are the same."""
    kind = archive_kind(path, label)
    if kind == "npz":
        return list_npz(path, label)
    from specdiag.checkpoint.flat_file import list_flat_file  # it imports names of this module's table

    listing = list_flat_file(path, label) if kind == "torch" and part is None else None
    if listing is not None:
        return listing
    from specdiag.checkpoint.exported import list_exported  # torch takes a second to import
    from specdiag.checkpoint.torch_file import list_torch_file

    return list_exported(path, label) if kind == "exported" else list_torch_file(path, label, part)


def _list_distributed(path: Path, label: str, part: str | None = None) -> Listing:
    from specdiag.checkpoint.distributed.checkpoint import list_distributed

    return list_distributed(path, label, part)


SAFETENSORS = Format(
    name="safetensors",
    suffixes=(".safetensors",),
    magic=_is_safetensors,
    precedence=(
        r".*\.safetensors\.index.*\.json",
        r"model[-_]\d+-of-\d+\.safetensors",
        r"(?!consolidated).*\.safetensors",
        r"consolidated.*\.safetensors",
    ),
    list=list_safetensors,
    list_by_ranges=list_by_ranges,
)
DISTRIBUTED = Format(
    name="torch DCP",
    suffixes=(".metadata",),
    magic=_is_distributed,
    precedence=(r"\.metadata",),
    list=_list_distributed,
    list_part=_list_distributed,
)
TORCH = Format(
    name="torch",
    suffixes=(".bin", ".pth", ".pt", ".ckpt", ".pt2"),
    magic=_is_torch,
    precedence=(
        r"consolidated.*\.(bin|pth|pt)",
        r".*\.bin\.index.*\.json",
        r"pytorch_model[-_]\d+-of-\d+\.bin",
        r".*\.bin",
        r".*\.(pth|pt|ckpt)",
        r".*\.pt2",
    ),
    list=_list_torch,
    list_part=_list_torch,
)
GGUF = Format(
    name="GGUF",
    suffixes=(".gguf",),
    magic=_is_gguf,
    precedence=(r"(?!.*(?i:mmproj|imatrix)).*\.gguf", r".*(?i:mmproj).*\.gguf"),
    list=list_gguf,
)
FORMATS: tuple[Format, ...] = (SAFETENSORS, DISTRIBUTED, TORCH, GGUF)
TORCH_SUFFIXES = TORCH.suffixes
WEIGHT_SUFFIXES: tuple[str, ...] = tuple(suffix for format in FORMATS for suffix in format.suffixes)
"""Ends of the names of files that are read."""
FOREIGN_SUFFIXES = (".h5", ".keras", ".msgpack", ".onnx", ".ot", ".tflite", ".nemo")
"""Ends of the names of files of weights that are not read, to name them. A new format takes its own out."""
ARRAYS = ".npz"
"""End of the names of archives of arrays: data as often as weights, so that one is read where it is named, or alone."""
_UNKNOWN = (
    f"in none of the formats that are read ({', '.join(format.name for format in FORMATS)}, .npz): fetch it again"
)


def list_file(path: Path, label: str, part: str | None = None) -> Listing:
    """List every tensor of a file, whose content decides its format.

    Args:
        path: the file.
        label: its name in messages.
        part: which of several models in it, where its format keeps them apart.

    Returns:
        Its tensors, remarks, and its own description of the model.

    Raises:
        SourceError: it is unreadable, damaged, unsupported, or not a file of weights.
        MissingExtraError: it holds quantised weights that only an optional dependency decodes.
    """
    format = recognise(path, label)
    if part is None or format.list_part is None:
        listing = format.list(path, label)
    else:
        listing = format.list_part(path, label, part)
    if not label.endswith(WEIGHT_SUFFIXES) or label.endswith(format.suffixes):
        return listing
    return replace(listing, notes=(f"{label} holds {format.name}, which its name does not say.", *listing.notes))


def recognise(path: Path, label: str) -> Format:
    """Tell the format of a file of weights.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        Its record.

    Raises:
        SourceError: it cannot be read, is empty, or is something else, which is named.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block, a device would never end
            raise SourceError(f"'{label}' is not a regular file")
        with path.open("rb") as file:
            head = file.read(N_PROBE)
            found = _find(head)
            if found is None and is_json(head):  # the keys that tell its kind may lie anywhere in it
                # Ask for no more than the file has: `read` allocates as many bytes as it is asked for.
                head += file.read(min(TEXT_LIMIT, path.stat().st_size))
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error
    return found or format_of(head, label)


def format_of(head: bytes, label: str) -> Format:
    """Tell the format of a file of weights by its first `N_PROBE` bytes or more.

    Args:
        head: the bytes.
        label: the file's name in messages.

    Returns:
        Its record.

    Raises:
        SourceError: it is empty, or something else, which is named.
    """
    found = _find(head)
    if found is not None:
        return found
    description = describe(head)
    if description is None and head[8:9] == b"{":  # its length of the header is wrong, which the reader reports
        return SAFETENSORS
    raise SourceError(f"'{label}' is {description or _UNKNOWN}")


def _find(head: bytes) -> Format | None:
    return next((format for format in FORMATS if format.magic(head)), None)
