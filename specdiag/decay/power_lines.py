"""A base weight decay for a run that has not started: Power Lines (Bergsma et al. 2025, arXiv 2505.13738).

AdamW's weights are an average over the last 1/(lr x weight_decay) steps. As a fraction of the run that time is tau, and
the best tau was found to depend on the tokens per parameter alone. tau and the lr give the decay, which has to be
derived again when the lr changes.
"""

from __future__ import annotations

from specdiag.errors import UsageError
from specdiag.records import Record
from specdiag.text import checks
from specdiag.text.counts import percent

FIT_CONTEXT = 2048
"""Tokens in a sequence of the paper's runs. Its optimal batch is counted in such sequences."""
_MOST_COUNT = 1e18
"""More tokens or parameters than anybody has."""
FIT_PARAMS = (111e6, 3.3e9)
"""Smallest and largest number of parameters of the paper's models."""


class Customary(Record, frozen=True, kw_only=True):
    """A weight decay that others used."""

    model: str
    weight_decay: float
    remark: str
    """How far that is known, or what it leaves out; empty where nothing is to be said."""
    source: str


CUSTOMARY: tuple[Customary, ...] = (
    Customary(
        model="GPT-1",
        weight_decay=0.01,
        remark="",
        source="Radford et al. 2018, section 4.1",
    ),
    Customary(
        model="GPT-2",
        weight_decay=0.01,
        remark="probably: inferred from GPT-1 and from the weights",
        source="nostalgebraist, as cited in 'Writing an LLM from scratch, part 32f'",
    ),
    Customary(
        model="GPT-3",
        weight_decay=0.1,
        remark="",
        source="Brown et al. 2020, arXiv 2005.14165, appendix B",
    ),
    Customary(
        model="Llama 1 to 3, DeepSeek V1 to V3",
        weight_decay=0.1,
        remark="",
        source="Hugging Face, 'The Smol Training Playbook'",
    ),
    Customary(
        model="SmolLM3",
        weight_decay=0.1,
        remark="none on the embeddings",
        source="Hugging Face, 'The Smol Training Playbook'",
    ),
)


class PowerLines(Record, frozen=True, kw_only=True):
    """Answers of the fits for a planned run, with their inputs."""

    tokens: float
    """D: training tokens of the whole run, repeats counted."""
    params: float
    """N: parameters."""
    batch_tokens: float
    """B: tokens of one optimizer step, over all devices and accumulated micro-batches."""
    context_length: int
    """Tokens in a sequence of this run."""
    lr: float
    """Peak learning rate."""
    tpp: float
    """D/N, tokens per parameter."""
    steps: float
    """D/B, optimizer steps."""
    tau_opt: float
    """Best averaging time, as a fraction of the run."""
    weight_decay: float
    """lambda_opt: AdamW's `weight_decay`, which the optimizer multiplies by the lr of each step."""
    batch_opt_sequences: float
    """Best batch in sequences of `FIT_CONTEXT` tokens, as fitted. Information only."""
    batch_opt_tokens: float
    """The same in tokens."""
    batch_opt_own_sequences: float
    """The same in sequences of `context_length` tokens, if tokens are what matters."""
    flops: float
    """C = 6 N D, the compute that DeepSeek's formulas are given here."""
    deepseek_batch_tokens: float
    """DeepSeek's best batch for that compute, in tokens. Information only."""
    deepseek_lr: float
    """DeepSeek's best peak lr for that compute. Information only."""


def optimal_tau(tpp: float) -> float:
    """tau_opt = 1.084 TPP^-0.527, a fraction of the run.

    Args:
        tpp: training tokens per parameter.
    """
    return 1.084 * tpp**-0.527


def tau(weight_decay: float, lr: float, tokens: float, batch_tokens: float) -> float:
    """B/(lr lambda D): the averaging time of AdamW with this decay, as a fraction of the run.

    Args:
        weight_decay: lambda, AdamW's argument.
        lr: peak learning rate.
        tokens: D, training tokens of the run. Sequences will do if the batch is in sequences too.
        batch_tokens: B, tokens of one step, in the unit of `tokens`.
    """
    return batch_tokens / (lr * weight_decay * tokens)


