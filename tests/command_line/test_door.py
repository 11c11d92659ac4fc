"""Arguments in the sentences of the library become options of the command that runs."""

import pytest
import typer
from specdiag_cli import door, output
from specdiag_cli.main import app
from typer.testing import CliRunner

from specdiag.errors import UsageError

COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def said(text: str, command: str = "analyze", kept: tuple[str, ...] = ()) -> str:
    return door.in_options(text, COMMANDS[command].params, kept)


@pytest.mark.parametrize(
    ("library", "program"),
    [
        ("experts=0: give 1 or more", "--experts 0: give 1 or more"),
        ("leave out stream=True", "leave out --stream"),
        ("this report was made with randomize=False.", "this report was made with no --randomize."),
        ("randomize=False finds none", "no --randomize finds none"),
        ("for an adapter give base=, or leave it out", "for an adapter give --base, or leave it out"),
        ("add lr=, weight_decay= (tail_fraction=.5)", "add lr=, weight_decay= (--tail-fraction .5)"),
        ("base='org/name' is none", "--base org/name is none"),
        ("file='a b.bin': no", "--file 'a b.bin': no"),
        ("try device=cuda:1, or jobs=None.", "try --device cuda:1, or no --jobs."),
        ("roles=('q', 'k') and include=['*.up']", "--role q --role k and --include '*.up'"),
        ("unknown tail='hil'; choose from hill", "unknown --tail hil; choose from hill"),
        ("role_map=roles.toml.", "--role-map roles.toml."),
        ("give --set seed=3 and --set bf16=", "give --set seed=3 and --set bf16="),
    ],
)
def test_arguments_become_options(library, program):
    assert said(library) == program


@pytest.mark.parametrize(
    "text",
    [
        "config.json says 'num_experts=8' where experts are",
        "config.json has num_experts=8",
        "'experts=3' is a key of the file",
        'the header has "tail=hill" in it',
        "see `base=x`",
        "give get(model, options=Options(stream=True)) or load(path, base=2)",
        "runs/seed=1/checkpoint-5 holds no weights, nor run-seed=1",
        "https://host/x?file=a&revision=b",
        "training.seed=3 and --set seed=3"[:17],
        "file == x",
        "momentum=0.9 of another command",
        "the model's file's names",
    ],
)
def test_other_text_stays(text):
    assert said(text) == text


def test_each_command_knows_its_own_options():
    text = "clip=(5, 95) betas=(0.9, 0.95) revisions= out='x'"
    assert said(text, "recommend") == "--clip 5 95 betas=(0.9, 0.95) revisions= --out x"
    assert said(text, "simulate") == "clip=(5, 95) --betas 0.9 0.95 revisions= --out x"
    assert said("layout='mine' or optimizer_layout=, stop_on_nan=False, config=", "train") == (
        "--optimizer-layout mine or --optimizer-layout, --no-stop-on-nan, --config"
    )


def test_train_sets_the_trainers_arguments():
    pytest.importorskip("transformers.training_args")
    text = "give save_steps=100, learning_rate=3e-4 or weight_decay=, go on with resume='runs/my run', model.size=4"
    assert said(text, "train") == (
        "give --set save_steps=100, --lr 3e-4 or --weight-decay, go on with --resume 'runs/my run', model.size=4"
    )
    assert said("give save_steps=100") == "give save_steps=100"


def test_what_was_typed_stays():
    assert said("seed=1 holds no weights; seed=2 may", kept=("seed=1",)) == "seed=1 holds no weights; --seed 2 may"


def test_errors_and_sentences_of_a_command_are_translated():
    program = typer.Typer()

    @program.command()
    @output.guarded
    def command(ctx: typer.Context, source: str, jobs: int = 1) -> None:
        output.talk(f"{source}: jobs=2 is more")
        raise UsageError(f"{source} takes jobs={jobs} and no seed=3")

    result = CliRunner().invoke(program, ["jobs=8", "--jobs", "5"])
    assert result.exit_code == 2
    assert "jobs=8: --jobs 2 is more" in result.stderr
    assert "error: jobs=8 takes --jobs 5 and no seed=3" in result.stderr
    assert door.translated("jobs=1") == "jobs=1"
