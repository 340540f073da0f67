"""`python -m benchmarks`: exit codes and messages, without measuring."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as cli
from benchmarks import gate, history, measure, results, session, verification
from benchmarks.policy import Policy
from benchmarks.site import command as dashboard
from benchmarks.workloads import WORKLOADS
from tests.records import GPU, NAME, blocks_of, make_noise, make_run, steady


def _whole(device=15.0, **changes):
    """A run of every workload."""
    return make_run(
        {key: value for name in WORKLOADS for key, value in steady(device, workload=name).items()}, **changes
    )


@pytest.fixture(autouse=True)
def _own_baselines(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "BASELINES", tmp_path / "baselines")
    monkeypatch.setattr(cli, "OUTPUT", tmp_path / "output")


@pytest.fixture
def record(tmp_path):
    def save(run):
        results.save(run, tmp_path / "run.json")
        return str(tmp_path / "run.json")

    return save


def test_help_shows_examples():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(cli.__file__).parent.parent,
    )
    assert "examples:" in result.stdout
    assert "Exit codes: 0 pass, 1 regression, 2 usage or environment error, 3 inconclusive" in result.stdout


@pytest.mark.parametrize(("command", "codes"), [("gate", "0 pass, 1 regression"), ("report", "0 done, 2 usage")])
def test_help_of_a_command_tells_its_own_exit_codes(command, codes, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"Exit codes: {codes}" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "code"), [(15.0, 0), (2.0, 1)])
def test_gate_exits_with_the_verdict(record, device, code, capsys):
    assert cli.main(["gate", record(_whole(device))]) == code
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["bench", "compare", "run", "gate", "verify", "report", "baseline", "noise", "selftest"]
)
def test_help_of_a_command_ends_in_examples_and_exit_codes(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    printed = capsys.readouterr().out
    assert f"python -m benchmarks {command}" in printed.partition("examples:")[2]
    assert "exit code" in printed.lower()


@pytest.mark.parametrize("percent", ["nan", "0", "-1", "100", "much"])
def test_a_tolerance_that_is_no_share_is_refused_before_anything_is_measured(percent, monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(SystemExit) as left:
        cli.main(["compare", "HEAD", "--workload", NAME, "--max-slowdown", percent])
    assert left.value.code == 2
    assert "between 0 and 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "gpu", "message"),
    [(["compare", "HEAD"], False, "expected a run on a GPU"), (["bench"], True, "expected a record of `compare`")],
)
def test_a_slowdown_that_cannot_be_judged_is_refused_before_anything_is_measured(
    arguments, gpu, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(measure, "has_gpu", lambda: gpu)
    monkeypatch.setattr(measure, "measure", lambda *_, **__: pytest.fail("measured"))
    output = str(tmp_path / "run.json")
    assert cli.main([*arguments, "--workload", NAME, "--max-slowdown", "2", "--output", output]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["compare", "HEAD"], ["bench"]])
def test_a_baseline_that_is_missing_is_told_before_anything_is_measured(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "BASELINES", tmp_path)
    monkeypatch.setattr(measure, "device", lambda: "NVIDIA Test")
    monkeypatch.setattr(measure, "measure", lambda *_, **__: pytest.fail("measured"))
    output = str(tmp_path / "run.json")
    assert cli.main([*arguments, "--workload", NAME, "--require-baseline", "--output", output]) == 2
    assert "baseline: none for NVIDIA Test, expected" in capsys.readouterr().err


def test_gate_takes_a_part_for_a_pass_only_when_asked_to(record, capsys):
    path = record(make_run(steady()))
    assert cli.main(["gate", path, "--markdown"]) == 3
    printed = capsys.readouterr().out
    assert "expected, and not measured" in printed
    assert r"gate RECORD\` with \`--quick\` or \`--workload NAME\` judges a part" in printed
    assert cli.main(["gate", path, "--workload", NAME]) == 0
    assert "judges a part" not in capsys.readouterr().out
    assert cli.main(["gate", path, "--quick"]) == 3


def test_gate_exits_3_in_doubt(record):
    assert cli.main(["gate", record(make_run({(NAME, "device_us"): [9.0], (NAME, "call_us"): [4.0]}))]) == 3


def test_report_of_a_regression_exits_0(record, capsys):
    assert cli.main(["report", record(make_run(steady(device=2.0))), "--markdown"]) == 0
    assert "REGRESSION" in capsys.readouterr().out


def test_require_baseline(record, capsys):
    path = record(_whole())
    assert cli.main(["gate", path, "--require-baseline"]) == 2
    assert "baseline: none for NVIDIA Test" in capsys.readouterr().err
    assert cli.main(["baseline", path, "--accept", "--reason", "first"]) == 0
    assert cli.main(["gate", path, "--require-baseline"]) == 0
    stored = results.load(results.Baseline, session.BASELINES / "nvidia-test.json")
    assert stored.reason == "first"
    assert stored.commit == GPU.commit
    assert stored.of(NAME, "device_us", "reference").speedup == pytest.approx(15.0, rel=1e-3)
    assert cli.main(["gate", record(_whole(13.0, fused_us=11.5)), "--require-baseline"]) == 1
    capsys.readouterr()
    assert cli.main(["baseline", record(_whole(13.0)), "--accept", "--reason", "slower on purpose"]) == 0
    assert f"Lower: {NAME} on device_us beside reference, 15.00x to 13.00x" in capsys.readouterr().out


def test_only_a_clean_run_that_passes_becomes_a_baseline(record, capsys):
    arguments = ["--accept", "--reason", "x"]
    assert cli.main(["baseline", record(_whole(2.0)), *arguments]) == 2
    assert "only a run that passes" in capsys.readouterr().err
    assert cli.main(["baseline", record(make_run(steady())), *arguments]) == 2
    assert "only a run that passes" in capsys.readouterr().err
    for changes in ({"dirty": True}, {"commit": None}):
        nowhere = _whole(environment=dataclasses.replace(GPU, **changes))
        assert cli.main(["baseline", record(nowhere), *arguments]) == 2
        assert "uncommitted changes" in capsys.readouterr().err
    assert not session.BASELINES.exists()


@pytest.mark.parametrize("content", ["", "{", json.dumps({"kind": "run", "version": 0})])
def test_a_record_that_cannot_be_used_exits_2(tmp_path, content, capsys):
    path = tmp_path / "bad.json"
    path.write_text(content)
    assert cli.main(["gate", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_bench_measures_more_where_in_doubt_and_stops(tmp_path, monkeypatch, capsys):
    """One process leaves doubt; three more decide; the page is published from all of them."""
    asked = []

    def fake_measure(chosen, *, processes, first_process=0, **_):
        asked.append((processes, first_process))
        run = make_run({key: values[:1] * processes for key, values in steady().items()})
        shifted = [dataclasses.replace(one, process=one.process + first_process) for one in run.series]
        checks = [dataclasses.replace(one, process=one.process + first_process) for one in run.checks]
        return dataclasses.replace(run, series=tuple(shifted), checks=tuple(checks), blocks=blocks_of(shifted))

    monkeypatch.setattr(measure, "measure", fake_measure)
    monkeypatch.setattr(history, "record", lambda record, run: True)
    monkeypatch.setattr(dashboard, "build", lambda output, repository, verdict: output / "index.html")
    output = tmp_path / "latest.json"
    assert cli.main(["bench", "--workload", NAME, "--processes", "1", "--output", str(output)]) == 0
    assert asked == [(1, 0), (3, 1)]
    assert {one.process for one in results.load(results.Run, output).series} == {0, 1, 2, 3}
    assert "index.html" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "bench", "compare HEAD"])
def test_a_record_that_could_not_be_kept_is_not_measured(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure", lambda *_, **__: pytest.fail("measured"))
    assert cli.main([*command.split(), "--workload", NAME, "--output", str(tmp_path)]) == 2
    assert f"--output: expected a file; {tmp_path} is a folder" in capsys.readouterr().err


def test_bench_refuses_an_unknown_workload(capsys):
    assert cli.main(["bench", "--workload", "1x1x1"]) == 2
    assert "workload: unknown 1x1x1" in capsys.readouterr().err


def test_verify_exits_with_the_verdict_and_refuses_other_samples(record, tmp_path, capsys):
    run = _whole()
    case = gate.Case()
    path = record(verification.with_verdicts(run, case, gate.judge(run, case)))
    assert cli.main(["verify", path]) == 0
    assert "follow from its samples" in capsys.readouterr().out
    fields = json.loads(Path(path).read_text())
    fields["series"][0]["us"] = [us * 2 for us in fields["series"][0]["us"]]
    Path(path).write_text(json.dumps(fields))
    assert cli.main(["verify", path]) == 2
    told = capsys.readouterr().err
    assert "its samples do not give its verdicts" in told
    series = run.series[0]
    assert f"{series.workload} on {series.clock}, speedup: " in told
    derived = verification.verify(results.load(results.Run, Path(path)))[0].verdicts[0]
    recorded = gate.judge(run, case).verdicts[0]
    assert f"ratio estimate {recorded.ratio.estimate!r} recorded, {derived.ratio.estimate!r} derived" in told
    assert "status" not in told.splitlines()[1]
    assert "{" not in told
    assert cli.main(["verify", record(run)]) == 2


def test_verdicts_for_machines(record, capsys):
    assert cli.main(["gate", record(_whole(2.0)), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["status"] == "REGRESSION"
    assert {verdict["question"] for verdict in printed["verdicts"]} == {"speedup"}


@pytest.mark.parametrize(("device", "code"), [(1.0, 0), (1.1, 1)])
def test_compare_measures_two_states_and_judges_both_questions(tmp_path, monkeypatch, capsys, device, code):
    sides_seen = []

    def fake_measure(chosen, *, head, base, processes, **_):
        sides_seen.append((base.state.origin, head.state.origin))
        slowdowns = {key: [device * s for s in (0.999, 1.001, 1.0, 1.0)] for key in steady()}
        return make_run(steady(), slowdowns=slowdowns)

    monkeypatch.setattr(measure, "measure", fake_measure)
    output = tmp_path / "compared.json"
    assert cli.main(["compare", "HEAD", "--workload", NAME, "--output", str(output)]) == code
    assert "slower than base" in capsys.readouterr().out
    ((base, head),) = sides_seen
    assert " at " in base
    assert head.endswith("of the working tree")
    assert cli.main(["verify", str(output)]) == code


def test_compare_refuses_what_is_no_commit(capsys):
    assert cli.main(["compare", "no-such-branch"]) == 2
    assert "base or head: expected a commit of this repository; got 'no-such-branch'" in capsys.readouterr().err


def test_a_tolerance_below_the_known_noise_is_refused(record, tmp_path, capsys):
    results.save(make_noise(), tmp_path / "baselines" / "noise" / "nvidia-test.json")
    run = make_run(steady(), slowdowns=steady(1.0, 1.0))
    # Processes on another clock tell nothing of the device's.
    others = tuple(results.Check(NAME, process, True, "equal", clocks=("call_us",)) for process in range(4, 10))
    for checks in (run.checks, (*run.checks, *others)):
        path = record(dataclasses.replace(run, checks=checks))
        arguments = ["gate", path, "--workload", NAME, "--max-slowdown"]
        assert cli.main([*arguments, "0.1"]) == 2
        assert f"expected at least 0.61 for {NAME}" in capsys.readouterr().err
    assert cli.main(["gate", record(run), "--workload", NAME, "--max-slowdown", "2"]) == 0


US = ("us", "beside_us")


def test_known_noise_is_made_of_a_commit_beside_itself(tmp_path, capsys):
    ten = [1 + 0.001 * number for number in range(-5, 5)]
    slowdowns = dict.fromkeys(steady(), ten)
    speedups = {key: [15 * slowdown for slowdown in ten] for key in slowdowns}
    same = make_run(speedups, slowdowns=slowdowns, base=results.State(GPU.commit, False, ""))
    few = dataclasses.replace(same, series=tuple(one for one in same.series if one.process < 5))
    paths = [str(tmp_path / f"{number}.json") for number in range(3)]
    for seed, path in enumerate(paths):
        series = (
            dataclasses.replace(one, **{name: tuple(us * (1 + seed) for us in getattr(one, name)) for name in US})
            for one in same.series
        )
        results.save(dataclasses.replace(same, series=tuple(series)), Path(path))
    results.save(few, tmp_path / "few.json")
    assert cli.main(["noise", str(tmp_path / "few.json"), "--accept"]) == 2
    assert "expected 6 processes of a pair in all; got fewer" in capsys.readouterr().err
    assert cli.main(["noise", *paths, "--accept"]) == 0
    noise = session.noise_of(GPU.device)
    assert noise is not None
    known = noise.of(NAME, "device_us", "fused beside base fused")
    assert known is not None
    assert known.processes == 30
    assert known.deviation == pytest.approx(0.0029, rel=0.01)


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({"policy": 1}, "policy: Input should be"),
        ({}, "0 verdicts recorded, "),
        ({"verdicts": "none"}, "verdicts: Input should be"),
    ],
)
def test_verify_refuses_what_nothing_can_be_judged_by(record, judged, message, capsys):
    run = dataclasses.replace(_whole(), judged=judged)
    assert cli.main(["verify", record(run)]) == 2
    assert message in capsys.readouterr().err


def test_verify_tells_what_else_the_record_was_judged_by(record, capsys):
    run = _whole()
    case = gate.Case(dataclasses.replace(Policy(), error=0.5))
    path = record(verification.with_verdicts(run, case, gate.judge(run, case)))
    assert cli.main(["verify", path]) == 0
    difference = "It was judged by another policy than this repository's: error 0.5; here 0.05"
    assert difference in capsys.readouterr().out
    assert cli.main(["verify", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "PASS"
    assert difference in "".join(told["judged_otherwise"])


def test_verify_exits_with_the_verdict_by_this_repository_s_rules_where_a_record_s_are_looser(record, capsys):
    run = _whole(2.0)
    floors = {**Policy().floors, "cuda": {"device_us": 1.0, "call_us": 1.0}}
    case = gate.Case(dataclasses.replace(Policy(), floors=floors))
    path = record(verification.with_verdicts(run, case, gate.judge(run, case)))
    assert cli.main(["verify", path]) == 1
    printed = capsys.readouterr().out
    assert "It was judged by another policy" in printed
    assert "On the same workloads by this repository's rules: REGRESSION" in printed
    assert cli.main(["verify", path, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["recorded_status"]) == ("REGRESSION", "PASS")


def test_commands_that_write_a_record_tell_machines_of_it(record, tmp_path, monkeypatch, capsys):
    run = make_run(steady(), slowdowns=steady(1.0, 1.0), base=results.State(GPU.commit, False, ""))
    monkeypatch.setattr(measure, "measure", lambda *_, **__: run)
    output = tmp_path / "run.json"
    assert cli.main(["run", "--workload", NAME, "--output", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"record": str(output), "device": GPU.device, "workloads": [NAME], "seconds": 20.0}
    assert cli.main(["baseline", record(_whole()), "--accept", "--reason", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][NAME]["call_us"]["reference"]["fused_us"] > 0
    six = {key: [0.99, 1.0, 1.01, 1.0, 0.99, 1.01] for key in steady()}
    same = make_run(six, slowdowns=six, base=results.State(GPU.commit, False, ""))
    assert cli.main(["noise", record(same), "--accept", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["entries"][NAME]["device_us"]
    assert known["fused beside base fused"]["processes"] == 6


def test_a_part_is_a_pass_of_a_measurement_only_where_it_was_asked_for(tmp_path, monkeypatch, capsys):
    """What the machine was to measure and did not is missed, though the record does not name it."""
    monkeypatch.setattr(measure, "measure", lambda chosen, **_: make_run(steady()))
    monkeypatch.setattr(measure, "has_gpu", lambda: True)
    monkeypatch.setattr(history, "record", lambda record, run: True)
    monkeypatch.setattr(dashboard, "build", lambda output, repository, verdict: output / "index.html")
    output = ["--output", str(tmp_path / "latest.json")]
    assert cli.main(["bench", "--workload", NAME, *output]) == 0
    assert cli.main(["bench", *output]) == 3
    assert "expected, and not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        OSError("disk full"),
        ZeroDivisionError("x"),
        KeyError("x"),
        ImportError("no scipy"),
        AssertionError(),
        TypeError(),
    ],
)
def test_an_accident_is_not_taken_for_a_regression(error, monkeypatch, record):
    def fails(*_):
        raise error

    monkeypatch.setattr(gate, "judge", fails)
    assert cli.main(["gate", record(make_run(steady()))]) == 2


def test_whoever_stops_reading_gets_no_traceback_and_no_pass(record):
    command = [sys.executable, "-m", "benchmarks", "report", record(_whole())]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(cli.__file__).parent.parent
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 2


@pytest.mark.parametrize(("every", "lines"), [(0.0, 2), (1e6, 0)])
def test_a_log_is_told_now_and_then_how_far_it_is(monkeypatch, capsys, every, lines):
    """A bar there would be drawn once, at the end, and a run that is killed would have said nothing."""
    monkeypatch.setattr(session, "LINE_SECONDS", every)
    with session.progress("Measuring", 2) as step:
        step("the first")
        step("the second")
    said = capsys.readouterr().err
    assert said.count("Measuring: ") == lines
    assert ("Measuring: 2 of 2 after 0 s: the second" in said) == (lines > 0)


def test_a_package_that_is_missing_is_no_regression():
    program = "import runpy, sys\nsys.modules['pydantic'] = None\nrunpy.run_module('benchmarks', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(cli.__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "pip install --group bench" in done.stderr


def test_what_a_damaged_record_says_is_no_command_of_the_terminal(record, tmp_path, capsys):
    run = _whole()
    odd = dataclasses.replace(run, environment=dataclasses.replace(run.environment, device="\x1b[31mred"))
    results.save(odd, tmp_path / "odd.json")
    assert cli.main(["noise", record(run), str(tmp_path / "odd.json"), "--accept"]) == 2
    told = capsys.readouterr().err
    assert "red" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("damaged", ["nvidia-test.json", "noise/nvidia-test.json", "accepted-slowdowns.json"])
@pytest.mark.parametrize("arguments", [["compare", "HEAD"], ["bench"], ["selftest", "--same", "1"]])
def test_rules_that_cannot_be_read_are_told_before_anything_is_measured(
    arguments, damaged, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(session, "BASELINES", tmp_path)
    monkeypatch.setattr(measure, "device", lambda: "NVIDIA Test")
    monkeypatch.setattr(measure, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "noise").mkdir()
    (tmp_path / damaged).write_text("{")
    assert cli.main([*arguments, "--output", str(tmp_path / "run.json")]) == 2
    assert damaged in capsys.readouterr().err


def test_a_baseline_of_another_device_whose_file_has_the_same_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "BASELINES", tmp_path)
    results.save(make_noise(), session.noise_path(GPU.device))
    session.rules_of(GPU.device)
    with pytest.raises(ValueError, match="noise: expected that of NVIDIA-Test in .*; got that of NVIDIA Test"):
        session.rules_of("NVIDIA-Test")
