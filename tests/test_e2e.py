"""The parts of the end-to-end command: cached model, scripted acceptance, agreement of the modes, tables."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as cli
from benchmarks import results, workloads
from benchmarks.e2e import checkpoint, runs, tables
from benchmarks.e2e.command import WORD_PROBLEMS
from benchmarks.e2e.record import Agreed, EndToEnd, Forward, Load, Repeat
from benchmarks.e2e.serving import Script, Served, Timeline
from benchmarks.e2e.steps import Agreement, Mode, low_confidence_formula, modes, undecidable
from benchmarks.measure.bench import open_bench
from benchmarks.workloads import Decoding
from dllm_kernels import BatchDecoder, decode, dllm_post_process_fused, dllm_post_process_reference
from tests.records import GPU
from tests.test_llada2 import SMALL, made_up, some_ids, write

BLOCK, MASK = 4, 60


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small operations of many threads wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("checkpoint"), SMALL, made_up(SMALL))
    return checkpoint.load(folder, device="cpu", dtype=torch.float32)


def scripted(model, slots: int, length: int = 96, seed: int = 0) -> Served:
    script = Script(SMALL.vocab_size, MASK, BLOCK, "cpu", seed)
    return Served(model, slots=slots, block_length=BLOCK, max_length=length, mask_id=MASK, script=script)


def reference_and(*others: Mode) -> list[Mode]:
    return [Mode("reference", dllm_post_process_reference, False, "itself"), *others]


def test_the_cached_model_decodes_what_the_whole_sequence_gives(model) -> None:
    prompts = [some_ids(SMALL, length, seed).clamp(max=MASK - 1).tolist() for seed, length in enumerate((3, 9, 4, 14))]
    options = {"mask_id": MASK, "generation_length": 10, "block_length": BLOCK, "threshold": 0.6, "eos_id": 7}
    served = Served(model, slots=2, block_length=BLOCK, max_length=24, mask_id=MASK)
    found = {one.index: one.tokens for one in BatchDecoder(served, slots=2, device="cpu", **options).decode(prompts)}
    for index, prompt in enumerate(prompts):
        alone = decode(lambda ids: model(ids, BLOCK), torch.tensor([prompt]), **options)
        assert found[index].tolist() == alone.tokens[0, : int(alone.lengths[0])].tolist()


def test_a_script_makes_as_many_positions_sure_as_it_drew_and_no_others() -> None:
    script = Script(SMALL.vocab_size, MASK, BLOCK, "cpu")
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        starts = torch.randint(20, (5,), generator=generator) * BLOCK
        ids = torch.where(torch.rand(5, BLOCK, generator=generator) < 0.6, MASK, 3)
        logits = 0.3 * torch.randn(5, BLOCK, SMALL.vocab_size, generator=generator)
        script.apply(logits, ids, starts)
        p, tokens = logits.softmax(dim=-1).max(dim=-1)
        positions = starts.unsqueeze(-1) + torch.arange(BLOCK)
        masked = ids == MASK
        left = masked.sum(dim=-1, keepdim=True)
        assert torch.equal(tokens, script.tokens[positions * (BLOCK + 1) + left])  # which tells the way
        shown = script.shown(ids, starts)
        assert torch.equal(shown, torch.where(masked, script.tokens[positions], ids))
        wanted = script.counts[(starts // BLOCK + torch.arange(5)) % script.WAYS, masked.sum(dim=-1)]
        sure = p > 0.999
        assert torch.equal(sure.sum(dim=-1), torch.minimum(wanted, masked.sum(dim=-1)))
        assert not (sure & ~masked).any()


def test_scripted_decoding_takes_about_three_tokens_a_pass() -> None:
    script = Script(1000, 999, 32, "cpu")

    class Flat:
        max_length = 352

        def prefill(self, slot: int, input_ids: Tensor) -> None:
            pass

        def __call__(self, input_ids: Tensor, starts: Tensor) -> Tensor:
            logits = torch.zeros(*input_ids.shape, 1000)
            script.apply(logits, input_ids, starts)
            return logits

    decoder = BatchDecoder(Flat(), slots=8, device="cpu", mask_id=999, generation_length=256)
    found = list(decoder.decode([[1] * 70] * 8))
    rate = sum(len(one.tokens) for one in found) / sum(one.forward_passes for one in found)
    assert 2.3 < rate < 3.3
    assert len({one.forward_passes for one in found}) > 2  # each slot goes its own way


def test_what_a_pass_reads_and_computes(model) -> None:
    served = Served(model, slots=1, block_length=BLOCK, max_length=16, mask_id=MASK)
    served(some_ids(SMALL, BLOCK)[None], torch.tensor([8]))
    met = served.experts_met()
    assert len(met) == 2
    assert all(SMALL.num_experts_per_tok <= count <= BLOCK * SMALL.num_experts_per_tok for count in met)
    hidden, expert = SMALL.hidden_size, 3 * SMALL.hidden_size * SMALL.moe_intermediate_size
    rows = (SMALL.num_attention_heads + 2 * SMALL.num_key_value_heads) * SMALL.head_dim
    attention = rows * hidden + SMALL.num_attention_heads * SMALL.head_dim * hidden
    norms = 3 * (2 * SMALL.head_dim + 2 * hidden) + hidden
    matrices = 3 * attention + 3 * hidden * SMALL.intermediate_size + 2 * (expert + SMALL.num_experts * hidden)
    matrices += SMALL.vocab_size * hidden  # the head; embeddings are looked up
    cached = 8 * 2 * SMALL.num_hidden_layers * SMALL.num_key_value_heads * SMALL.head_dim
    assert served.bytes_read() == 4 * (matrices + norms + sum(met) * expert + cached)
    assert served.operations() == 2 * BLOCK * (matrices + 2 * SMALL.num_experts_per_tok * expert)


def test_all_modes_accept_the_same_tokens_and_the_formula_is_sglangs(model) -> None:
    agreement = Agreement([*modes().values(), Mode("formula", low_confidence_formula, True, "")])
    served = scripted(model, 3)
    options = {"mask_id": MASK, "generation_length": 30, "block_length": BLOCK, "threshold": 0.95}
    decoder = BatchDecoder(served, slots=3, device="cpu", post_process=agreement, **options)
    prompts = [some_ids(SMALL, 5 + 3 * seed, seed).clamp(max=MASK - 1).tolist() for seed in range(6)]
    found = {one.index: one.tokens.tolist() for one in decoder.decode(prompts)}
    assert agreement.differing == {"sglang": 0, "fused": 0, "formula": 0}
    assert agreement.accepted == 6 * 30
    assert agreement.masked > agreement.accepted
    ours = BatchDecoder(scripted(model, 3), slots=3, device="cpu", **options).decode(prompts)
    assert {one.index: one.tokens.tolist() for one in ours} == found


def test_no_mode_excludes_ids() -> None:
    """One that does reads or copies more than the others, and its times are not beside theirs."""
    logits = torch.zeros(1, 2, MASK + 1)
    logits[..., MASK] = 20
    for mode in modes().values():
        ids, remaining = torch.full((1, 2), MASK), torch.zeros(1, dtype=torch.int32)
        fixed = torch.zeros(1, 2, dtype=torch.bool)
        mode.post_process(logits, ids, MASK, 0.5, prompt_mask=fixed, exclude_ids=(MASK,), remaining=remaining)
        assert ids.tolist() == [[MASK, MASK]], mode.name


def test_a_model_whose_likeliest_token_is_the_mask_decodes_in_every_mode_alike() -> None:
    """As a masked position's is, where the head is tied to the embeddings and the weights are fresh."""
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    model = checkpoint.random_model(tied, device="cpu", dtype=torch.float32)
    prompts = [some_ids(SMALL, 5, seed).clamp(max=MASK - 1).tolist() for seed in range(3)]
    starts = torch.tensor([0])
    masks = torch.full((1, BLOCK), MASK)
    served = Served(model, slots=1, block_length=BLOCK, max_length=16, mask_id=MASK)
    raw, logits = model.step(masks, starts, served.cache), served(masks, starts)
    assert (raw.argmax(dim=-1) == MASK).all()
    assert torch.isneginf(logits[..., MASK]).all()
    assert torch.equal(logits[..., :MASK], raw[..., :MASK])

    task = runs.Task(prompts, None, MASK, None, BLOCK, 7)
    agreement = Agreement(list(modes().values()))
    for post_process in (agreement, *(mode.post_process for mode in modes().values())):
        served = Served(model, slots=2, block_length=BLOCK, max_length=task.cache_length, mask_id=MASK)
        found = list(runs.decoder(task, served, Load("some", 2, 3), post_process, capture=False).decode(prompts))
        assert [len(one.tokens) for one in found] == [7, 7, 7]
        assert not any((one.tokens == MASK).any() for one in found)
    assert set(agreement.differing.values()) == {0}