def decay_for(tau: float, lr: float, tokens: float, batch_tokens: float) -> float:
    """B/(lr tau D): the decay with this averaging time, the inverse of the function `tau`.

    Args:
        tau: averaging time as a fraction of the run.
        lr: peak learning rate.
        tokens: D, training tokens of the run.
        batch_tokens: B, tokens of one step, in the unit of `tokens`.
    """
    return batch_tokens / (lr * tau * tokens)


def optimal_batch(tokens: float) -> float:
    """B_opt = 0.0306 D^0.383: the best batch.

    Args:
        tokens: D, training tokens of the run.

    Returns:
        Sequences of `FIT_CONTEXT` tokens, although D is in tokens.
    """
    return 0.0306 * tokens**0.383


def deepseek(flops: float) -> tuple[float, float]:
    """DeepSeek LLM (arXiv 2401.02954): best batch in tokens, 0.2920 C^0.3271, and best peak lr, 0.3118 C^-0.1250.

    Args:
        flops: C, training compute. The paper counts non-embedding work with attention, not 6 N D.

    Returns:
        The batch in tokens, and the peak lr.
    """
    return 0.2920 * flops**0.3271, 0.3118 * flops**-0.1250


def power_lines(*, tokens: float, params: float, batch_tokens: float, context_length: int, lr: float) -> PowerLines:
    """Compute the decay, and for information the batch sizes, that the fits give for a planned run.

    Args:
        tokens: D, training tokens of the whole run.
        params: N, parameters of the model.
        batch_tokens: B, tokens of one optimizer step (not sequences).
        context_length: tokens in a sequence of this run.
        lr: peak learning rate.

    Raises:
        UsageError: a number is not positive and finite, the batch is smaller than a sequence or larger than the run,
            or the run is so short that one step would have to remove all weights.
    """
    tokens, params, batch_tokens, lr = (
        checks.number(name, value, above=0, most=most, hint=meaning)
        for name, value, most, meaning in (
            ("tokens", tokens, _MOST_COUNT, "the training tokens of the whole run"),
            ("params", params, _MOST_COUNT, "the number of parameters"),
            ("batch_tokens", batch_tokens, _MOST_COUNT, "the tokens of one optimizer step"),
            ("lr", lr, checks.MOST_RATE, "the peak learning rate"),
        )
    )
    params = checks.number("params", params, least=1)
    context_length = checks.whole("context_length", context_length, least=1, hint="the tokens of one sequence")
    _check(tokens, batch_tokens, context_length)
    tau_opt = optimal_tau(tokens / params)
    batch = optimal_batch(tokens)
    flops = 6 * params * tokens
    deepseek_batch, deepseek_lr = deepseek(flops)
    lines = PowerLines(
        tokens=tokens,
        params=params,
        batch_tokens=batch_tokens,
        context_length=context_length,
        lr=lr,
        tpp=tokens / params,
        steps=tokens / batch_tokens,
        tau_opt=tau_opt,
        weight_decay=decay_for(tau_opt, lr, tokens, batch_tokens),
        batch_opt_sequences=batch,
        batch_opt_tokens=batch * FIT_CONTEXT,
        batch_opt_own_sequences=batch * FIT_CONTEXT / context_length,
        flops=flops,
        deepseek_batch_tokens=deepseek_batch,
        deepseek_lr=deepseek_lr,
    )
    if lr * lines.weight_decay >= 1:
        raise UsageError(
            f"{lines.steps:.4g} steps (tokens={tokens:.6g} over batch_tokens={batch_tokens:.6g}) are too few: each "
            f"would have to remove {percent(lr * lines.weight_decay)} of the weights; give the tokens of the whole run"
        )
    return lines


