"""What runs of the same code teach of a device's noise."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.noise import learned
from benchmarks.results import Check, Noise, NoiseRecord
from tests.records import GPU, NAME, OTHER, make_run, steady


def _same_code(processes, **shifts):
    """A run of a commit beside itself, in which fused beside base's is off by so much."""
    run = make_run(
        {key: [value[0]] * processes for key, value in steady().items()},
        slowdowns={(NAME, f"{clock}_us"): [shift] * processes for clock, shift in shifts.items()},
    )
    return dataclasses.replace(run, base=dataclasses.replace(run.base, commit=GPU.commit))


def test_noise_of_the_same_code_is_taken_around_none_and_of_a_speedup_within_runs():
    """A run that is off as a whole is noise where the truth is known; two runs on two GPUs say nothing of a speedup."""
    runs = [_same_code(15, device=1.01), _same_code(15, device=0.99)]
    faster = [
        dataclasses.replace(one, beside_us=tuple(2 * us for us in one.beside_us))
        if one.beside == "base reference" and one.implementation == "fused"
        else one
        for one in runs[1].series
    ]
    noise = learned([runs[0], dataclasses.replace(runs[1], series=tuple(faster))])
    same = noise.of(NAME, "device_us", "fused beside base fused")
    assert (same.deviation, same.processes) == (pytest.approx(0.01, rel=0.01), 30)
    beside_reference = noise.of(NAME, "device_us", "fused beside base reference")
    assert (beside_reference.deviation, beside_reference.processes) == (pytest.approx(0, abs=1e-9), 29)
    assert noise.of(NAME, "device_us", "fused beside reference") is None  # of one process: another way to measure


def test_of_how_few_pairs_a_process_it_is_is_noted():
    short, whole = _same_code(3, device=1.0), _same_code(5, device=1.0)
    cut = [dataclasses.replace(one, us=one.us[:7], beside_us=one.beside_us[:7]) for one in short.series]
    noise = learned([dataclasses.replace(short, series=tuple(cut)), whole])

    def noted(record):
        return {entry.pairs for pairs in record.entries[NAME].values() for entry in pairs.values()}

    assert noted(noise) == {7}
    assert noted(learned([short], noise, add=True)) == {7}
    unknown = {
        clock: {pair: dataclasses.replace(entry, pairs=0) for pair, entry in pairs.items()}
        for clock, pairs in noise.entries[NAME].items()
    }
    more = learned([short], dataclasses.replace(noise, entries={NAME: unknown}), add=True)
    assert noted(more) == {0}, "once unknown, always unknown"


def test_what_is_known_of_other_pairs_stays():
    """Or a workload that is new would have everything measured again."""
    run = _same_code(30, device=1.01)
    pairs = {"fused beside base fused": Noise(0.5, 30), "fused beside reference": Noise(0.4, 30)}
    gone = "1x1x1-fp32-100"  # no workload of today
    entries = {name: {"device_us": dict(pairs)} for name in (NAME, OTHER, gone)}
    older = NoiseRecord(GPU.device, "2026-01-01", "f" * 40, GPU.torch, GPU.triton, GPU.driver, entries)
    noise = learned([run], older)
    assert noise.commit == GPU.commit
    assert noise.of(NAME, "device_us", "fused beside base fused") == learned([run]).of(
        NAME, "device_us", "fused beside base fused"
    )
    kept = noise.of(OTHER, "device_us", "fused beside base fused")
    assert (kept.deviation, kept.source) == (0.5, f"{'f' * 40}, 2026-01-01")
    assert noise.of(NAME, "device_us", "fused beside reference").deviation == 0.4
    assert gone not in noise.entries
    assert learned([_same_code(30, device=1.02)], noise).of(OTHER, "device_us", "fused beside base fused") == kept
    graphs = dataclasses.replace(older, driver="1", entries={OTHER: {"graph_us": dict(pairs)}})
    assert OTHER not in learned([run], graphs).entries  # which runs as they are never learn, whatever the version
    with pytest.raises(ValueError, match="records: expected of NVIDIA-Test, of which .* in that file; got NVIDIA Test"):
        learned([run], dataclasses.replace(older, device="NVIDIA-Test"))
    updated = dataclasses.replace(older, driver="1")
    with pytest.raises(ValueError, match="stays as it is in the noise, which is of driver 1; got driver 580.1"):
        learned([run], updated)
    assert learned([run], dataclasses.replace(updated, entries={})) == learned([run])  # nothing of it is kept


