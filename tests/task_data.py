"""Labelled rows in files, tokenizers, and small encoders that a Trainer trains on them."""

import csv
import io
import json
import shutil
import sysconfig
import tokenize
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from specdiag.train.tasks.glue import GLUE

BLOCK, VOCABULARY = 32, 400


def roberta_tokenizer(text: Path) -> transformers.PreTrainedTokenizerFast:
    """As RoBERTa's, with few tokens, learned from a text."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.train(
        [str(text)],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **names
    )


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token for a word that it knows; nothing is put around them."""
    pieces = Tokenizer(models.WordLevel({"[PAD]": 0, "?": 1, "a": 2, "b": 3, "c": 4}, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="?")


def small(kind, **options):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=BLOCK + 2, pad_token_id=1, bos_token_id=0, eos_token_id=2, **options,
    )  # fmt: skip
    return getattr(transformers, f"RobertaFor{kind}")(config)


def trainer(folder, model, data, *, steps, save_steps, **options):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=save_steps, logging_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=8, learning_rate=5e-3, seed=7, **options,
    )  # fmt: skip
    made = transformers.Trainer(
        model, arguments, train_dataset=data.train, eval_dataset=data.held_out, data_collator=data.collate,
        compute_metrics=data.metrics,
    )  # fmt: skip
    made.remove_callback(transformers.PrinterCallback)
    return made


def resumed_is_whole(tmp_path, make, *, steps, at):
    """A run that was cut off at a checkpoint ends with the same weights."""
    make(tmp_path / "whole").train()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{at}", tmp_path / "cut" / f"checkpoint-{at}")
    make(tmp_path / "cut").train(resume_from_checkpoint=True)
    whole, cut = ((tmp_path / n / f"checkpoint-{steps}" / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    return whole == cut


def table(columns, n=24):
    """Rows whose texts differ, labels by turns."""
    *texts, _ = columns
    return [{**{name: f"{name} {'a ' * i}".strip() for name in texts}, columns[-1]: i % 2} for i in range(n)]


def labelled(folder, task, name=None):
    columns = [*GLUE[task].texts, "label"]
    return write(folder / (name or f"{task}.jsonl"), table(columns))


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(file.getvalue())
    return path


def comments(folder):
    """Lines of the library that hold a `#`: those that begin with it, and those that do not."""
    found = {True: [], False: []}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]:
        with tokenize.open(path) as file:
            for line in map(str.strip, file):
                if 8 < len(line) < 60:
                    found[line.startswith("#")].append(line)
    n = min(map(len, found.values()), default=0)
    assert n > 300
    rows = [{"text": line, "label": "comment" if kind else "code"} for kind in found for line in found[kind][:n]]
    return write(folder / "lines.csv", rows)
