"""The small model of word problems: the one that comes with the repository, and how it is trained."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks.e2e import checkpoint, muon, train
from benchmarks.e2e.chat import Chat
from benchmarks.e2e.problems import generate

FOLDER = Path(train.__file__).parent / "word_problems"
BLOCK = 16
TINY = dataclasses.replace(
    train.SMALL, hidden_size=32, intermediate_size=48, num_hidden_layers=2, first_k_dense_replace=2,
    num_attention_heads=2, num_key_value_heads=2, head_dim=16,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other busily take minutes for so small a model where the machine has more to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(FOLDER)


def tiny_model(chat: Chat):
    config = dataclasses.replace(TINY, vocab_size=chat.tokenizer.get_vocab_size())
    model = checkpoint.random_model(config, device="cpu", dtype=torch.float32)
    for tensor in checkpoint.tensors(model).values():
        tensor.mul_(8)  # so that attention matters
    return model


def some_batches(chat: Chat, count: int) -> list[train.Batch]:
    problems = generate(8 * count, 0, "train")
    return list(train.batches(iter(problems), chat, 4, BLOCK))[:count]


def test_the_checkpoint_is_small_and_in_bfloat16() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4 * 2**20
    model = checkpoint.load(FOLDER, device="cpu")
    assert {tensor.dtype for tensor in checkpoint.tensors(model).values()} == {torch.bfloat16}
    assert checkpoint.read_config(FOLDER)[1]["dtype"] == "bfloat16"


def test_the_checkpoint_solves_held_out_problems_in_parallel(chat: Chat) -> None:
    said = checkpoint.read_config(FOLDER)[1]
    model = checkpoint.load(FOLDER, device="cpu", dtype=torch.float32)
    score = train.evaluate(model, chat, generate(100, 12345, "held-out"), said["block_length"])
    assert score.exact_match > 0.9
    assert score.tokens_per_forward > 1.5
    assert said["trained"]["held_out_exact_match"] > 0.9


def test_the_tokenizer_of_the_checkpoint_is_the_one_that_is_built(chat: Chat) -> None:
    assert chat.tokenizer.to_str() == train.build_tokenizer().to_str()
    said = checkpoint.read_config(FOLDER)[1]
    assert said["vocab_size"] == chat.tokenizer.get_vocab_size()
    assert chat.tokenizer.token_to_id(train.MASK) == said["mask_token_id"] == chat.mask_id
    assert chat.tokenizer.token_to_id(train.EOS) == said["eos_token_id"] == said["pad_token_id"] == chat.eos_id


def test_passes_are_those_of_each_problem_alone(chat: Chat) -> None:
    model = checkpoint.load(FOLDER, device="cpu", dtype=torch.float32)
    questions = [problem.question for problem in generate(6, 7, "held-out")]
    answers, passes = train.solve(model, chat, questions, BLOCK)
    alone = [train.solve(model, chat, [question], BLOCK) for question in questions]
    assert answers == [answer for (answer,), _ in alone]
    assert passes == [taken for _, (taken,) in alone]
    assert all(answer[-1] == chat.eos_id and answer.count(chat.eos_id) == 1 for answer in answers)


def test_batches_hold_examples_of_one_layout_filled_with_ends(chat: Chat) -> None:
    for batch in some_batches(chat, 6):
        assert batch.ids.shape[1] % BLOCK == 0
        assert len(set((batch.prompt_lengths // BLOCK).tolist())) == 1
        for ids, length in zip(batch.ids.tolist(), batch.prompt_lengths.tolist(), strict=True):
            end = ids.index(chat.eos_id)
            assert ids[length - 1] == chat.tokenizer.token_to_id(train.ASSISTANT)
            assert set(ids[end:]) == {chat.eos_id}
            assert end >= len(ids) - BLOCK  # no block of ends alone
            assert "####" in chat.text(ids[length:])


def test_masks_cover_answers_alone_and_often_whole_blocks(chat: Chat) -> None:
    generator = torch.Generator().manual_seed(0)
    (batch,) = some_batches(chat, 1)
    answers = torch.arange(batch.ids.shape[1]) >= batch.prompt_lengths.unsqueeze(-1)
    last_blocks = []
    for _ in range(400):
        ids, masked = train.mask_answers(batch, chat.mask_id, BLOCK, generator)
        assert torch.equal(ids == chat.mask_id, masked)
        assert torch.equal(ids[~masked], batch.ids[~masked])
        assert not masked[~answers].any()
        last_blocks.append(masked[:, -BLOCK:].float().mean(dim=1))
    shares = torch.cat(last_blocks)
    assert (shares == 1).float().mean() > train.SHARE_ALL_MASKED - 0.05
    for share in (0.25, 0.5, 0.75):
        assert ((shares - share).abs() < 0.1).any()


def test_training_sees_each_block_as_decoding_does(chat: Chat) -> None:
    """The states of all masked copies, in one pass, are those of a pass over the text with one block masked."""
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(chat)
    for batch in some_batches(chat, 3):
        start = int(batch.prompt_lengths[0]) // BLOCK * BLOCK
        drawn = [train.mask_answers(batch, chat.mask_id, BLOCK, generator)[0] for _ in range(2)]
        noisy = torch.cat([ids[:, start:] for ids in drawn], dim=1)
        states = train.denoising_states(model, batch.ids, noisy, start, BLOCK)
        logits = model.lm_head(states).split(batch.ids.shape[1] - start, dim=1)
        for ids, found in zip(drawn, logits, strict=True):
            for at in range(start, batch.ids.shape[1], BLOCK):
                decoded = torch.cat([batch.ids[:, :at], ids[:, at : at + BLOCK]], dim=1)
                expected = model(decoded, BLOCK)[:, at:]
                torch.testing.assert_close(found[:, at - start : at - start + BLOCK], expected, rtol=1e-4, atol=1e-4)


def test_orthogonal_has_the_singular_vectors_and_no_small_values() -> None:
    matrices = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    for given, made in ((matrices, muon.orthogonal(matrices)), (matrices.mT, muon.orthogonal(matrices.mT))):
        u, _, vh = torch.linalg.svd(given, full_matrices=False)
        in_their_terms = u.mT @ made @ vh.mT
        values = in_their_terms.diagonal(dim1=-2, dim2=-1)
        assert values.min() > 0.5
        assert values.max() < 1.3
        torch.testing.assert_close(in_their_terms, torch.diag_embed(values), rtol=0, atol=1e-4)


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [train.share_of_rate(step, 100, 10) for step in range(100)]
    assert shares[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[55] == pytest.approx(0.5)
    assert shares[-1] < 0.001


def test_rows_of_equations_are_right_and_masked_in_results_alone(chat: Chat) -> None:
    signs = set()
    for ids, masked in islice(train.equation_batches(0, chat, 32), 4):
        assert ids.shape == masked.shape == (32, train.EQUATIONS_LENGTH)
        assert 0.1 < masked.float().mean() < 0.6
        for row, hidden in zip(ids.tolist(), masked.tolist(), strict=True):
            text = "".join(chat.tokenizer.id_to_token(token) for token in row)
            whole, _, _ = text.rpartition(".")
            for equation in whole.split("."):
                left, sign, right, result = re.fullmatch(r"(\d+)([-+/])(\d+)=(\d+)", equation).groups()
                expected = {"-": int(left) - int(right), "+": int(left) + int(right), "/": int(left) / int(right)}
                assert expected[sign] == int(result) >= 0
                signs.add(sign)
            for at in (at for at, one in enumerate(hidden) if one):
                assert re.fullmatch(r".*=\d*", text[:at])  # what stands before: a result, begun
    assert signs == {"-", "+", "/"}


def test_training_learns_and_follows_its_seed(chat: Chat) -> None:
    config = dataclasses.replace(TINY, vocab_size=chat.tokenizer.get_vocab_size())
    lines: list[str] = []
    first = train.Stage(60, copies=1, rows_of_equations=0, learning_rate=2e-3, warmup=5, batch_size=4)
    second = dataclasses.replace(first, steps=1, rows_of_equations=4)

    def trained(parts: list[train.Stage], seed: int) -> torch.Tensor:
        model = checkpoint.random_model(config, device="cpu", dtype=torch.float32)
        train.train(model, chat, parts, seed, lines.append)
        return model.lm_head.weight

    trained([first], 0)
    losses = [float(line.partition("loss ")[2].partition(",")[0]) for line in lines]
    assert lines[0].startswith("step 50 of 60, loss ")
    assert losses[1] < losses[0] < 5.1  # chance is the logarithm of the vocabulary
    few = [dataclasses.replace(first, steps=2), second]
    ours, again, other, shorter = trained(few, 0), trained(few, 0), trained(few, 1), trained(few[:1], 0)
    assert torch.equal(ours, again)
    assert not torch.equal(ours, other)
    assert not torch.equal(ours, shorter)


def test_a_trained_model_can_be_loaded(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(train, "SMALL", TINY)
    train.main(["--output", str(tmp_path), "--steps", "2", "--seed", "3", "--evaluate", "4"])
    printed = capsys.readouterr().out
    assert "step 2 of 2, loss " in printed
    assert "held-out problems: " in printed
    trained = json.loads((tmp_path / "config.json").read_text())["trained"]
    assert (trained["steps"], trained["seed"], trained["problems_seen"], trained["held_out_problems"]) == (2, 3, 32, 4)
    assert Chat.load(tmp_path).prompt_ids("How many?")
    model = checkpoint.load(tmp_path, device="cpu")
    assert model.config.hidden_size == TINY.hidden_size
    assert checkpoint.read_config(tmp_path)[1]["block_length"] == BLOCK

    more = tmp_path / "more"
    train.main(["--output", str(more), "--start", str(tmp_path), "--steps", "3", "--seed", "4", "--evaluate", "4"])
    trained = checkpoint.read_config(more)[1]["trained"]
    assert (trained["steps"], trained["seed"], trained["problems_seen"]) == (5, 4, 80)
    ours, theirs = (
        checkpoint.load(folder, device="cpu").model.layers[0].attention.dense.weight.float()
        for folder in (tmp_path, more)
    )
    assert 0 < (ours - theirs).abs().max() < 0.05  # from where it was, and on