def test_a_mode_that_accepts_otherwise_is_counted() -> None:
    def hasty(logits, input_ids, mask_id, threshold, **arguments) -> None:
        dllm_post_process_fused(logits, input_ids, mask_id, threshold - 0.5, **arguments)

    def left_over(logits, input_ids, mask_id, threshold, **arguments) -> None:
        arguments["remaining"].zero_()

    def miscounting(*positional, **arguments) -> None:
        dllm_post_process_fused(*positional, **arguments)
        arguments["remaining"].sub_(1)

    others = {"hasty": hasty, "idle": left_over, "miscounting": miscounting}
    agreement = Agreement(reference_and(*(Mode(name, step, False, "") for name, step in others.items())))
    logits = torch.zeros(1, 3, 5)
    logits[0, 0, 1] = 20  # sure
    logits[0, 1, 2] = 2.1  # p = 0.67
    ids, remaining = torch.full((1, 3), MASK), torch.zeros(1, dtype=torch.int32)
    fixed = torch.zeros(1, 3, dtype=torch.bool)
    agreement(logits, ids, MASK, 0.95, prompt_mask=fixed, exclude_ids=(MASK,), remaining=remaining)
    assert agreement.differing == {"hasty": 1, "idle": 2, "miscounting": 1}  # idle: a token, and what is left
    assert ids.tolist() == [[1, MASK, MASK]]
    assert remaining.tolist() == [2]
    assert (agreement.steps, agreement.masked, agreement.accepted, agreement.undecidable) == (1, 3, 1, 0)


