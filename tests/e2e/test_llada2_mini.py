"""From question to answer with the model of this repository, as in the two end-to-end tests that the project began
with: one request at a time, and many questions in parallel. What it takes at LLaDA2.0-mini's size: `tests/perf`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks import results
from benchmarks.e2e.record import EndToEnd, Load

MODES = ("reference", "sglang", "fused")
SLOTS, QUESTIONS = 16, 48


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> EndToEnd:
    """Decoded with every step, as a user would have it."""
    path = tmp_path_factory.mktemp("e2e") / "e2e.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small operations of many threads wait for each other
    options = ["--slots", str(SLOTS), "--questions", str(QUESTIONS), "--repeats", "1", "--output", str(path)]
    assert cli.main(["e2e", *options]) == 0
    torch.set_num_threads(threads)
    return results.load(EndToEnd, path)


def check(record: EndToEnd, load: Load) -> None:
    """All steps accept the same tokens, answer the same questions rightly, and take several tokens a pass."""
    (agreed,) = (one for one in record.agreed if one.load == load.name)
    assert agreed.differing == {"sglang": 0, "fused": 0}
    assert agreed.accepted > 10 * load.requests
    by_mode = {mode: record.of(load.name, mode)[0] for mode in MODES}
    assert len({one.digest for one in by_mode.values()}) == 1 or agreed.excused
    assert len({one.correct for one in by_mode.values()}) == 1
    for one in by_mode.values():
        assert one.correct > 0.7 * load.requests  # of a sample; `test_word_problems` has the accuracy
        assert one.tokens > 1.5 * one.sequence_passes
        assert one.outside_us


def test_bs_1_speed(record: EndToEnd) -> None:
    single, _ = record.loads
    assert (single.slots, single.requests) == (1, 8)
    check(record, single)


def test_gsm8k(record: EndToEnd) -> None:
    _, parallel = record.loads
    assert (parallel.slots, parallel.requests) == (SLOTS, QUESTIONS)
    check(record, parallel)
    passes = {mode: record.of(parallel.name, mode)[0].passes for mode in MODES}
    one_by_one = record.of(parallel.name, "fused")[0].sequence_passes
    assert all(count < one_by_one / (SLOTS / 2) for count in passes.values())  # slots are kept filled


def test_questions_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from benchmarks.e2e import problems

    asked = problems.generate(3, 5, "held-out")
    lines = [f'{{"question": "{one.question}", "answer": "so\\n#### {one.answer}"}}\n' for one in asked]
    (tmp_path / "test.jsonl").write_text("".join(lines))
    options = ["--slots", "2", "--repeats", "1", "--output", str(tmp_path / "e2e.json")]
    assert cli.main(["e2e", "--gsm8k", str(tmp_path / "test.jsonl"), *options]) == 0
    record = results.load(EndToEnd, tmp_path / "e2e.json")
    assert [load.requests for load in record.loads] == [3, 3]
    assert "the first 3 of test.jsonl" in " ".join(capsys.readouterr().out.split())
