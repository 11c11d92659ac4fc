"""Files given as checkpoints that are none: the sentence says what they are."""

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file

import specdiag
from specdiag.checkpoint import conversions
from specdiag.checkpoint.file_selection import choose
from specdiag.checkpoint.formats import FOREIGN_SUFFIXES, FORMATS, WEIGHT_SUFFIXES, list_file, recognise
from specdiag.errors import SourceError

WEIGHTS = {f"layers.{i}.self_attn.q_proj.weight": torch.randn(64, 64) for i in range(2)}


def said(path: Path) -> str:
    with pytest.raises(SourceError) as raised:
        recognise(path, path.name)
    return str(raised.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of every kind that specdiag saves as JSON."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        (folder / f"run/checkpoint-{step}").mkdir(parents=True)
        save_file(WEIGHTS, folder / f"run/checkpoint-{step}/model.safetensors")
    model = folder / "run/checkpoint-1"
    report = specdiag.analyze(model, jobs=1)
    report.save(folder / "report.json")
    records = {
        "plan": specdiag.recommend(report, weight_decay=0.1),
        "comparison": specdiag.compare(report, report),
        "audit": specdiag.audit(report),
        "simulation": specdiag.simulate("adamw", lr=1e-3, weight_decay=0.1, steps=10),
        "trajectory": specdiag.trajectory(folder / "run", out=folder / "out", jobs=1),
    }
    for name, record in records.items():
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(record))
    return {name: folder / f"{name}.json" for name in ("report", *records)}


@pytest.mark.parametrize("kind", ["specdiag report", "decay plan", "comparison", "audit", "simulation", "trajectory"])
def test_saved_records_are_called_by_their_kind(saved: dict[str, Path], kind: str) -> None:
    assert f"is {'an' if kind == 'audit' else 'a'} {kind}, not weights" in said(saved[kind.split()[-1]])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_report_in_another_encoding(saved: dict[str, Path], tmp_path: Path, encoding: str) -> None:
    text = saved["report"].read_text()
    path = tmp_path / "r.json"
    path.write_text(text if encoding != "utf-16-be" else f"\ufeff{text}", encoding=encoding)
    name = "UTF-8 with a byte order mark" if encoding == "utf-8-sig" else "UTF-16"
    assert said(path) == f"'r.json' is a specdiag report in {name}, not weights: JSON is read as plain UTF-8"


ONNX = "an ONNX model, not supported, for it renames and transposes the weights: analyse the original"
FLAX = f"a file of msgpack, such as a Flax model, not supported: {conversions.FLAX}"
OTHERS = {
    b"step,loss\n1,2.5\n2,2.25\n": "a table in CSV, not weights",
    b"step\tloss\n1\t2.5\n2\t2.25\n": "a table in tab-separated values, not weights",
    b"hello": "a text file, not weights",
    "Grüße, und noch mehr.\nEine Zeile".encode(): "a text file, not weights",
    "Gr\u00fc\u00dfe".encode("utf-16"): "a text file, not weights",
    ("x" * 511 + "\u00e4").encode(): "a text file, not weights",
    b"[1, 2, 3]": "JSON, not weights: give a report or a checkpoint",
    b'{"step": 1}\n{"step": 2}\n': "JSON, not weights: give a report or a checkpoint",
    b'{"a": ' * 5000: "JSON, not weights: give a report or a checkpoint",
    b'{"model_type": "llama", "x": 1}': "a model's configuration, not its weights: give the folder",
    b'{"peft_type": "LORA"}': "an adapter's configuration, not its weights: give the folder",
    b'{"weight_map": {}}': "an index of shards under another name: give its folder",
    b"\x89HDF\r\n\x1a\n\0\0": f"an HDF5 file (Keras or TensorFlow), not supported: {conversions.HDF5}",
    b'\x08\x0e\x12\x07pytorch:\x8d\x01\n\x11\n\x01x\n\x01w\x12\x01y"\x06MatMul': ONNX,
    b'\x08\x0e\x12\x00:\x8d\x01\n\x11\n\x01x\n\x01w\x12\x01y"\x06MatMul': ONNX,
    b"\x81\xa6params\x81\xa7Dense_0\x81\xa6kernel\xc4dxxxx": FLAX,
    b"\x83\xa4step\x00\xa6params\x82\xa7Dense_1\x81\xa6kernel\xc8\x60\x0f\x01\x93": FLAX,
    b"\x1c\0\0\0TFL3\x14\0": "a TensorFlow Lite model, not supported: analyse the model that it was converted from",
    b"./model_config.yaml".ljust(257, b"\0") + b"ustar\0": f"a NeMo archive: {conversions.NEMO}",
    b"././@PaxHeader".ljust(257, b"\0") + b"ustar\0": f"a tar archive, such as NeMo's: {conversions.NEMO}",
    b"BZh91AY&SY": "compressed with bzip2: unpack it first",
    b"\1\2\3\4": f"in none of the formats that are read ({', '.join(f.name for f in FORMATS)}, .npz): fetch it again",
    b"": "empty: fetch it again",
}


@pytest.mark.parametrize("content", OTHERS, ids=OTHERS.values())
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    assert said(tmp_path / "x.bin") == f"'x.bin' is {OTHERS[content]}"


def test_every_suffix_of_a_format_can_be_chosen() -> None:
    for format in FORMATS:
        for suffix in format.suffixes:
            assert choose([f"x{suffix}"], None, "here").files == (f"x{suffix}",)
    assert len(set(WEIGHT_SUFFIXES)) == len(WEIGHT_SUFFIXES)
    assert not set(WEIGHT_SUFFIXES) & set(FOREIGN_SUFFIXES)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "pytorch_model.bin")
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.gguf", _use_new_zipfile_serialization=False)
    formats = {path.name: recognise(path, path.name).name for path in tmp_path.iterdir()}
    assert formats == {"pytorch_model.bin": "safetensors", "model.safetensors": "torch", "old.gguf": "torch"}
    assert {tensor.name for tensor in list_file(tmp_path / "old.gguf", "x").tensors} == set(WEIGHTS)


def test_one_model_in_several_formats_is_taken_in_the_order_of_the_table() -> None:
    """Before it go the names that transformers loads."""
    files = ["model.gguf", "model.pt", "pytorch_model.bin", "other.safetensors"]
    taken = []
    while files:
        taken.append(choose(files, None, "here").files[0])
        files.remove(taken[-1])
    assert taken == ["pytorch_model.bin", "other.safetensors", "model.pt", "model.gguf"]
    adapters = ["adapter.gguf", "adapter_model.bin", "adapter_model.safetensors", "adapter_model.bin.index.json"]
    assert choose(adapters, None, "here").files == ("adapter_model.safetensors",)
    assert choose(adapters[:2], None, "here").files == ("adapter_model.bin",)