def test_a_mode_that_is_hasty_only_when_it_is_timed_is_found_out(model) -> None:
    """It behaves while all modes look at the same logits; its text and passes tell."""
    timed = False

    def hasty(logits, input_ids, mask_id, threshold, *, exclude_ids, **arguments) -> None:
        threshold = 0.0 if timed else threshold
        dllm_post_process_fused(logits, input_ids, mask_id, threshold, **arguments)

    def progress(text: str) -> None:
        nonlocal timed
        timed = " of " in text

    task = runs.Task([[1] * 5, [2] * 9], None, MASK, None, BLOCK, 24)
    made = runs.measure(
        task, lambda slots: scripted(model, slots, task.cache_length), [Load("2 in parallel", 2, 2)],
        reference_and(Mode("fused", hasty, False, "")), model="", questions="", acceptance="", repeats=1, seed=0,
        progress=progress,
    )  # fmt: skip
    assert made.agreed[0].differing == {"fused": 0}
    assert made.differences() == ["2 in parallel: tokens, or passes that they took, differ between modes or repeats"]


def test_what_float32_cannot_decide_is_left_out() -> None:
    threshold = 0.9
    confidence = torch.tensor(
        [
            [0.9 + 5e-7, 0.95, 0.1, 0.1],  # at the threshold; another passes
            [0.5, 0.5 + 5e-7, 0.5, 0.2],  # a tie in the fallback, of two that are masked
            [0.5, 0.4, 0.3, 0.2],  # no tie
        ]
    )
    masked = torch.tensor([[True] * 4, [True, True, False, True], [True] * 4])
    expected = [[True, False, False, False], [True, True, False, False], [False] * 4]
    assert undecidable(confidence, masked, threshold).tolist() == expected


