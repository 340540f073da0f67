"""`python -m benchmarks e2e`: prompts to answers with the step in three modes, beside each other."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import results, session, whole
from benchmarks.e2e import tables
from benchmarks.e2e.record import EndToEnd, Load

if TYPE_CHECKING:
    from benchmarks.e2e.chat import Chat
    from benchmarks.e2e.llada2 import LLaDA2
    from benchmarks.e2e.runs import Task

WORD_PROBLEMS = Path(__file__).with_name("word_problems")
DIFFERENT = 1
RANDOM_PROMPT = (64, 160)  # tokens: as long as GSM8K's questions
SINGLE_REQUESTS = 8

EXIT_CODES = "Exit codes: 0 measured, 1 the modes accept different tokens, 2 usage or environment error."
EXAMPLES = """examples:
  python -m benchmarks e2e                                the small model of this repository, on word problems
  python -m benchmarks e2e --random                       LLaDA2.0-mini's size with random weights: 64 GB of GPU memory,
                                                          compute capability 9.0 or more
  python -m benchmarks e2e --model LLaDA2.0-mini --gsm8k test.jsonl
  python -m benchmarks e2e --slots 4 --questions 40 --repeats 3 --output e2e.json
  python -m benchmarks e2e --show e2e.json --markdown
"""


def add_command(commands: Any, output: Path) -> None:
    parser = commands.add_parser(
        "e2e",
        help="decode prompts with the reference step, SGLang's and the fused one",
        description=__doc__,
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, metavar="FOLDER", help="a checkpoint of LLaDA2 in Hugging Face's layout")
    what.add_argument("--random", action="store_true", help="LLaDA2.0-mini's size, random weights, scripted acceptance")
    what.add_argument("--show", type=Path, metavar="FILE", help="a record's tables again; nothing is measured")
    parser.add_argument("--gsm8k", type=Path, metavar="FILE.jsonl", help="questions, instead of generated ones")
    parser.add_argument("--questions", type=int, default=200, metavar="N", help="in parallel (default 200)")
    parser.add_argument("--slots", type=int, default=128, metavar="N", help="sequences in parallel (default 128)")
    parser.add_argument("--tokens", type=int, metavar="N", help="to generate, at most (default 256; word problems 64)")
    parser.add_argument("--threshold", type=float, default=0.95, help="of acceptance (default 0.95)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of every mode (default 5)")
    parser.add_argument("--seed", type=session.seed, default=0, help="of weights, prompts and order (default 0)")
    parser.add_argument("--output", type=Path, default=output / "e2e.json", metavar="FILE", help="the record")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.set_defaults(command=_e2e)


def _e2e(options: argparse.Namespace) -> int:
    for name in ("questions", "slots", "repeats", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected at least 1; got {value}")
    if not math.isfinite(options.threshold):
        raise ValueError(f"--threshold: expected a number; got {options.threshold}")
    if options.show:
        record = results.load(EndToEnd, options.show)
        tables.show(record, markdown=options.markdown)
    else:
        whole.expect_writable("--output", options.output)
        record = measured(options)
        try:
            results.save(record, options.output)
        finally:  # or a disk that is full by now takes with it what was measured
            tables.show(record, markdown=options.markdown)
        print(f"Record: {options.output}")
    return DIFFERENT if record.differences() else 0


def measured(options: argparse.Namespace) -> EndToEnd:
    """Measure what the options ask for, under a progress bar."""
    import torch

    from benchmarks.e2e import runs
    from benchmarks.e2e.serving import Script, Served
    from benchmarks.e2e.steps import modes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = list(modes().values())
    with session.progress("End to end", 2 * (1 + (1 + options.repeats) * len(chosen) + (device == "cuda"))) as step:
        model, task, said = _random(options, device) if options.random else _trained(options, device)

        single = Load("1 request", 1, min(SINGLE_REQUESTS, len(task.prompts)))
        parallel = Load(f"{options.slots} in parallel", options.slots, len(task.prompts))

        def serve(slots: int) -> Served:
            script = None
            if options.random:
                script = Script(model.config.vocab_size, task.mask_id, task.block_length, device, options.seed)
            return Served(
                model,
                slots=slots,
                block_length=task.block_length,
                max_length=task.cache_length,
                mask_id=task.mask_id,
                script=script,
                prefill_lengths=[len(prompt) // task.block_length * task.block_length for prompt in task.prompts],
            )

        return runs.measure(
            task, serve, (single, parallel), chosen, **said, repeats=options.repeats, seed=options.seed, progress=step
        )


def _random(options: argparse.Namespace, device: str) -> tuple[LLaDA2, Task, dict[str, str]]:
    import torch

    from benchmarks.e2e import checkpoint
    from benchmarks.e2e.llada2 import LLADA2_MINI
    from benchmarks.e2e.runs import Task
    from benchmarks.workloads import MASK_IDS

    if options.gsm8k:
        raise ValueError("--gsm8k: expected a model that reads, with --model; random weights cannot")
    if device == "cpu":
        raise ValueError("--random: expected a GPU with 64 GB of memory or more; there is none here")
    config = LLADA2_MINI
    model = checkpoint.random_model(config, device=device, seed=options.seed)
    mask_id = MASK_IDS[config.vocab_size]
    generator = torch.Generator().manual_seed(options.seed)
    lengths = torch.randint(*RANDOM_PROMPT, (options.questions,), generator=generator).tolist()
    prompts = [torch.randint(mask_id, (length,), generator=generator).tolist() for length in lengths]
    task = Task(prompts, None, mask_id, None, 32, options.tokens or 256, options.threshold)
    return model, task, {
        "model": f"LLaDA2.0-mini's size, random weights, {_size(model)}",
        "questions": f"{len(prompts)} prompts of {RANDOM_PROMPT[0]} to {RANDOM_PROMPT[1]} random tokens",
        "acceptance": "scripted by a bias on the logits, the same in every mode: in a pass, 0 to 6 positions are sure; "
        "where none is, the fallback takes one",
    }  # fmt: skip


def _trained(options: argparse.Namespace, device: str) -> tuple[LLaDA2, Task, dict[str, str]]:
    import torch

    from benchmarks.e2e import checkpoint, problems
    from benchmarks.e2e.chat import Chat
    from benchmarks.e2e.runs import Task

    folder = (options.model or WORD_PROBLEMS).resolve()  # which has a name, where `.` has none
    if not folder.is_dir():
        raise ValueError(f"--model: expected a folder with a checkpoint in Hugging Face's layout; there is no {folder}")
    config, said = checkpoint.read_config(folder)
    chat = Chat.load(folder)
    _check_vocabulary(folder, chat, config.vocab_size)
    if options.gsm8k:
        asked = problems.read_gsm8k(options.gsm8k)[: options.questions]
        questions = f"the first {len(asked)} of {options.gsm8k.name}"
    else:
        asked = problems.generate(options.questions, options.seed, "held-out")
        questions = f"{len(asked)} generated word problems, held out from training"
    if not asked:
        raise ValueError(f"--gsm8k: expected questions; {options.gsm8k} has none")

    def is_correct(number: int, tokens: Sequence[int]) -> bool:
        return problems.extract_answer(chat.text(tokens)) == asked[number].answer

    prompts = [chat.prompt_ids(problem.question) for problem in asked]
    generated = options.tokens or (64 if folder == WORD_PROBLEMS.resolve() else 256)
    _check_lengths(prompts, generated, said.get("max_position_embeddings"))
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # as CPUs compute faster
    model = checkpoint.load(folder, device=device, dtype=dtype)  # last: weights take minutes, all else seconds
    task = Task(
        prompts,
        is_correct,
        chat.mask_id,
        chat.eos_id,
        said.get("block_length", 32),
        generated,
        options.threshold,
    )
    return model, task, {
        "model": f"{folder.name}, {_size(model)}",
        "questions": questions,
        "acceptance": "the model's own confidences",
    }  # fmt: skip


def _check_vocabulary(folder: Path, chat: Chat, vocab_size: int) -> None:
    """An id beyond the model's vocabulary would fail on the device, far from its cause."""
    largest = max(chat.tokenizer.get_vocab().values())
    for name, token in (("mask", chat.mask_id), ("end", chat.eos_id), ("largest token of tokenizer.json", largest)):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{folder}: vocab_size: expected the {name}, {token}, to be within it; got {vocab_size}")


def _check_lengths(prompts: Sequence[Sequence[int]], generated: int, most: int | None) -> None:
    for number, prompt in enumerate(prompts):
        if most is not None and len(prompt) + generated > most:
            raise ValueError(
                f"prompts[{number}]: expected at most {most} positions, max_position_embeddings of config.json; "
                f"got {len(prompt)} ids and {generated} to generate"
            )


def _size(model: LLaDA2) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    return f"{count / 1e9:.1f} B parameters, {dtype}" if count > 1e9 else f"{count / 1e6:.1f} M parameters, {dtype}"
