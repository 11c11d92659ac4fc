"""Files that are no weights, described by their content for messages."""

from __future__ import annotations

import codecs
import re
import struct

import msgspec

from specdiag.checkpoint import conversions
from specdiag.storage.kinds import KINDS, one

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (
        b"\x89HDF\r\n\x1a\n",
        f"an HDF5 file (Keras or TensorFlow), not supported: {conversions.HDF5}",
    ),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run 'git lfs pull'"),
    (
        b"\x93NUMPY",
        "a single numpy array, not a checkpoint: save it with the model's other arrays by numpy.savez",
    ),
    (b"PK\x05\x06", "a zip archive without members: save the weights again"),
    (b"\x1f\x8b", "compressed with gzip: gunzip it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"PAR1", "a Parquet table, not weights"),
    (b"%PDF-", "a PDF document, not weights"),
    (b"<", "a web page or XML, not weights: fetch the file itself"),
)
_ENCODINGS: tuple[tuple[bytes, str, str], ...] = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_GIVE = "give a report or a checkpoint"
_OTHER_JSON = f"JSON, not weights: {_GIVE}"
_JSON: tuple[tuple[frozenset[str], str], ...] = (
    *((frozenset(("schema", kind.field)), f"{one(kind)}, not weights: {_GIVE}") for kind in KINDS),
    (frozenset(("weight_map",)), "an index of shards under another name: give its folder"),
    (frozenset(("peft_type",)), "an adapter's configuration, not its weights: give the folder"),
    (frozenset(("model_type",)), "a model's configuration, not its weights: give the folder"),
    (frozenset(("architectures",)), "a model's configuration, not its weights: give the folder"),
)
"""Kinds of JSON objects by keys that they have, the first that fits."""
_NEWEST_ONNX = 60
_ONNX_TEXTS = b"\x12\x1a\x22\x32"
"""Tags of producer, its version, domain and description, each followed by a length."""
_ONNX_CONTENT = b"\x28\x3a\x42"
"""Tags of the model's version, its graph and its operators."""
_FLAX = re.compile(
    rb"[\x81-\x8f\xde\xdf][\xa1-\xbf]([ -~]{1,31})[\x00-\x1f\x81-\x8f\xc7-\xc9\xd4-\xd8\xde\xdf]", re.DOTALL
)
"""A map of msgpack whose first value is a map, an array of Flax, or a small number, such as a step."""
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")
_SHOWN = 512
"""Characters that are looked at for control characters."""
_ROWS = 2
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def describe(data: bytes) -> str | None:
    """Describe a file that no format of weights claims.

    Args:
        data: all of it, or its beginning.

    Returns:
        The end of a sentence that begins with the file's name and "is"; None where the content is not known.
    """
    if not data:
        return "empty: fetch it again"
    for magic, description in _MAGIC:
        if data.lstrip().startswith(magic):
            return description
    if data[257:262] == b"ustar":
        return _tar(data)
    return _ctranslate2(data) or _text(data) or _by_structure(data)


def is_json(head: bytes) -> bool:
    """Tell whether a file may be a JSON object.

    Args:
        head: the beginning of the file, in UTF-8 or UTF-16.
    """
    text, _ = _decoded(head)
    return text is not None and text.lstrip().startswith("{")


def _text(data: bytes) -> str | None:
    text, encoding = _decoded(data)
    if text is None:
        return None
    if not text.lstrip().startswith(("{", "[")):
        return _plain(text)
    description = _json(text)
    kind = description.partition(",")[0]
    return description if encoding is None else f"{kind} in {encoding}, not weights: JSON is read as plain UTF-8"


def _decoded(data: bytes) -> tuple[str | None, str | None]:
    """Decode text, which may end within a character, and name its encoding where that is not plain UTF-8."""
    mark = next((entry for entry in _ENCODINGS if data.startswith(entry[0])), None)
    decoder = codecs.getincrementaldecoder("utf-8" if mark is None else mark[1])()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None, None
    printable = not _CONTROL.intersection(map(ord, text[:_SHOWN]))
    return (text, None if mark is None else mark[2]) if printable else (None, None)


def _json(text: str) -> str:
    try:
        keys = _object.decode(text.encode()).keys()
    except (ValueError, RecursionError):  # another value, only its beginning, or several objects one a line
        return _OTHER_JSON
    return next((kind for required, kind in _JSON if required <= keys), _OTHER_JSON)


def _plain(text: str) -> str:
    """Tell a table from other text: its first lines have as many separators, at least one."""
    lines = text.splitlines()[:_ROWS]
    for separator, name in ((",", "CSV"), ("\t", "tab-separated values"), (";", "CSV")):
        counts = {line.count(separator) for line in lines}
        if len(lines) == _ROWS and len(counts) == 1 and counts != {0}:
            return f"a table in {name}, not weights"
    return "a text file, not weights"


def _tar(head: bytes) -> str:
    """Tell NeMo's archives from others by their first member."""
    first = head[:100].split(b"\0")[0].decode("utf-8", "replace").removeprefix("./")
    if first.startswith(("model_config.yaml", "model_weights")):
        return f"a NeMo archive: {conversions.NEMO}"
    return f"a tar archive, such as NeMo's: {conversions.NEMO}"


def _by_structure(head: bytes) -> str | None:
    """Recognise formats without a magic number by the fields or keys that they begin with."""
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model, not supported: analyse the model that it was converted from"
    if _is_onnx(head):
        return "an ONNX model, not supported, for it renames and transposes the weights: analyse the original"
    if _FLAX.match(head):
        return f"a file of msgpack, such as a Flax model, not supported: {conversions.FLAX}"
    return None


def _is_onnx(head: bytes) -> bool:
    """Tell whether a file begins with the fields of an ONNX model: a version, some texts, its graph or operators."""
    if head[:1] != b"\x08" or not 1 <= head[1] <= _NEWEST_ONNX:
        return False
    at = 2
    while at + 1 < len(head) and head[at] in _ONNX_TEXTS:
        at += 2 + head[at + 1]
    return at < len(head) and head[at] in _ONNX_CONTENT


def _ctranslate2(head: bytes) -> str | None:
    """Recognise a CTranslate2 model by its u32 version, u16 length, and the name of its spec, which ends in NUL."""
    if len(head) < 8:
        return None
    version, length = struct.unpack_from("<IH", head)
    name = head[6 : 6 + length]
    if not 1 <= version <= 64 or not name.endswith(b"Spec\0"):
        return None
    spec = name[:-1].decode("ascii", "replace")
    return f"a CTranslate2 model ({spec}), not supported: analyse the checkpoint that it was converted from"