def record(**changes) -> EndToEnd:
    """Made up: a reference whose steps take a fifth of its time, and a fused step that takes a fiftieth of it."""

    def repeat(mode: str, number: int, seconds: float, outside: float) -> Repeat:
        passes, steps = (8000.0,) * 100, (outside,) * 99
        return Repeat("1 request", mode, number, seconds, 300, 100, 100, passes, steps, 3, "same", "")

    made = {
        "created": "2026-11-28T00:00:00+00:00",
        "command": "python -m benchmarks e2e",
        "seed": 0,
        "environment": GPU,
        "model": "made up",
        "questions": "4 prompts",
        "acceptance": "its own",
        "modes": {"reference": "eager", "sglang": "its file", "fused": "ours"},
        "threshold": 0.95,
        "block_length": 32,
        "generation_length": 256,
        "loads": (Load("1 request", 1, 4),),
        "repeats": tuple(
            one
            for number, drift in enumerate((1.0, 1.3, 1.1))  # a machine that slows down while it measures
            for one in (
                repeat("reference", number, 1.0 * drift, 2000.0 * drift),
                repeat("sglang", number, 1.1 * drift, 3000.0 * drift),
                repeat("fused", number, 0.82 * drift, 200.0 * drift),
            )
        ),
        "agreed": (Agreed("1 request", 100, 3200, 1000, 300, 2, 0, {"sglang": 0, "fused": 0}),),
        "forwards": (Forward("1 request", 8000.0, 20_000_000_000, 160_000_000_000, 80.0),),
        "device_us": {"1 request": 12.5},
    }
    return EndToEnd(**{**made, **changes})


def test_gains_are_of_repeats_beside_each_other_and_the_bound_is_amdahls() -> None:
    made = record()
    assert made.gain("1 request", "fused") == pytest.approx(1 / 0.82)
    assert made.gain("1 request", "sglang") == pytest.approx(1 / 1.1)
    assert made.bound("1 request") == pytest.approx(1 / 0.8)
    assert made.outside_us("1 request", "fused") == pytest.approx(220)
    assert made.mean_outside_us("1 request", "fused") == pytest.approx(200 * (1 + 1.3 + 1.1) / 3)


def test_steps_after_which_a_sequence_entered_are_left_out() -> None:
    timeline = Timeline(False, [(0.0, 1.0), (1.5, 2.0), (7.0, 8.0), (8.25, 9.0)], {0, 2})
    assert timeline.undisturbed() == [0, 2]
    assert timeline.outside_us() == [0.5e6, 0.25e6]


