"""Which tensors of a torch file are the model, what is left out, and that none is lost on the way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from specdiag.checkpoint.memory import from_model, from_state_dict
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError, SpecdiagError
from specdiag.trajectories.steps import find_steps

QUERY = "layers.0.self_attn.q_proj.weight"
KEY = "layers.0.self_attn.k_proj.weight"


def model(size: int = 4) -> dict[str, torch.Tensor]:
    return {QUERY: torch.ones(size, size), KEY: torch.ones(size, size), "norm.weight": torch.ones(size)}


def moments() -> dict[str, Any]:
    state = {
        i: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 4), "exp_avg_sq": torch.ones(4, 4)} for i in (0, 1)
    }
    return {"state": state, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]}


def opened(folder: Path, content: object, name: str = "x.pt") -> Checkpoint:
    torch.save(content, folder / name)
    return open_checkpoint(folder / name)


def names(checkpoint: Checkpoint) -> list[str]:
    return [matrix.name for matrix in checkpoint.matrices]


def prefixed(prefix: str, tensors: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in (tensors or model()).items()}


BESIDE = {
    "confusion matrix": ({"confusion": torch.ones(8, 8)}, r"confusion \(1 tensor of 8x8\)"),
    "losses": ({"train_losses": torch.ones(10, 2)}, r"train_losses \(1 tensor of 10x2\)"),
    "normaliser": ({"mean": torch.ones(1, 8), "std": torch.ones(1, 8)}, r"mean \(1 tensor of 1x8\), std \(1 tensor"),
    "token ids": ({"ids": torch.zeros(9, 3, dtype=torch.long)}, r"ids \(1 tensor of 9x3\)"),
    "a loss": ({"loss": torch.tensor(1.0)}, r"loss \(1 tensor of one value\)"),
    "tensors in a dictionary": ({"stats": {"cov": torch.ones(3, 3), "mu": torch.ones(3)}}, "2 tensors under 'stats'"),
    "tensors in a list": ({"history": [torch.ones(2, 2), torch.ones(2, 2)]}, "2 tensors under 'history'"),
    "an optimizer": ({"opt": moments()}, r"opt \(an optimizer's state\)"),
    "optimizers in a list": ({"optimizer_states": [moments()]}, r"optimizer_states \(an optimizer's state\)"),
    "a schedule": ({"s": {"last_epoch": 1, "_step_count": 2}}, r"s \(a learning-rate schedule's state\)"),
    "a scaler": ({"s": {"growth_factor": 2.0, "backoff_factor": 0.5}}, r"s \(a gradient scaler's state\)"),
    "a sparse tensor": ({"r": torch.eye(3).to_sparse()}, r"r \(1 tensor of 3x3\)"),
    "no tensors": ({"epoch": 3, "args": {"lr": 1.0}}, "left out epoch, args"),
}


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "network"])
@pytest.mark.parametrize("case", BESIDE)
def test_what_lies_beside_the_model(tmp_path: Path, case: str, wrapper: str) -> None:
    beside, said = BESIDE[case]
    checkpoint = opened(tmp_path, {**beside, wrapper: model()})
    assert names(checkpoint) == [QUERY, KEY]
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(checkpoint.notes[0])
    assert f"Took the weights under '{wrapper}'" in checkpoint.notes[0]


@pytest.mark.parametrize("case", [case for case in BESIDE if case not in ("confusion matrix", "losses", "normaliser")])
def test_what_lies_beside_loose_weights(tmp_path: Path, case: str) -> None:
    beside, _ = BESIDE[case]
    assert names(opened(tmp_path, {**model(), **beside})) == [QUERY, KEY]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"net": model(), "net_ema": model()}, ("'net'", "'net_ema'")),
        ({"generator": model(), "discriminator": model()}, ("'generator'", "'discriminator'")),
        ({"model": model(), **prefixed("encoder.")}, ("'model'", f"encoder.{QUERY}")),
        ({"encoder": model(), "head.weight": torch.ones(4, 4)}, ("'encoder'", "head.weight")),
        ({"net": {"W1": torch.ones(4, 4), "W2": torch.ones(4, 4)}, "proj.weight": torch.ones(4, 4)}, ("'net'", "proj")),
        ({"a": {"x": torch.ones(4, 4)}, "b": {"y": torch.ones(4, 4)}}, ("'a'", "'b'")),
        ({"model": {"state_dict": model(), "model_state_dict": model()}}, ("'state_dict'", "'model_state_dict'")),
    ],
)
def test_two_models_are_refused_with_both_named(tmp_path: Path, content: object, named: tuple[str, str]) -> None:
    with pytest.raises(SourceError, match="save the one to analyse") as raised:
        opened(tmp_path, content)
    assert all(name in str(raised.value) for name in named)


def test_state_dict_within_a_wrapper(tmp_path: Path) -> None:
    content = {"model": {"state_dict": model(), "ema": model(), "optimizer": moments()}, "epoch": 3}
    checkpoint = opened(tmp_path, content)
    assert names(checkpoint) == [QUERY, KEY]
    assert "left out epoch" in checkpoint.notes[0]
    assert "Took the weights under 'model.state_dict'" in checkpoint.notes[1]
    assert "left out 3 tensors under 'ema', optimizer (an optimizer's state)" in checkpoint.notes[1]


def test_module_with_the_name_of_a_side_thing(tmp_path: Path) -> None:
    assert names(opened(tmp_path, {"hyper_network": model(), "epoch": 1})) == [QUERY, KEY]
    assert names(opened(tmp_path, {"loop_transformer": model()})) == [QUERY, KEY]


def test_optimizer_within_the_weights_is_left_out(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"run": {"net": model(), "optim": moments()}})
    assert names(checkpoint) == [QUERY, KEY]
    assert "optim (an optimizer's state)" in checkpoint.notes[0]


OPTIMIZERS = {
    "torch": moments(),
    "momentum only": {"state": {0: {"momentum_buffer": torch.ones(4, 4)}}, "param_groups": [{"params": [0]}]},
    "not yet stepped": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    "state alone": moments()["state"],
    "by names": {"state": {QUERY: {"exp_avg": torch.ones(4, 4)}}, "param_groups": []},
    "flat": {f"state.{QUERY}.exp_avg": torch.ones(4, 4), f"state.{QUERY}.step": torch.tensor(1.0)},
    "8 bits": {"state": {0: {"state1": torch.ones(4, 4), "qmap1": torch.ones(256)}}, "param_groups": [{"params": [0]}]},
    "ZeRO": {"optimizer_state_dict": {"zero_stage": 2, "single_partition_of_fp32_groups": [torch.ones(64)]}},
    "Lightning": {"optimizer_states": [moments()]},
}


@pytest.mark.parametrize("name", ["optimizer.pt", "state.pt", "optimizer.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_are_no_weights(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(SourceError, match="an optimizer's state"):
        opened(tmp_path, OPTIMIZERS[kind], name)


def test_moments_in_other_formats(tmp_path: Path) -> None:
    save_file({f"{QUERY}.exp_avg": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"is an optimizer's state \(exp_avg\): give the file of the weights"):
        open_checkpoint(tmp_path)
    checkpoint = from_state_dict({**model(), f"{QUERY}.exp_avg": torch.ones(4, 4)})
    assert names(checkpoint) == [QUERY, KEY]
    assert {s.reason for s in checkpoint.skipped if "exp_avg" in s.name} == {"an optimizer's state"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"last_epoch": 3, "_step_count": 4, "base_lrs": [1e-3]}, "is a learning-rate schedule's state"),
        ({"scale": 1.0, "growth_factor": 2.0, "backoff_factor": 0.5}, "is a gradient scaler's state"),
    ],
)
def test_schedules_and_scalers_are_no_weights(tmp_path: Path, content: object, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        opened(tmp_path, content)


@pytest.mark.parametrize(
    ("trained", "average"),
    [
        ("online_model.", "ema_model."),
        ("model.", "model_ema."),
        ("module.model.", "module.ema."),
        ("", "ema."),
        ("critic.", "critic_target."),
        ("encoder_q.", "encoder_k."),
    ],
)
def test_average_beside_the_model(tmp_path: Path, trained: str, average: str) -> None:
    state = {**prefixed(trained), **prefixed(average), "initted": torch.tensor(True)}
    torch.save(state, tmp_path / "x.pt")
    save_file(state, tmp_path / "x.safetensors")
    for checkpoint in (open_checkpoint(tmp_path / "x.pt"), open_checkpoint(tmp_path / "x.safetensors")):
        assert len(checkpoint.matrices) == 2
        assert not any("ema" in name or "target" in name or "encoder_k" in name for name in names(checkpoint))
        copies = [s for s in checkpoint.skipped if s.reason.startswith("averaged or lagging copy of the")]
        assert len(copies) == 3
        assert "Left out 3 tensors under" in checkpoint.notes[-1]


def test_average_with_names_without_dots(tmp_path: Path) -> None:
    """As latent diffusion saves them."""
    flat = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in model().items()}
    assert names(opened(tmp_path, {**prefixed("model."), **flat})) == [f"model.{QUERY}", f"model.{KEY}"]


@pytest.mark.parametrize(("one", "other"), [("teacher.", "student."), ("generator.", "discriminator.")])
def test_rivals(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(
        SourceError,
        match=f"holds two models, under '{min(one, other)[:-1]}' and .*: pick one, such as with part={min(one, other)[:-1]}",
    ):
        opened(tmp_path, {**prefixed(one), **prefixed(other)})
    with pytest.raises(SourceError, match="holds two models, under"):
        opened(tmp_path, {**prefixed(one), **prefixed(other, model(6))})
    assert len(opened(tmp_path, {**prefixed(one), f"{other}proj.weight": torch.ones(4, 6)}).matrices) == 3


@pytest.mark.parametrize(
    "state",
    [
        {"attn.q.weight": torch.ones(4, 4), "attn.k.weight": torch.ones(4, 4)},
        {"layers.0.ema.weight": torch.ones(4, 4), "layers.0.proj.weight": torch.ones(4, 4)},
        {"ema.a.weight": torch.ones(4, 4), "net.a.weight": torch.ones(4, 6)},
        {"0.weight": torch.ones(4, 4), "1.weight": torch.ones(4, 4)},
        {"query_encoder.a.weight": torch.ones(4, 4), "passage_encoder.a.weight": torch.ones(4, 4)},
    ],
)
def test_modules_that_look_alike_are_no_twins(state: dict[str, torch.Tensor]) -> None:
    assert names(from_state_dict(state)) == list(state)


SAME_NAME = {
    "integer and text": {1: torch.ones(4, 4), "1": torch.ones(4, 5)},
    "bytes and text": {b"a": torch.ones(4, 4), "a": torch.ones(4, 5)},
    "float and text": {1.5: torch.ones(4, 4), "1.5": torch.ones(4, 5)},
    "truth and text": {True: torch.ones(4, 4), "True": torch.ones(4, 5)},
    "none and text": {None: torch.ones(4, 4), "None": torch.ones(4, 5)},
    "tuple and text": {("a", "b"): torch.ones(4, 4), "('a', 'b')": torch.ones(4, 5)},
    "surrogate and its escape": {"\udc80": torch.ones(4, 4), r"\udc80": torch.ones(4, 5)},
    "dots": {"model": {"a.b": {"weight": torch.ones(4, 4)}, "a": {"b.weight": torch.ones(4, 5)}}},
    "list and dots": {"model": {"a": [torch.ones(4, 4)], "a.0": torch.ones(4, 5)}},
    "list and dictionary": {"model": {"a": [torch.ones(4, 4)], b"a": {0: torch.ones(4, 5)}}},
    "below": {"model": {1: {"w": torch.ones(4, 4)}, "1": {"w": torch.ones(4, 5)}}},
}


@pytest.mark.parametrize("case", SAME_NAME)
def test_two_tensors_of_one_name(tmp_path: Path, case: str) -> None:
    with pytest.raises(SourceError, match=r"holds two tensors of the name .* under the keys .* and .*: rename one"):
        opened(tmp_path, SAME_NAME[case])


def test_two_names_of_one_model_in_memory() -> None:
    with pytest.raises(SourceError, match="holds two tensors of the name '1', under the keys 1 and '1': rename one"):
        from_state_dict(SAME_NAME["integer and text"])  # pyright: ignore[reportArgumentType]


def test_names_that_only_look_alike_stay_apart(tmp_path: Path) -> None:
    """Two Unicode forms of a letter."""
    content = {"caf\u00e9.weight": torch.ones(4, 4), "cafe\u0301.weight": torch.ones(4, 5), 2**40000: torch.ones(4, 4)}
    assert names(opened(tmp_path, content))[:2] == ["caf\u00e9.weight", "cafe\u0301.weight"]
    assert open_checkpoint(tmp_path).n_tensors == 3


def test_lists_of_tensors_are_entered(tmp_path: Path) -> None:
    content = {"model": {"blocks": [{"q.weight": torch.ones(4, 4)}, ({"q.weight": torch.ones(4, 4)},)]}}
    assert names(opened(tmp_path, content)) == ["blocks.0.q.weight", "blocks.1.0.q.weight"]


def test_sets_of_tensors_are_named(tmp_path: Path) -> None:
    assert "bag (a set with 1 tensor)" in opened(tmp_path, {"model": {**model(), "bag": {torch.ones(2, 2)}}}).notes[0]


@pytest.mark.parametrize("depth", [20, 60])
def test_depth_that_is_read(tmp_path: Path, depth: int) -> None:
    content: dict[str, Any] = model()
    for _ in range(depth):
        content = {"a": content}
    assert len(opened(tmp_path, content).matrices) == 2


def test_depth_that_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = model()
    for _ in range(300):
        content = {"a": content}
    with pytest.raises(SourceError, match="nests dictionaries more than 64 deep"):
        opened(tmp_path, content)


@pytest.mark.parametrize("wrap", [lambda d: {"model": d}, lambda d: dict.fromkeys("abcdefgh", d)])
def test_dictionaries_that_share_dictionaries(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    content: dict[str, Any] = {"w": torch.ones(4, 4)}
    for _ in range(20):
        content = {str(i): content for i in range(3)}
    with pytest.raises(SourceError, match="holds the same dictionaries under more than 100000 names"):
        opened(tmp_path, wrap(content))


def test_dictionary_that_is_shared_once(tmp_path: Path) -> None:
    held = model()
    checkpoint = opened(tmp_path, {"model": {"encoder": held, "decoder": held}})
    assert names(checkpoint) == [f"encoder.{QUERY}", f"encoder.{KEY}"]
    assert {s.reason for s in checkpoint.skipped if "decoder" in s.name and "proj" in s.name} == {
        f"tied to encoder.{QUERY}",
        f"tied to encoder.{KEY}",
    }


def test_dictionary_that_holds_itself_beside_tensors(tmp_path: Path) -> None:
    content: dict[str, Any] = model()
    content["again"] = content
    assert names(opened(tmp_path, {"model": content})) == [QUERY, KEY]


def test_repeated_values_are_read(tmp_path: Path) -> None:
    row = torch.arange(6.0)
    state = {QUERY: row.expand(4, 6), KEY: row[:4].unsqueeze(1).expand(4, 6)}
    for matrix in opened(tmp_path, state).matrices:
        assert torch.equal(torch.from_numpy(matrix.tensor.read(None)), state[matrix.name])
        assert torch.equal(torch.from_numpy(matrix.tensor.read(2)), state[matrix.name][2])


def ragged() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)])


ODD: dict[str, tuple[Callable[[], torch.Tensor], str, tuple[int, ...]]] = {
    "nested": (ragged, "nested: its rows have different lengths", (20,)),
    "sparse": (lambda: torch.eye(4).to_sparse(), "sparse_coo", (4, 4)),
    "compressed": (lambda: torch.eye(4).to_sparse_csr(), "sparse_csr", (4, 4)),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8), "quantized", (4, 4)),
    "meta": (lambda: torch.empty(4, 4, device="meta"), "meta: it has no values", (4, 4)),
    "complex": (lambda: torch.ones(4, 4, dtype=torch.complex64), "C64", (4, 4)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_skipped_by_their_kind(tmp_path: Path, kind: str) -> None:
    make, named, shape = ODD[kind]
    tensor = make()
    for checkpoint in (opened(tmp_path, {**model(), "odd.weight": tensor}), from_state_dict({"odd.weight": tensor})):
        (skipped,) = [s for s in checkpoint.skipped if s.name == "odd.weight"]
        assert skipped.shape == shape
        assert named in skipped.reason


@pytest.mark.filterwarnings("ignore")
def test_subclasses_in_memory_are_skipped() -> None:
    with torch._subclasses.FakeTensorMode():  # pyright: ignore[reportPrivateUsage]
        fake = torch.ones(4, 4)
    jagged = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)], layout=torch.jagged)
    checkpoint = from_state_dict({**model(), "fake.weight": fake, "jagged.weight": jagged})
    assert names(checkpoint) == [QUERY, KEY]
    assert any("FakeTensor: its values lie elsewhere" in s.reason for s in checkpoint.skipped)


def test_empty_and_single_values(tmp_path: Path) -> None:
    content = {**model(), "none.weight": torch.ones(0, 4), "one.weight": torch.tensor(1.0)}
    checkpoint = opened(tmp_path, content)
    assert names(checkpoint) == [QUERY, KEY]
    assert {s.name for s in checkpoint.skipped} == {"norm.weight", "none.weight", "one.weight"}


def test_views_with_marks_are_read() -> None:
    """The imaginary part of a conjugate is a view that numpy would refuse."""
    values = torch.complex(torch.ones(4, 4), torch.full((4, 4), 2.0))
    (matrix,) = from_state_dict({QUERY: values.conj().imag}).matrices
    assert (matrix.tensor.read(None) == -2).all()


def test_extra_state_in_memory_is_named() -> None:
    class Counting(torch.nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 3}

        def set_extra_state(self, state: object) -> None:
            del state

    checkpoint = from_model(Counting(4, 4))
    assert checkpoint.notes == ("Left out _extra_state of Counting, no tensors by themselves.",)


PARTS = {
    "consolidated.00.pth": "consolidated.01.pth",
    "consolidated.01.pth": "consolidated.00.pth",
    "mp_rank_00_model_states.pt": "mp_rank_01_model_states.pt",
    "mp_rank_00/model_optim_rng.pt": "mp_rank_01/model_optim_rng.pt",
    "layer_01-model_00-model_states.pt": "layer_01-model_01-model_states.pt",
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_for_tensor_parallelism_alone(tmp_path: Path, name: str) -> None:
    for file in (name, PARTS[name]):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        torch.save(model(), tmp_path / file)
    for call in (lambda: open_checkpoint(tmp_path, file=name), lambda: open_checkpoint(tmp_path / name)):
        with pytest.raises(SourceError, match=r"is part [12] of 2 of a model cut for tensor parallelism"):
            call()


@pytest.mark.parametrize("name", ["consolidated.00.pth", "mp_rank_00_model_states.pt", "mp_rank_00/model_optim_rng.pt"])
def test_first_part_without_others_is_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    torch.save({"module": model()}, tmp_path / name)
    assert names(open_checkpoint(tmp_path / name)) == [QUERY, KEY]


def test_zero_partitions_are_refused(tmp_path: Path) -> None:
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        with pytest.raises(SourceError, match=r"that DeepSpeed ZeRO divided among processes: give its folder"):
            opened(tmp_path, {"module": model()}, name)


def test_optimizer_partitions_beside_whole_weights(tmp_path: Path) -> None:
    torch.save({"module": model()}, tmp_path / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert names(open_checkpoint(tmp_path)) == [QUERY, KEY]


@pytest.mark.filterwarnings("ignore")
def test_part_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"model": model()}, checkpoint_id=str(tmp_path / "step-1"), no_dist=True)
    (part,) = (tmp_path / "step-1").glob("*.distcp")
    renamed, elsewhere = part.with_name("__0_0.bin"), tmp_path / "model.bin"
    for copy in (renamed, elsewhere):
        copy.write_bytes(part.read_bytes())
    for path in (part, renamed, elsewhere):
        with pytest.raises(SourceError, match=r"a part of a distributed checkpoint.*: give the whole folder"):
            open_checkpoint(path)
    assert names(open_checkpoint(tmp_path / "step-1")) == [QUERY, KEY]


def test_one_shard_says_of_how_many(tmp_path: Path) -> None:
    for i in (1, 2):
        torch.save(prefixed(f"part{i}."), tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
    checkpoint = open_checkpoint(tmp_path / "pytorch_model-00001-of-00002.bin")
    assert "pytorch_model-00001-of-00002.bin is one of 2 shards" in checkpoint.notes[0]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf"])
def test_suffixes_of_a_run(tmp_path: Path, suffix: str) -> None:
    for step in (1, 2):
        (tmp_path / f"step_{step}{suffix}").write_bytes(b"")
    assert [step.step for step in find_steps(tmp_path)] == [1, 2]


def test_ordered_dictionaries_and_bytes(tmp_path: Path) -> None:
    assert names(opened(tmp_path, OrderedDict({b"a.weight": torch.ones(4, 4)}))) == ["a.weight"]


def test_keys_that_cannot_be_written_are_no_crash(tmp_path: Path) -> None:
    content = {"model": model(), 10**5000: 1, (10**5000,): 2, "x" * 10**6: torch.ones(2), "\udc80": 4}
    try:
        note = opened(tmp_path, content).notes[0]
    except SpecdiagError as error:
        note = str(error)
    assert len(note) < 2000
    note.encode()