def facts(lines: PowerLines) -> tuple[tuple[str, str], ...]:
    """Write what to know before using the decay: why, what others take, where the fits hold, where they failed.

    Args:
        lines: result of `power_lines`.

    Returns:
        Subject and sentence of each point, warnings about this run last.
    """
    own = lines.context_length
    elsewhere = lines.weight_decay * lines.lr / lines.deepseek_lr
    return (
        (
            "Why",
            f"{lines.tpp:.3g} tokens a parameter call for weights averaged over {100 * lines.tau_opt:.2g} % of the "
            f"run's {lines.steps:,.0f} steps (tau {lines.tau_opt:.3g})",
        ),
        ("Customary", customary()),
        (
            "Belongs to",
            f"this peak lr. The decay goes as 1/lr: at {lines.deepseek_lr:.3g}, DeepSeek's lr for this compute, it is "
            f"{elsewhere:.3g}. Derive it again after a change of lr, batch or tokens",
        ),
        (
            "Fitted for",
            "AdamW with a peak lr tuned by muP, warmed up over 10 % of the steps and then decayed linearly to zero; "
            f"sequences of {FIT_CONTEXT} tokens; models of 111M to 3.3B parameters",
        ),
        ("Not fitted for", "a constant lr, a run that goes on from a checkpoint, Adam with coupled decay"),
        (
            "Failed once",
            "GPT-2 small at 20 tokens a parameter and constant lr 0.0004: the formula's 0.337 gave test loss 3.814, "
            "0.1 gave 3.692, and 0.01, the best measured, 3.643. With warm-up and cosine decay 0.337 gave 3.739 "
            "('Writing an LLM from scratch, part 32f')",
        ),
        (
            "Units",
            f"{lines.batch_tokens:.6g} tokens a step are {lines.batch_tokens / own:.4g} sequences of {own}. Whether "
            "parameters count with embeddings is not confirmed",
        ),
        (
            "Batch",
            f"best by the same fits: {lines.batch_opt_tokens:.3g} tokens, {lines.batch_opt_own_sequences:.4g} "
            f"sequences of {own}. By DeepSeek's formulas at C = 6ND: {lines.deepseek_batch_tokens:.3g} tokens, "
            "roughly, for its paper counts C without embeddings",
        ),
        *(("Warning", text) for text in _warnings(lines)),
    )


def customary() -> str:
    """List the decays that others used, each with its models, the most common first."""
    by_decay: dict[float, list[str]] = {}
    for c in reversed(CUSTOMARY):
        by_decay.setdefault(c.weight_decay, []).insert(0, f"{c.model} ({c.remark})" if c.remark else c.model)
    return "; ".join(f"{decay:g} in {', '.join(models)}" for decay, models in by_decay.items())


def _warnings(lines: PowerLines) -> list[str]:
    low, high = FIT_PARAMS
    warnings: list[str] = []
    if not low <= lines.params <= high:
        warnings.append(f"{lines.params:.4g} parameters lie outside the fitted 1.11e+08 to 3.3e+09: an extrapolation")
    if lines.tau_opt > 1:
        warnings.append(
            f"at {lines.tpp:.3g} tokens a parameter the averaging time is {lines.tau_opt:.3g} of the run. It is longer "
            "than the run, so the decay has almost no effect"
        )
    if lines.context_length != FIT_CONTEXT:
        warnings.append(
            f"sequences of {lines.context_length} tokens were not tested: the fitted runs had {FIT_CONTEXT}, and the "
            "formula does not depend on it. The best batch is converted by its tokens"
        )
    return warnings


def _check(tokens: float, batch_tokens: float, context_length: int) -> None:
    if batch_tokens < context_length:
        raise UsageError(
            f"batch_tokens={batch_tokens:.6g} is less than one sequence of {context_length} tokens; it counts "
            f"tokens: {batch_tokens:.6g} sequences are {batch_tokens * context_length:.6g}"
        )
    if batch_tokens > tokens:
        raise UsageError(
            f"batch_tokens={batch_tokens:.6g} is more than all tokens={tokens:.6g}: the run would have no step"
        )