def test_the_tables_say_what_was_measured(tmp_path, capsys) -> None:
    results.save(record(), tmp_path / "e2e.json")
    assert results.load(EndToEnd, tmp_path / "e2e.json") == record()
    assert cli.main(["e2e", "--show", str(tmp_path / "e2e.json"), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "Acceptance: its own. Measured: 3.00 tokens a forward pass." in printed
    assert "| reference | 0.750 | 1.100 s | 272.73 token/s | 1.0x | 3.00 | 8.00 ms | 2200 us |" in printed
    assert "| fused | 0.750 | 0.902 s | 332.59 token/s | +22.0% | 3.00 | 8.00 ms | 220 us |" in printed
    assert "Gain of fused over reference +22.0%; Amdahl's bound" in printed
    assert "+25.0%, 88% of it" in printed
    assert "in SGLang on an H20: +4.6%" in printed
    assert "operation alone takes the GPU 12.5 us of 226.7 us, so 214 us are beyond it, on average" in printed
    assert "8.00 ms: 80 experts a layer, at least 20 GB read, 2500 GB/s; 20 TFLOP/s" in printed
    assert "300 tokens accepted of 1,000 masked positions; accepted otherwise: sglang 0, fused 0" in printed


def test_the_table_of_a_narrow_terminal_has_its_words_whole(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables.show(record(), markdown=False)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    for word in " ".join((*tables.HEADINGS, *tables.row(record(), record().loads[0], "fused"))).split():
        assert word in printed.split(), word


@pytest.mark.parametrize(("slower", "begins"), [(1.0, "After 1 of 9"), (1.02, "Measure again: after 1 of 9")])
def test_a_throttled_gpu_is_said_and_whether_it_met_the_modes_alike(slower, begins) -> None:
    first, *rest = record().repeats
    repeats = (dataclasses.replace(first, fault="the GPU was throttled: power cap"), *rest)
    repeats = tuple(
        dataclasses.replace(one, forward_us=tuple(slower * us for us in one.forward_us)) if one.mode == "fused" else one
        for one in repeats
    )
    said = tables.remarks(record(repeats=repeats), record().loads[0])
    assert f"{begins} repeats the GPU was throttled: power cap; the modes' passes differ by {slower - 1:.1%}." in said


def test_one_repeat_is_said_to_tell_nothing_of_how_far_repeats_differ(capsys) -> None:
    once = record(repeats=tuple(one for one in record().repeats if one.repeat == 0))
    for made, said in ((once, True), (record(), False)):
        tables.show(made, markdown=True)
        printed = capsys.readouterr().out
        assert ("**1 request: 4 prompts, one repeat**" in printed) == said
        assert ("One repeat does not say how far repeats differ" in printed) == said


def test_modes_that_went_different_ways_end_in_exit_code_1(tmp_path, capsys) -> None:
    agreed = Agreed("1 request", 100, 3200, 1000, 300, 0, 0, {"sglang": 2, "fused": 0})
    results.save(record(agreed=(agreed,)), tmp_path / "e2e.json")
    assert cli.main(["e2e", "--show", str(tmp_path / "e2e.json")]) == 1
    assert "sglang accepts 2 tokens otherwise than reference" in " ".join(capsys.readouterr().out.split())
    first, *rest = record().repeats
    other = dataclasses.replace(first, digest="other")
    results.save(record(repeats=(other, *rest)), tmp_path / "e2e.json")
    assert cli.main(["e2e", "--show", str(tmp_path / "e2e.json")]) == 1
    assert "or passes that they took, differ between modes or repeats" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("field", "kept", "message"),
    [
        ("agreed", [], r"agreed: expected one of each load, \['1 request'\]; got \[\]"),
        ("forwards", [], r"forwards: expected one of each load, \['1 request'\]; got \[\]"),
        ("forwards", [0, 0], r"forwards: expected one of each load, .*; got \['1 request', '1 request'\]"),
        ("loads", [], "loads: Tuple should have at least 1 item"),
        ("loads", [0, 0], r"loads: expected each name once; got \['1 request', '1 request'\]"),
        ("repeats", [], "repeats: Tuple should have at least 1 item"),
        ("repeats", [0, 1, 3, 4, 6, 7], r"repeats: expected \[0, 1, 2\] of fused on 1 request; got \[\]"),
        ("repeats", range(8), r"repeats: expected \[0, 1, 2\] of fused on 1 request; got \[0, 1\]"),
        ("repeats", [*range(9), 8], r"repeats: expected \[0, 1, 2\] of fused on 1 request; got \[0, 1, 2, 2\]"),
    ],
)
def test_a_record_that_lacks_what_could_differ_is_refused(field: str, kept, message: str, tmp_path, capsys) -> None:
    path = tmp_path / "e2e.json"
    results.save(record(), path)
    said = json.loads(path.read_text())
    said[field] = [said[field][number] for number in kept]
    path.write_text(json.dumps(said))
    with pytest.raises(results.RecordError, match=f"{path}: not a complete record of the kind 'end to end': {message}"):
        results.load(EndToEnd, path)
    assert cli.main(["e2e", "--show", str(path)]) == 2
    assert f"error: {path}: not a complete" in capsys.readouterr().err


def test_a_record_is_of_its_own_loads_and_modes_alone() -> None:
    first, *rest = record().repeats
    for change in ({"load": "other"}, {"mode": "other"}):
        with pytest.raises(ValueError, match=r"repeats: expected \[\] of .*other.*; got \[0\]"):
            record(repeats=(first, *rest, dataclasses.replace(first, **change)))
    for differing in ({}, {"fused": 0}, {"sglang": 0, "fused": 0, "other": 0}):
        agreed = dataclasses.replace(record().agreed[0], differing=differing)
        with pytest.raises(ValueError, match=r"agreed: 1 request: expected counts of \['sglang', 'fused'\]; got"):
            record(agreed=(agreed,))


def test_an_excused_position_waives_the_tokens_of_a_mode_and_nothing_else() -> None:
    excused = (Agreed("1 request", 100, 3200, 1000, 300, 2, 1, {"sglang": 0, "fused": 0}),)

    def differences(mode: str, numbers: set[int], **changes) -> list[str]:
        repeats = tuple(
            dataclasses.replace(one, **changes) if one.mode == mode and one.repeat in numbers else one
            for one in record().repeats
        )
        return record(repeats=repeats, agreed=excused).differences()

    assert differences("fused", {0, 1, 2}, digest="other") == []
    apart = ["1 request: tokens, or passes that they took, differ between modes or repeats"]
    assert differences("fused", {1}, digest="other") == apart  # a mode goes the same way every time
    assert differences("fused", {0, 1, 2}, digest="other", tokens=299) == apart
    assert differences("fused", {0, 1, 2}, digest="other", sequence_passes=99) == apart
    assert differences("fused", {0, 1, 2}, digest="other", passes=99) == apart
    wrong = ["1 request: how many answers are right differs between modes or repeats"]
    assert differences("fused", {0, 1, 2}, correct=2) == wrong
    assert differences("reference", {0}, correct=None) == wrong


def test_every_mode_is_measured_on_every_load_and_takes_the_same_way(model) -> None:
    prompts = [some_ids(SMALL, 5 + 3 * seed, seed).clamp(max=MASK - 1).tolist() for seed in range(5)]
    task = runs.Task(prompts, lambda number, tokens: number != 1 and len(tokens) == 12, MASK, None, BLOCK, 12)
    loads = [Load("1 request", 1, 2), Load("3 in parallel", 3, 7)]
    steps: list[str] = []
    made = runs.measure(
        task, lambda slots: scripted(model, slots, task.cache_length), loads, list(modes().values()),
        model="small", questions="some", acceptance="scripted", repeats=2, seed=0, progress=steps.append,
    )  # fmt: skip
    assert made.differences() == []
    steps = [text for text in steps if not text.startswith("another run")]
    assert len(steps) == 2 * (1 + 3 * 3) + 2 * torch.cuda.is_available()
    for load, correct in zip(loads, (1, 5), strict=True):
        for mode in ("reference", "sglang", "fused"):
            repeats = made.of(load.name, mode)
            assert [one.repeat for one in repeats] == [0, 1]
            for one in repeats:
                assert (one.tokens, one.correct) == (load.requests * 12, correct)
                assert len(one.forward_us) == one.passes
                assert 0 < len(one.outside_us) < one.passes  # some steps are followed by a sequence that enters
                assert sum(one.forward_us) < 1e6 * one.seconds
    assert made.device_us == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can hold it")
def test_what_cannot_be_run_here_is_said(capsys) -> None:
    assert cli.main(["e2e", "--random"]) == 2
    assert "--random: expected a GPU with 64 GB of memory or more; there is none here" in capsys.readouterr().err
    assert cli.main(["e2e", "--random", "--gsm8k", "test.jsonl"]) == 2
    assert "--gsm8k: expected a model that reads" in capsys.readouterr().err
    for option, said in (("--repeats", "--repeats: expected at least 1; got 0"), ("--tokens", "--tokens: expected at")):
        assert cli.main(["e2e", option, "0"]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["e2e", "--threshold", "nan"]) == 2
    assert "--threshold: expected a number; got nan" in capsys.readouterr().err


@pytest.fixture
def made_up_measurement(monkeypatch) -> list[tuple[runs.Task, dict[str, str]]]:
    """Nothing is decoded; what was asked for is kept."""
    asked = []

    def measure(task, serve, loads, modes, *, repeats, seed, progress, **said) -> EndToEnd:
        asked.append((task, said))
        return record()

    monkeypatch.setattr(runs, "measure", measure)
    return asked


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "--output: expected a file; {path} is a folder"),
        ("file/e2e.json", "--output: expected a file that can be written; got {path}: "),
    ],
)
def test_where_no_record_can_be_written_nothing_is_measured(
    place, message, made_up_measurement, tmp_path, capsys
) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / place
    assert cli.main(["e2e", "--output", str(path)]) == 2
    assert message.format(path=path) in capsys.readouterr().err
    assert made_up_measurement == []


