"""What the doctor finds, and that a machine with something to mend is called unfit."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks import __main__ as cli
from benchmarks import doctor
from benchmarks.results import GpuState


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
