"""Trains the small block-diffusion model of word problems, from nothing: `python -m benchmarks.e2e.train --help`.

On processors, in float32. Where they have other things to do, the environment variable `OMP_WAIT_POLICY=PASSIVE` keeps
PyTorch's threads from waiting for each other busily, which takes several times as long.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from benchmarks.e2e import checkpoint
from benchmarks.e2e.chat import TOKENIZER, TOKENIZER_CONFIG, Chat
from benchmarks.e2e.llada2 import Config, LLaDA2
from benchmarks.e2e.muon import Muon
from benchmarks.e2e.problems import Problem, equations, extract_answer, generate, stream
from dllm_kernels import iter_decode

DESCRIPTION = "Train the small block-diffusion model of word problems, from nothing, and write its checkpoint."
MASK, EOS, USER, ASSISTANT, UNKNOWN = "<|mask|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|unk|>"
SPECIAL_TOKENS = (MASK, EOS, USER, ASSISTANT, UNKNOWN)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Words, single digits, signs; spaces are not tokens.
TOKENS = r"[A-Za-z]+|[0-9]|#+|\n|[^A-Za-z0-9# \n]"
# Where text has no space between two tokens: between digits, around operators and line ends, before punctuation.
NO_SPACE = r"(?<=[0-9]) (?=[0-9])| (?=[-+*/=\n.,?])|(?<=[-+*/=$\n]) "
VOCABULARY_FROM = 5000  # problems
SHARE_ALL_MASKED = 0.3  # of the blocks in training, since decoding starts there
EVALUATED_TOGETHER = 64  # problems
GENERATION_LENGTH, THRESHOLD = 64, 0.95
STEPS, SHARE_WITH_EQUATIONS = 4100, 0.146
BLOCK_LENGTH = 16
EQUATIONS_LENGTH = 3 * BLOCK_LENGTH  # tokens of a row
REPORTED_EVERY = 50  # steps

SMALL = Config(
    vocab_size=0,  # the tokenizer's
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=10000,
    partial_rotary_factor=0.5,
    first_k_dense_replace=4,
    num_experts=1,
    num_experts_per_tok=1,
    num_shared_experts=0,
    moe_intermediate_size=1,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    tie_word_embeddings=True,
)

Report = Callable[[str], None]
"""Takes a line about the progress."""


@dataclass(frozen=True)
class Stage:
    """A part of the training, with a learning rate that rises and falls."""

    steps: int
    copies: int  # masked ones of each problem
    rows_of_equations: int  # a step, beside the problems
    learning_rate: float  # of AdamW
    warmup: int  # steps
    matrix_rate: float = 0.02  # of Muon
    batch_size: int = 16  # problems a step


def stages(steps: int) -> tuple[Stage, Stage]:
    """First problems, from which the model learns to read, to copy and to multiply; then bare equations beside them,
    from which it learns to add, to take away and to divide in fewer steps."""
    last = round(steps * SHARE_WITH_EQUATIONS)
    return (
        Stage(steps - last, copies=3, rows_of_equations=0, learning_rate=2e-3, warmup=50),
        Stage(last, copies=1, rows_of_equations=64, learning_rate=1e-3, warmup=20),
    )


@dataclass(frozen=True)
class Batch:
    """Examples of as many blocks each, whose answers start in the same block."""

    ids: Tensor  # (B, T): prompt, solution, then ends to fill the last block
    prompt_lengths: Tensor  # (B,)


@dataclass(frozen=True)
class Score:
    """How well problems were solved."""

    exact_match: float  # share of problems
    tokens_per_forward: float  # up to and with the end, over the forward passes that each problem took part in


def build_tokenizer() -> Tokenizer:
    """Words of the generated problems, single digits and signs, each a token; its decoder puts the spaces back."""
    pieces = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(TOKENS), "isolated"), pre_tokenizers.Split(Regex(" +"), "removed")]
    )
    texts = [f"{problem.question} {problem.solution}" for problem in generate(VOCABULARY_FROM, 0, "train")]
    words = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Sequence(  # a space before every token, then away with those that text has not
        [decoders.WordPiece(prefix="\0", cleanup=False), decoders.Fuse(), decoders.Replace(Regex(NO_SPACE), "")]
    )
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Into the folder, `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / TOKENIZER))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "unk_token": UNKNOWN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(said, indent=2) + "\n")


def batches(problems: Iterator[Problem], chat: Chat, batch_size: int, block_length: int) -> Iterator[Batch]:
    """Of problems in turn; each waits until there are enough of its layout."""
    waiting: dict[tuple[int, int], list[tuple[list[int], int]]] = {}
    for problem in problems:
        prompt = chat.prompt_ids(problem.question)
        ids = [*prompt, *chat.tokenizer.encode(problem.solution, add_special_tokens=False).ids, chat.eos_id]
        ids += [chat.eos_id] * (-len(ids) % block_length)
        alike = waiting.setdefault((len(prompt) // block_length, len(ids)), [])
        alike.append((ids, len(prompt)))
        if len(alike) == batch_size:
            yield Batch(torch.tensor([ids for ids, _ in alike]), torch.tensor([length for _, length in alike]))
            alike.clear()


def mask_answers(batch: Batch, mask_id: int, block_length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ids (B, T) with masks in the answers, and where these are (B, T): of each block a share drawn from 0 to 1, or
    the whole block."""
    examples, length = batch.ids.shape
    shares = torch.rand(examples, length // block_length, generator=generator)
    whole = torch.rand(shares.shape, generator=generator) < SHARE_ALL_MASKED
    shares = shares.masked_fill(whole, 1).repeat_interleave(block_length, dim=1)
    answers = torch.arange(length) >= batch.prompt_lengths.unsqueeze(-1)
    masked = answers & (torch.rand(examples, length, generator=generator) < shares)
    return batch.ids.masked_fill(masked, mask_id), masked


def denoising_loss(
    model: LLaDA2, batch: Batch, mask_id: int, block_length: int, copies: int, generator: torch.Generator
) -> Tensor:
    """Mean cross-entropy of the masked tokens, of every block of the answers under `copies` draws of masks."""
    start = int(batch.prompt_lengths.min()) // block_length * block_length
    drawn = [mask_answers(batch, mask_id, block_length, generator) for _ in range(copies)]
    noisy = torch.cat([ids[:, start:] for ids, _ in drawn], dim=1)
    masked = torch.cat([where[:, start:] for _, where in drawn], dim=1)
    hidden = denoising_states(model, batch.ids, noisy, start, block_length)
    targets = batch.ids[:, start:].repeat(1, copies)
    return functional.cross_entropy(model.lm_head(hidden[masked]), targets[masked])


def denoising_states(model: LLaDA2, ids: Tensor, noisy: Tensor, start: int, block_length: int) -> Tensor:
    """The last hidden states (B, N, hidden) of masked copies (B, N), one after the other, of ids (B, T) from `start`.

    All in one pass: a copy's block sees itself and, of the unmasked text, the blocks before it, as in a forward pass of
    decoding.
    """
    length = ids.shape[1]
    text = length - block_length  # no block comes after the last one, to see it
    copies = noisy.shape[1] // (length - start)
    positions = torch.cat([torch.arange(text), torch.arange(start, length).repeat(copies)])
    copy = torch.cat([torch.zeros(text), torch.arange(1, copies + 1).repeat_interleave(length - start)])  # 0: the text
    block = positions // block_length
    own = (block.unsqueeze(-1) == block) & (copy.unsqueeze(-1) == copy)
    seen = own | ((block.unsqueeze(-1) > block) & (copy == 0))
    joint = torch.cat([ids[:, :text], noisy], dim=1)
    hidden: Tensor = model.model(joint, positions.expand_as(joint), seen[None, None])
    return hidden[:, text:]


def equation_batches(seed: int, chat: Chat, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Equations (rows, EQUATIONS_LENGTH), and where to mask them: in results, of which most are masked whole."""
    draws, stream_of_equations = random.Random(seed), equations(seed)
    while True:
        drawn = [_row_of_equations(stream_of_equations, chat, draws) for _ in range(rows)]
        yield torch.tensor([ids for ids, _ in drawn]), torch.tensor([masked for _, masked in drawn])


def _row_of_equations(
    drawn: Iterator[tuple[str, str]], chat: Chat, draws: random.Random
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    masked: list[bool] = []
    while len(ids) < EQUATIONS_LENGTH:
        left, result = next(drawn)
        before, after = chat.tokenizer.encode(left).ids, chat.tokenizer.encode(f"{result}.").ids
        whole = draws.random() < 0.6
        ids += before + after
        masked += [False] * len(before) + [whole or draws.random() < 0.5 for _ in after]
    return ids[:EQUATIONS_LENGTH], masked[:EQUATIONS_LENGTH]


def share_of_rate(step: int, steps: int, warmup: int) -> float:
    """Of the highest learning rate: up from 0 in `warmup` steps, then down to 0 along a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def train(model: LLaDA2, chat: Chat, parts: Sequence[Stage], seed: int, report: Report) -> None:
    """Train a model in float32, one stage after the other."""
    model.requires_grad_(True).train()
    for number, stage in enumerate(parts):
        _train_stage(model, chat, stage, seed + 1000 * number, report)
    model.requires_grad_(False).eval()


def _train_stage(model: LLaDA2, chat: Chat, stage: Stage, seed: int, report: Report) -> None:
    optimizers = _optimizers(model, stage)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: share_of_rate(step, stage.steps, stage.warmup))
        for one in optimizers
    ]
    generator = torch.Generator().manual_seed(seed)
    examples = batches(stream(seed, "train"), chat, stage.batch_size, BLOCK_LENGTH)
    rows = equation_batches(seed, chat, stage.rows_of_equations)
    started, losses = time.monotonic(), []
    for step, batch in enumerate(islice(examples, stage.steps), 1):
        loss = denoising_loss(model, batch, chat.mask_id, BLOCK_LENGTH, stage.copies, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        if stage.rows_of_equations:
            equation_loss(model, *next(rows), chat.mask_id).backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        model.zero_grad()
        losses.append(loss.item())
        if step % REPORTED_EVERY == 0 or step == stage.steps:
            report(_progress(step, stage, sum(losses) / len(losses), time.monotonic() - started))
            losses.clear()


def equation_loss(model: LLaDA2, ids: Tensor, masked: Tensor, mask_id: int) -> Tensor:
    """Mean cross-entropy of the masked tokens of rows (B, T)."""
    logits = model(ids.masked_fill(masked, mask_id), BLOCK_LENGTH)
    return functional.cross_entropy(logits[masked], ids[masked])


def _optimizers(model: LLaDA2, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embeddings and the norms. Those for queries, keys and values lie in
    one parameter, as large as each other."""
    layers = [(name, weight) for name, weight in model.model.layers.named_parameters() if weight.dim() == 2]
    joint = [weight for name, weight in layers if "query_key_value" in name]
    single = [weight for name, weight in layers if "query_key_value" not in name]
    in_layers = {id(weight) for _, weight in layers}
    others = [weight for weight in model.parameters() if id(weight) not in in_layers]
    return [
        Muon(
            [{"params": joint, "parts": 3}, {"params": single}],
            lr=stage.matrix_rate, momentum=0.95, weight_decay=0.05,
        ),
        torch.optim.AdamW(others, lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]  # fmt: skip


def _progress(step: int, stage: Stage, loss: float, seconds: float) -> str:
    rate = step * stage.batch_size / seconds
    left = (stage.steps - step) * seconds / step / 60
    return f"step {step:,} of {stage.steps:,}, loss {loss:.4f}, {rate:.0f} problems/s, {left:.1f} min left"


def solve(model: LLaDA2, chat: Chat, questions: Sequence[str], block_length: int) -> tuple[list[list[int]], list[int]]:
    """Of each question, the ids of its answer, with the end, and how many forward passes committed some of them.

    These are as many as if it were decoded alone: a pass commits at least one token of every block not finished.
    """
    prompts = [torch.tensor(chat.prompt_ids(question)) for question in questions]
    passes = torch.zeros(len(prompts), dtype=torch.int64)
    before = torch.empty(0)

    def forward(ids: Tensor) -> Tensor:
        nonlocal before
        before = ids.clone()
        return model(ids, block_length)  # type: ignore[no-any-return]

    for step in iter_decode(
        forward,
        pad_sequence(prompts, batch_first=True, padding_value=chat.eos_id),
        mask_id=chat.mask_id,
        generation_length=GENERATION_LENGTH,
        block_length=block_length,
        threshold=THRESHOLD,
        eos_id=chat.eos_id,
        prompt_lengths=[len(prompt) for prompt in prompts],
    ):
        passes += (step.input_ids != before).any(dim=1)
    result = step.result()
    answers = [row[:length] for row, length in zip(result.tokens.tolist(), result.lengths.tolist(), strict=True)]
    return answers, passes.tolist()


def evaluate(model: LLaDA2, chat: Chat, problems: Sequence[Problem], block_length: int) -> Score:
    """Decode the problems, many at a time, and compare answers."""
    right = tokens = passes = 0
    for start in range(0, len(problems), EVALUATED_TOGETHER):
        some = problems[start : start + EVALUATED_TOGETHER]
        answers, taken = solve(model, chat, [problem.question for problem in some], block_length)
        found = [extract_answer(chat.text(answer)) for answer in answers]
        right += sum(got == problem.answer for got, problem in zip(found, some, strict=True))
        tokens += sum(len(answer) for answer in answers)
        passes += sum(taken)
    return Score(right / len(problems), tokens / passes)


def write_model(
    folder: Path,
    config: Config,
    steps: int,
    seed: int,
    evaluated: int,
    report: Report,
    start: Path | None = None,
    rate: float = 1.0,
) -> Score:
    """Train a model and write its checkpoint, in bfloat16, with what it was trained with and how well it then does on
    `evaluated` held-out problems in its `config.json`. The vocabulary is as large as the tokenizer has it.

    With `start`, a checkpoint's model goes through the last stage again, in as many steps. `rate` scales the learning
    rates: a model that has learned forgets less at a lower one.
    """
    write_tokenizer(folder)
    chat = Chat.load(folder)
    config = replace(config, vocab_size=chat.tokenizer.get_vocab_size())
    parts: list[Stage] = [*stages(steps)]
    before: dict[str, Any] = {}
    if start is None:
        model = checkpoint.random_model(config, device="cpu", dtype=torch.float32, seed=seed)
    else:
        model = checkpoint.load(start, device="cpu", dtype=torch.float32)
        before = checkpoint.read_config(start)[1]["trained"]
        parts = [replace(parts[-1], steps=steps)]
    parts = [
        replace(part, learning_rate=rate * part.learning_rate, matrix_rate=rate * part.matrix_rate) for part in parts
    ]
    started = time.monotonic()
    train(model, chat, parts, seed, report)
    trained = {
        "steps": before.get("steps", 0) + steps,
        "seed": seed,
        "problems_seen": before.get("problems_seen", 0) + sum(stage.steps * stage.batch_size for stage in parts),
        "minutes": round(before.get("minutes", 0) + (time.monotonic() - started) / 60, 1),
    }
    return write_checkpoint(model, folder, chat, trained, seed + 1, evaluated)


def write_checkpoint(
    model: LLaDA2, folder: Path, chat: Chat, trained: dict[str, Any], seed: int, evaluated: int
) -> Score:
    """The model in bfloat16 beside its tokenizer, and how well it does after it was loaded again."""
    said: dict[str, Any] = {
        "block_length": BLOCK_LENGTH,
        "mask_token_id": chat.mask_id,
        "eos_token_id": chat.eos_id,
        "pad_token_id": chat.eos_id,
        "dtype": "bfloat16",
    }
    checkpoint.save(model.to(torch.bfloat16), folder, **said)
    model = checkpoint.load(folder, device="cpu", dtype=torch.float32)  # many processors have no bfloat16
    score = evaluate(model, chat, generate(evaluated, seed, "held-out"), BLOCK_LENGTH)
    said["trained"] = trained | {
        "held_out_problems": evaluated,
        "held_out_exact_match": score.exact_match,
        "tokens_per_forward": round(score.tokens_per_forward, 2),
    }
    checkpoint.save(model.to(torch.bfloat16), folder, **said)
    return score


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.e2e.train", description=DESCRIPTION)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all draws (%(default)s)")
    parser.add_argument(
        "--evaluate", type=int, default=1000, metavar="N", help="held-out problems, after training (%(default)s)"
    )
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER", help="a checkpoint that goes through the last stage again"
    )
    parser.add_argument("--rate", type=float, default=1.0, metavar="X", help="of learning, times so much (%(default)s)")
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    score = write_model(
        given.output, SMALL, given.steps, given.seed, given.evaluate, console.print, given.start, given.rate
    )
    console.print(
        f"held-out problems: {score.exact_match:.1%} exact match, {score.tokens_per_forward:.2f} tokens a forward pass"
    )


if __name__ == "__main__":
    main()
