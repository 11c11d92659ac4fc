"""Names of faults in a sentence, and what to do about each."""

from __future__ import annotations

from specdiag.verification.records import Cause

SENTENCES: dict[Cause, str] = {
    "not applied": "the adapter was not applied",
    "applied twice": "the adapter was applied twice",
    "subtracted": "the adapter was subtracted",
    "wrong scale": "the adapter was applied with another scale",
    "part of the update": "only a part of the update is there",
    "wrong module": "updates were applied to other modules",
    "magnitudes left out": "DoRA's magnitudes were left out",
    "other base": "the adapter was merged into another base model",
    "other update": "the changes are not this adapter's",
    "module missing": "the adapter changes modules that the base model does not have",
    "changed": "weights differ by more than rounding",
    "other dtype": "values have the precision of a narrower type",
    "scaled": "tensors are scaled",
    "transposed": "tensors are transposed",
    "rotary order": "rows of q and k lie in the wrong rotary order",
    "rows permuted": "rows are permuted",
    "columns permuted": "columns are permuted",
    "values of another tensor": "tensors hold the values of others",
    "coarser than its storage": "values are coarser than their storage: they were in codes of fewer bits",
    "few values differ": "single values differ",
    "not finite": "values are not finite",
    "other shape": "shapes differ",
    "other values": "tensors hold other values",
    "missing": "tensors are missing",
    "added": "there are tensors that the first model does not have",
    "lost by the adapter": "the adapter lacks what its settings promise",
    "tied table": "an update was added to embedding and head alike",
    "no update": "the adapter changes nothing: its updates are zero, or vanish in float32",
    "below the rounding": "the update is smaller than the rounding of the storage",
}

ADVICE: dict[Cause, str] = {
    "not applied": "merge again, and save the model that merge_and_unload returns",
    "applied twice": "merge into the plain base model, not into one that was merged before",
    "subtracted": "the adapter was unmerged from a model without it: merge into the plain base model",
    "wrong scale": "compare lora_alpha, r and use_rslora of adapter_config.json with what the merging program reads",
    "part of the update": "merge with the adapter file given here, and with all of its ranks",
    "wrong module": "compare the names of the adapter's modules with those that the merging program used",
    "magnitudes left out": "merge with a program that knows DoRA (use_dora), such as PEFT",
    "other base": "give the base model that was loaded for the merge, quantised if it was",
    "other update": "give the adapter that was merged, of the same training step",
    "module missing": "give the base model that the adapter was made for (base_model_name_or_path)",
    "changed": "these tensors are no copies: look for training, pruning or folding after the model given here",
    "other dtype": "load the model in the type in which it is to be saved, then convert or merge",
    "scaled": "look for folded norms or scales of a quantiser; this compares values, not what they compute",
    "transposed": "look how the conversion treats linear layers and Conv1D",
    "rotary order": "permute the rows of q and k as the format asks for",
    "rows permuted": "look for an order of heads, experts or neurons that the conversion changed",
    "columns permuted": "look for an order of inputs that the conversion changed, such as that of act_order",
    "values of another tensor": "look at the table of names of the conversion",
    "coarser than its storage": "convert from the original, not from a quantised copy",
    "few values differ": "the file may be damaged: fetch or write it again",
    "not finite": "values overflowed or were lost: convert to BF16 or F32",
    "other shape": "look for a resized vocabulary or other heads",
    "other values": "look at the table of names of the conversion, or whether these are one model",
    "missing": "save the whole model",
    "added": "look where these tensors come from",
    "lost by the adapter": "fetch or save the adapter again; else take these entries out of adapter_config.json",
    "tied table": (
        "untie them before the merge: load the base with tie_word_embeddings=False, copy the embedding into the head, "
        "save it, and merge into that"
    ),
    "no update": "the adapter was saved before training, or empty",
    "below the rounding": "merge into F32 to see the difference",
}