def test_the_tables_are_shown_though_the_record_cannot_be_written_any_more(
    made_up_measurement, tmp_path, monkeypatch, capsys
) -> None:
    def full(record, path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(results, "save", full)
    assert cli.main(["e2e", "--questions", "2", "--output", str(tmp_path / "e2e.json"), "--markdown"]) == 2
    printed = capsys.readouterr()
    assert "| fused | 0.750 |" in printed.out
    assert "Record:" not in printed.out
    assert "error: No space left on device" in printed.err


def test_a_folder_is_the_same_however_it_is_written(made_up_measurement, tmp_path, monkeypatch) -> None:
    shutil.copytree(WORD_PROBLEMS, tmp_path / "mine")
    expected = {WORD_PROBLEMS: ("word_problems, 0.9 M", 64), tmp_path / "mine": ("mine, 0.9 M", 256)}
    for folder, (named, generated) in expected.items():
        monkeypatch.chdir(folder)
        for model in (".", f"../{folder.name}", str(folder)):
            output = str(tmp_path / "e2e.json")
            assert cli.main(["e2e", "--questions", "1", "--model", model, "--output", output]) == 0
            task, said = made_up_measurement.pop()
            assert said["model"].startswith(named)
            assert task.generation_length == generated


def test_questions_are_read_before_the_weights(tmp_path, monkeypatch, capsys) -> None:
    loaded = []
    monkeypatch.setattr(checkpoint, "load", lambda *args, **options: loaded.append(args))
    path = tmp_path / "test.jsonl"
    path.write_text("{")
    assert cli.main(["e2e", "--gsm8k", str(path), "--output", str(tmp_path / "e2e.json")]) == 2
    assert f"{path}:1: expected JSON" in capsys.readouterr().err
    assert loaded == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"max_position_embeddings": 80}, "prompts[0]: expected at most 80 positions, max_position_embeddings of"),
        ({"mask_token_id": 157}, "vocab_size: expected the mask, 157, to be within it; got 157"),
        ({"eos_token_id": -1}, "vocab_size: expected the end, -1, to be within it; got 157"),
        ({"vocab_size": 150}, "vocab_size: expected the largest token of tokenizer.json, 156, to be within it"),
    ],
)
def test_ids_and_lengths_that_the_model_does_not_have_are_said(said, message, tmp_path, capsys) -> None:
    folder = shutil.copytree(WORD_PROBLEMS, tmp_path / "model")
    named = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps(named))
    assert cli.main(["e2e", "--model", str(folder), "--questions", "2", "--output", str(tmp_path / "e2e.json")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


DECODING = Decoding(2, 8, 300, "fp32")


@pytest.fixture
def small_decoding(monkeypatch):
    monkeypatch.setitem(workloads.WORKLOADS, DECODING.name, DECODING)
    return open_bench(DECODING.name, seed=0)


def test_a_workload_of_sequences_is_checked_and_timed_in_turns(small_decoding) -> None:
    checked = small_decoding.check()
    assert checked["passed"], checked
    assert checked["detail"].endswith("of 2 sequences")
    assert checked["digest"] != open_bench(DECODING.name, seed=1).check()["digest"]
    small_decoding.warm_up()
    assert small_decoding.begin("call_us") == ["reference", "fused"]
    samples = small_decoding.sample("fused", 2)
    passes = len(small_decoding.served.timeline.passes)
    assert len(samples) == 2
    assert passes > workloads.DECODED_TOKENS / 8
    assert all(us > 1e-3 * sum(small_decoding.served.timeline.forward_us()) for us, *_ in samples)
    assert small_decoding.end() == []
    small_decoding.close()


def test_a_fused_step_that_accepts_otherwise_fails_the_check(small_decoding, monkeypatch) -> None:
    def hasty(logits, input_ids, mask_id, threshold, **arguments) -> None:
        dllm_post_process_fused(logits, input_ids, mask_id, 0.001, **arguments)

    small_decoding.modes[1] = Mode("fused", hasty, False, "")
    checked = small_decoding.check()
    assert not checked["passed"]
    assert "tokens are accepted otherwise than by the reference" in checked["detail"]


def test_a_package_without_the_loop_is_not_measured_if_it_is_the_base(small_decoding, monkeypatch) -> None:
    import dllm_kernels

    monkeypatch.delattr(dllm_kernels, "BatchDecoder")
    absent = open_bench(DECODING.name, seed=0)
    reply = absent.check()
    assert (reply["passed"], reply["absent"]) == (False, True)
    absent.close()
