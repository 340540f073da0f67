"""Policies that judge nothing, and tolerances that noise forbids, are refused."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from benchmarks.policy import Policy, baseline_tolerance, refuse_what_noise_forbids
from tests.records import NAME, OTHER, make_noise, make_run

POLICY = Policy()


@pytest.mark.parametrize("changes", [{"floors": {}}, {"error": 0.0}, {"looks": 0}, {"tolerances": {}}])
def test_a_policy_that_judges_nothing_is_refused(changes):
    with pytest.raises(ValueError, match="policy: expected"):
        dataclasses.replace(POLICY, **changes)


@pytest.mark.parametrize("share", [math.nan, math.inf, -0.5, 0.0, 1.0])
def test_a_slowdown_that_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="expected slowdowns between 0 and 1"):
        Policy(slowdowns={**POLICY.slowdowns, "cuda": {"device_us": share, "call_us": 0.05}})


def _noise_of_two():
    noise = make_noise()
    noise.entries[OTHER] = noise.entries[NAME]
    return noise


def test_a_tolerance_below_the_noise_is_refused_with_the_one_that_is_allowed():
    wanted = dataclasses.replace(POLICY, slowdowns={**POLICY.slowdowns, "cuda": {"device_us": 0.001, "call_us": 0.05}})
    with pytest.raises(ValueError, match=rf"--max-slowdown: expected at least 0\.\d+ for {NAME}.*; got 0\.1"):
        refuse_what_noise_forbids({NAME: 9}, wanted, make_noise())
    refuse_what_noise_forbids({NAME: 9}, POLICY, make_noise())
    with pytest.raises(ValueError, match=f"for {NAME}, .* lets 4 processes tell apart") as refused:
        refuse_what_noise_forbids({OTHER: 9, NAME: 4}, wanted, _noise_of_two())  # the one that allows least
    allowed = float(re.search(r"at least ([\d.]+)", str(refused.value))[1]) / 100
    slowdowns = {**POLICY.slowdowns, "cuda": {"device_us": allowed, "call_us": 0.05}}
    refuse_what_noise_forbids({OTHER: 9, NAME: 4}, dataclasses.replace(POLICY, slowdowns=slowdowns), _noise_of_two())
    refuse_what_noise_forbids({"of no known noise": 1}, wanted, make_noise())


def test_a_record_too_noisy_for_any_baseline_is_refused():
    run = make_run({(NAME, "device_us"): [13.0, 15.0, 15.5, 17.0]})
    with pytest.raises(
        ValueError, match=f"record: {NAME} on device_us varies .* where 5% is the most: measure in more"
    ):
        baseline_tolerance(run.series, POLICY, None)