def test_noise_is_learned_of_a_clean_commit_with_right_results_alone():
    run = _same_code(30, device=1.0)
    learned([run])
    wrong = Check(NAME, 7, False, "3 ids differ")
    for changes, message in [
        ({"checks": (*run.checks, wrong)}, "a result was wrong, .*3 ids differ"),
        ({"base": dataclasses.replace(run.base, commit="e" * 40)}, "expected a commit beside itself"),
        ({"environment": dataclasses.replace(GPU, dirty=True)}, "expected a clean commit"),
        ({"checks": ()}, f"expected a check of all results; got none of {NAME}"),
        ({"series": tuple(one for one in run.series if one.process < 5)}, "expected 6 processes of a pair in all; got"),
    ]:
        with pytest.raises(ValueError, match=f"records: {message}"):
            learned([dataclasses.replace(run, **changes)])
    for name, found in (("device", "NVIDIA Test and NVIDIA Other"), ("driver", f"{GPU.driver} and NVIDIA Other")):
        elsewhere = dataclasses.replace(run, environment=dataclasses.replace(GPU, **{name: "NVIDIA Other"}))
        with pytest.raises(ValueError, match=f"records: expected one {name}; got {found}"):
            learned([run, elsewhere])
    with pytest.raises(ValueError, match="records: expected each once; got that of 2026-11-23T12:00:00"):
        learned([run, run])


def _of_day(day, count, shift):
    return dataclasses.replace(
        _same_code(count, device=shift, call=1 / shift), created=f"2026-11-2{day}T12:00:00+00:00"
    )


def test_runs_are_added_to_what_is_known_as_if_all_had_been_learned_from_at_once():
    runs = [_of_day(1, 9, 1.01), _of_day(2, 7, 0.98), _of_day(3, 2, 1.03)]
    at_once = learned(runs)
    for added in (
        learned(runs[2:], learned(runs[:2]), add=True),
        learned(runs[2:], learned(runs[1:2], learned(runs[:1]), add=True), add=True),
        learned(runs[:1], learned(runs[1:]), add=True),
    ):
        assert at_once.entries.keys() == added.entries.keys()
        for clock, pairs in at_once.entries[NAME].items():
            for pair, noise in pairs.items():
                found = added.of(NAME, clock, pair)
                assert (found.deviation, found.processes) == (pytest.approx(noise.deviation), noise.processes)
        assert added.of(NAME, "device_us", "fused beside base fused").processes == 18
        assert set(added.samples) == set(at_once.samples)
        for run in runs:
            judged = dataclasses.replace(run, judged={}, created="2026-12-01T12:00:00+00:00")
            with pytest.raises(ValueError, match="that of 2026-12-01T12:00:00.* is in the known noise already"):
                learned([judged], added, add=True)
    assert learned(runs, at_once) == at_once  # learned anew, what is known may be of them


def test_only_samples_that_something_known_is_of_are_told_from_new_ones():
    first, second = _of_day(1, 9, 1.01), _of_day(2, 7, 0.98)
    again = learned([second], learned([first]))  # in whose place it comes
    assert set(again.samples) == set(learned([second]).samples)
    assert again.of(NAME, "device_us", "fused beside base fused").processes == 7
    both = learned([first], again, add=True)
    assert both.of(NAME, "device_us", "fused beside base fused").processes == 16
    known = learned([first])
    known.entries[OTHER] = known.entries[NAME]
    assert set(learned([second], known).samples) == set(both.samples)  # of the other workload it is known still


def test_what_commits_an_addition_is_of_is_kept():
    later = dataclasses.replace(_of_day(2, 7, 0.98), environment=dataclasses.replace(GPU, commit="e" * 40))
    later = dataclasses.replace(later, base=dataclasses.replace(later.base, commit="e" * 40))
    added = learned([later], learned([_of_day(1, 9, 1.01)]), add=True)
    assert added.of(NAME, "device_us", "fused beside base fused").source == f"{GPU.commit}, {'e' * 40}"


def test_what_cannot_be_added_to_is_told():
    run = _of_day(1, 9, 1.01)
    known = learned([_of_day(2, 9, 0.99)])
    for older, message in [
        (None, "--add: expected known noise of NVIDIA Test to add to; there is none"),
        (dataclasses.replace(known, samples=()), "--add: the known noise does not say which runs"),
        (
            dataclasses.replace(known, driver="1"),
            "--add: expected records with driver 1, as the known noise; got 580.1",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            learned([run], older, add=True)


def test_what_no_two_processes_of_the_same_code_are_off_by_is_refused():
    with pytest.raises(ValueError, match=f"processes of {NAME} differ by 300% on device_us.*: not the same code"):
        learned([_same_code(9, device=20.0)])
