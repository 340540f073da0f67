"""What the doctor finds, and that a machine with something to mend is called unfit."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from benchmarks import __main__ as cli
from benchmarks import doctor, session
from benchmarks.results import GpuState
from tests.records import NAME, make_noise


@pytest.mark.parametrize(("load", "code"), [(0.0, 0), (64.0, 2)])
def test_a_busy_machine_is_not_fit(monkeypatch, capsys, load, code):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["doctor"]) == code
    printed = capsys.readouterr().out
    assert ("MEND  load" in printed) is bool(code)
    assert "known noise of this device: none" in printed


def test_what_is_found_is_there_for_machines(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (64.0, 0.0, 0.0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["doctor", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["fit"] is False
    assert any(one["what"].startswith("load") for one in found["findings"] if one["fit"] is False)
    assert found["environment"]["torch"]


@pytest.mark.parametrize(("processes", "told"), [(29, True), (30, False)])
def test_noise_that_few_processes_taught_is_noted(monkeypatch, processes, told):
    known = make_noise()
    pairs = known.entries[NAME]["device_us"]
    pairs["fused beside base fused"] = dataclasses.replace(pairs["fused beside base fused"], processes=processes)
    monkeypatch.setattr(session, "noise_of", lambda device: known)
    found = [one for one in doctor._records("NVIDIA Test") if "processes of a pair" in one.what]
    assert [(one.fit, "29 processes of a pair, where 30 are wanted" in one.what) for one in found] == (
        [(None, True)] if told else []
    )
    assert not told or "`noise RECORD --accept --add`" in found[0].mend


class _Gpu:
    def __init__(self, **changes):
        fields = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 40, "power_w": 90.0, "throttled": ()}
        self._state = GpuState(**{**fields, "foreign_processes": 0, **changes})

    def state(self, ours):
        return self._state

    def question(self, name):
        return {"PersistenceMode": 1, "MigMode": (0, 0)}[name]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"throttled": ("power cap",)}, "throttled by: power cap"),
        ({"foreign_processes": 2}, "2 other processes compute on this GPU"),
        ({"temperature_c": 91}, "temperature 91 C"),
    ],
)
def test_a_gpu_in_a_bad_state_is_not_fit(changes, what):
    unfit = [finding.what for finding in doctor._gpu(_Gpu(**changes)) if finding.fit is False]
    assert len(unfit) == 1
    assert what in unfit[0]


def test_a_gpu_in_a_good_state_is_fit():
    assert not [finding for finding in doctor._gpu(_Gpu()) if finding.fit is False]
