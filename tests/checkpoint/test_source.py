"""Sources as they may be typed, the files that are chosen, and the sentences of refusals."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import python
from safetensors.numpy import save_file

from specdiag.checkpoint.file_selection import choose
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.source import Location, locate
from specdiag.errors import SourceError, UsageError

QUERY = "layers.0.self_attn.q_proj.weight"
KEY = "layers.0.self_attn.k_proj.weight"


def write(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ones((4, 4), np.float32) for name in names or (QUERY,)}, path)
    return path


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("org/name", Location(repo="org/name")),
        ("gpt2", Location(repo="gpt2")),
        ("org/name@v1.0", Location(repo="org/name", revision="v1.0")),
        ("org/name@refs/pr/3", Location(repo="org/name", revision="refs/pr/3")),
        ("gpt2@main", Location(repo="gpt2", revision="main")),
        ("hf://gpt2@main", Location(repo="gpt2", revision="main")),
        ("hf://org/name@v1/a/b.bin", Location(repo="org/name", revision="v1", file="a/b.bin")),
        ("https://huggingface.co/org/name", Location(repo="org/name")),
        ("https://huggingface.co/gpt2", Location(repo="gpt2")),
        ("https://huggingface.co/gpt2/tree/main", Location(repo="gpt2", revision="main")),
        ("https://huggingface.co/gpt2/", Location(repo="gpt2")),
        (
            "https://huggingface.co/gpt2/blob/v1/model.safetensors?download=true",
            Location(repo="gpt2", revision="v1", file="model.safetensors"),
        ),
        ("https://hf.co/org/name/tree/v1", Location(repo="org/name", revision="v1")),
        ("https://huggingface.co/org/name/blob/main/x", Location(repo="org/name", revision="main", file="x")),
        ("https://t:hf_x@huggingface.co/org/name/resolve/main/a%20b.bin?download=true",
         Location(repo="org/name", revision="main", file="a b.bin")),
    ],
)  # fmt: skip
def test_locations_on_the_hub(typed: str, expected: Location) -> None:
    assert replace(locate(typed), url=False) == expected
    assert locate(typed).url == ("://" in typed)


@pytest.mark.parametrize(
    "typed",
    ["/nowhere/x", "./x", "../x", "~/no-such-thing", "x.safetensors", "a/b/c", "org/name/", "", "a b", "x\0y"]
)  # fmt: skip
def test_what_looks_like_a_path_is_not_sought_on_the_hub(typed: str) -> None:
    with pytest.raises(SourceError, match="no such file or directory"):
        locate(typed)


@pytest.mark.parametrize(
    "typed", ["https://example.com/org/name", "hf://datasets/org/name", "hf://", "https://hf.co/a/b/commit/1"]
)
def test_addresses_that_are_no_model(typed: str) -> None:
    with pytest.raises(SourceError, match=r"does not name a model on the hub|not a model"):
        locate(typed)


def test_options_that_contradict_the_location(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already names revision 'v1': leave out revision=v2"):
        locate("org/name@v1", revision="v2")
    with pytest.raises(UsageError, match=r"already names 'a.bin': leave out file=b.bin"):
        locate("hf://org/name/a.bin", file="b.bin")
    with pytest.raises(UsageError, match="is for models on the hub"):
        locate(tmp_path, revision="v1")
    with pytest.raises(UsageError, match="picks within a directory"):
        locate(write(tmp_path / "x"), file="y")


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "org" / "name" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("org/name").source.kind == "dir"


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "model.safetensors")
    assert open_checkpoint("~/model.safetensors").source.location == str(tmp_path / "model.safetensors")


def test_a_file_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = open_checkpoint(write(tmp_path / "weights-of-tuesday"))
    assert (checkpoint.source.kind, checkpoint.source.files) == ("file", ("weights-of-tuesday",))
    assert str(checkpoint.source) == str(tmp_path / "weights-of-tuesday")
    assert checkpoint.architecture == "llama"


PRECEDENCE = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "other.safetensors",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "other.bin",
    "model.pth",
]


@pytest.mark.parametrize("rank", range(len(PRECEDENCE)))
def test_precedence(rank: int) -> None:
    beside = [
        "optimizer.pt",
        "training_args.bin",
        "rng_state.pth",
        "scheduler.pt",
        "adapter_model.safetensors",
        "tf_model.h5",
        "x.gguf",
    ]
    assert choose([*PRECEDENCE[rank:], *beside], None, "org/name").name == PRECEDENCE[rank]


def test_ignored_files_are_recorded(tmp_path: Path) -> None:
    for name in (
        "model.safetensors",
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "onnx/model.onnx",
        "optimizer.pt",
    ):
        write(tmp_path / name)
    source = open_checkpoint(tmp_path).source
    assert source.files == ("model.safetensors",)
    assert source.ignored == ("model.fp16.safetensors", "onnx/model.onnx", "pytorch_model.bin")


def test_a_tie_is_never_guessed(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write(tmp_path / name)
    with pytest.raises(
        UsageError, match=r"holds 2 different models: a.safetensors, b.safetensors; pick one with file="
    ):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path, file="b.safetensors").source.files == ("b.safetensors",)
    with pytest.raises(UsageError, match=r"has no file 'c.safetensors'; it has a.safetensors, b.safetensors"):
        open_checkpoint(tmp_path, file="c.safetensors")


@pytest.mark.parametrize("file", ["../other/model.safetensors", "sub/../../other/model.safetensors", ".."])
@pytest.mark.parametrize("location", [None, "org/name", "https://huggingface.co/org/name"])
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, file: str, location: str | None) -> None:
    write(tmp_path / "other/model.safetensors")
    write(tmp_path / "mine/model.safetensors")
    (tmp_path / "mine/sub").mkdir()
    with pytest.raises(UsageError, match=rf"file={re.escape(file)} does not lie inside '"):
        open_checkpoint(location or tmp_path / "mine", file=file)


def test_an_absolute_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="does not lie inside"):
        open_checkpoint(tmp_path, file=str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("target", ["b.safetensors", "gone"])
def test_links_to_nothing_are_no_models(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.safetensors").symlink_to(target)
    (tmp_path / "b.safetensors").symlink_to("a.safetensors")
    why = "which leads in a circle" if target != "gone" else "which does not exist"
    with pytest.raises(SourceError, match=f"holds 'a.safetensors', a link to '{target}', {why}: delete it"):
        open_checkpoint(tmp_path)
    with pytest.raises(SourceError, match=f"a.safetensors' is a link to '{target}', {why}"):
        open_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_folder_in_the_place_of_a_configuration(tmp_path: Path, name: str) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / name).mkdir()
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(SourceError, match=rf"{name}' cannot be read: "):
            open_checkpoint(source)


def test_a_key_that_comes_twice(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors")
    write(tmp_path / "other.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a.weight": "one.safetensors", "a.weight": "other.safetensors"}}')
    with pytest.raises(SourceError, match=r"index.json' is damaged: it gives 'a.weight' twice"):
        open_checkpoint(tmp_path)
    index.unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llama", "model_type": "gpt2"}')
    (note,) = open_checkpoint(tmp_path / "one.safetensors").notes
    assert note == "Took the last model_type of the two in config.json, as transformers does."


def test_addresses_are_no_paths(tmp_path: Path) -> None:
    """A sentence on a hub that cannot be reached speaks of paths only where a path may have been meant."""
    code = (
        "import sys\nfrom specdiag.checkpoint.reader import open_checkpoint\n"
        "for name in ('org/name', 'https://huggingface.co/org/name/tree/main', 'hf://org/name'):\n"
        "    for stream in (False, True):\n"
        "        try: open_checkpoint(name, stream=stream)\n"
        "        except Exception as error: print(type(error).__name__, error)\n"
    )
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = python(code.replace("https://huggingface.co", nowhere["HF_ENDPOINT"]), env=nowhere)
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["SourceError"] * 6
    assert [" path" in line for line in lines] == [True, True, False, False, False, False]
    assert lines[2].startswith("SourceError http://127.0.0.1:9 cannot be reached for org/name@main, ")


def test_a_folder_inside(tmp_path: Path) -> None:
    write(tmp_path / "unet" / "model.safetensors")
    write(tmp_path / "deep" / "er" / "model.safetensors")
    with pytest.raises(SourceError, match="holds weights only in its folders unet: read one, such as with file=unet"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path, file="unet").source.files == ("unet/model.safetensors",)
    for pick in ("deep/er", "deep/er/", "deep/er/model.safetensors"):
        assert open_checkpoint(tmp_path, file=pick).source.files == ("deep/er/model.safetensors",)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["config.json"], "holds no weights, only config.json: give the folder or the file of the weights"),
        ([], "holds no weights, for it has no files that can be read"),
        (["tf_model.h5", "config.json"], "holds weights only as tf_model.h5, not supported"),
        (["consolidated.00.pth", "consolidated.01.pth"], r"consolidated.00.pth' is JSON, not weights"),
        (["model.onnx"], "holds weights only as model.onnx, not supported: it renames and transposes the weights"),
        (["m.msgpack"], r"holds weights only as m.msgpack, not supported: convert it with .*msgpack_restore.* which is read"),
        (["manifest.ocdbt", "_METADATA"], "is an Orbax checkpoint, not supported: convert it with .*orbax"),
        (["saved_model.pb"], "is a TensorFlow SavedModel, not supported"),
        (["model.ckpt-1.data-00000-of-00001", "model.ckpt-1.index"], "is a TensorFlow checkpoint, not supported"),
        (["x-01-of-03.safetensors", "x-03-of-03.safetensors"], r"it lacks x-02-of-03.safetensors; fetch them, or .* file='x-\*-of-03.safetensors'"),
        (["model-1-of-999999999999999.safetensors"], "it lacks model-2-of-999999999999999.safetensors"),
        (["optimizer.pt", "training_args.bin"], "holds no weights, only optimizer.pt, training_args.bin"),
    ],
)  # fmt: skip
def test_directories_that_hold_no_model(tmp_path: Path, names: list[str], sentence: str) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


def index(tmp_path: Path, weight_map: dict[str, str], name: str = "model.safetensors.index.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def test_shards_through_an_index(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors", KEY)
    path = index(tmp_path, {QUERY: "a.safetensors", KEY: "b.safetensors"})
    for location in (tmp_path, path):
        checkpoint = open_checkpoint(location)
        assert checkpoint.source.files == ("a.safetensors", "b.safetensors")
        assert [matrix.name for matrix in checkpoint.matrices] == [QUERY, KEY]
        assert checkpoint.n_parameters == 32


def test_shards_without_an_index(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00002.safetensors")
    write(tmp_path / "model-00002-of-00002.safetensors", KEY)
    assert open_checkpoint(tmp_path).n_tensors == 2
    alone = open_checkpoint(tmp_path, file="model-00002-of-00002.safetensors")
    assert alone.notes == ("model-00002-of-00002.safetensors is one of 2 shards: the others were not read.",)


def test_shards_that_do_not_keep_what_their_index_promises(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    index(tmp_path, {QUERY: "a.safetensors", KEY: "b.safetensors"})
    with pytest.raises(SourceError, match=r"lacks b.safetensors, which model.safetensors.index.json names"):
        open_checkpoint(tmp_path)
    write(tmp_path / "b.safetensors", "lm_head.weight")
    with pytest.raises(SourceError, match=f"b.safetensors' lacks '{KEY}', which 'model.safetensors.index.json' lists"):
        open_checkpoint(tmp_path)
    write(tmp_path / "b.safetensors", QUERY, KEY)
    with pytest.raises(SourceError, match=f"holds '{QUERY}' twice, in .*a.safetensors and .*b.safetensors"):
        open_checkpoint(tmp_path)
    write(tmp_path / "b.safetensors", KEY, "lm_head.weight")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.n_tensors == 3
    assert "model.safetensors.index.json does not list lm_head.weight, which its shards hold." in checkpoint.notes


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "{}",
        "[" * 100_000,
        '{"weight_map": {}}',
        '{"weight_map": [1]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "."}}',
        '{"weight_map": {"a": "../x"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "x\\u0000"}}',
    ],
)
def test_damaged_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(SourceError, match=r"damaged|lacks|cannot be read"):
        open_checkpoint(tmp_path)


def test_damaged_config_is_a_note(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {}
    assert "Went on without a configuration" in checkpoint.notes[0]


def test_dangling_links(tmp_path: Path) -> None:
    link = tmp_path / "model.safetensors"
    link.symlink_to("blob")
    with pytest.raises(SourceError, match="is a link to 'blob', which does not exist"):
        open_checkpoint(link)
    with pytest.raises(SourceError, match=r"model.safetensors' cannot be read: No such file"):
        open_checkpoint(tmp_path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads everything, so be nobody for a moment."""
    root = os.getuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


def test_unreadable() -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own is closed to others
        folder = Path(scratch)
        folder.chmod(0o755)
        path = write(folder / "closed" / "model.safetensors")
        path.chmod(0)
        with (
            unprivileged(),
            pytest.raises(SourceError, match=r"model.safetensors' cannot be read: Permission den"),
        ):
            open_checkpoint(path)
        path.parent.chmod(0)
        with unprivileged(), pytest.raises(SourceError, match=r"closed' cannot be listed: Permission denied"):
            open_checkpoint(path.parent)
        with unprivileged(), pytest.raises(SourceError, match="it has no files that can be read"):
            open_checkpoint(folder)
        path.parent.chmod(0o755)


def test_safetensors_needs_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    code = (
        "import sys; from specdiag.checkpoint.reader import open_checkpoint\n"
        "for matrix in open_checkpoint(sys.argv[1]).matrices: matrix.tensor.read(None)\n"
        "assert not {'torch', 'huggingface_hub', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    python(code, tmp_path)
