"""The files of the site: the overview, which is whole without its script, and the points of each series in a script of
their own, which the page loads when they are asked for."""

from __future__ import annotations

import datetime
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report, results
from benchmarks.history.changes import LEAST_KNOWN
from benchmarks.history.survey import Survey
from benchmarks.site import bends, drawing, overview, units
from benchmarks.site.commits import Commit
from benchmarks.site.curves import Curve, State
from benchmarks.site.overview import Verdict

HERE = Path(__file__).parent
STATIC = ("site.css", "site.js", "vendor/uplot/uPlot.iife.min.js", "vendor/uplot/uPlot.min.css", "vendor/uplot/LICENSE")


@dataclass(frozen=True)
class Page:
    project: str
    branch: str
    commits: list[Commit]  # oldest first
    curves: list[Curve]
    survey: Survey
    strays: dict[str, Commit]
    link: str
    noise: Path
    verdict: Verdict | None
    explorer: bool
    remark: str

    def write(self, folder: Path, source: Path) -> None:
        """Into `folder`, of results in `source`."""
        for name in STATIC:
            (folder / "assets" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, folder / "assets" / name)
        if self.verdict:
            (folder / "verdict.html").write_text(report.page(self.verdict.run, self.verdict.judgement, "index.html"))
        places = {one.hash: number for number, one in enumerate(self.commits)}
        environments = bends.environment_changes(self.curves, self.commits)
        self._write_data(folder / "data", places, environments)
        (folder / "index.html").write_text(self._rendered(source, places, environments))

    def _rendered(
        self, source: Path, places: dict[str, int], environments: list[bends.EnvironmentChange]
    ) -> str:  # fmt: skip
        import jinja2

        machines = sorted({curve.series.machine for curve in self.curves} | set(self.survey.machines))
        cards = [
            overview.card(
                machine,
                [curve for curve in self.curves if curve.series.machine == machine],
                self.commits,
                self._noise_of(machine),
                self.verdict if self.verdict and self.verdict.machine == machine else None,
            )
            for machine in machines
        ]
        cards.sort(key=lambda card: list(overview.Fitness).index(card.fitness))
        first = next((card.headline for card in cards if card.headline), None)
        judged = {
            machine: sum(one.judged and not one.ended for one in self.curves if one.series.machine == machine)
            for machine in machines
        }
        measured: dict[str, list[int]] = {}
        for curve in self.curves:
            measured.setdefault(curve.series.machine, []).extend(places[point.commit] for point in curve.points)
        spans = {machine: (min(some), max(some)) for machine, some in measured.items()}
        loader = jinja2.FileSystemLoader(HERE)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters.update(percent=units.percent)
        return environment.get_template("index.html.j2").render(
            page=self,
            source=source,
            built=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            latest=self.commits[-1] if self.commits else None,
            measured=len({point.commit for curve in self.curves for point in curve.points}),
            most=max((len(curve.known) for curve in self.curves), default=0),
            least_known=LEAST_KNOWN,
            cards=cards,
            answer=overview.answer(cards),
            bends=bends.bends(self.curves, self.commits),
            environments=environments,
            noted=sorted({name for curve in self.curves for point in curve.points for name in point.environment}),
            benchmarks=self._benchmarks(judged, first),
            sketches={curve.key: self._sketch(curve, places, environments, spans) for curve in self.curves},
            reading=units.reading,
            brief=units.brief,
            first=first,
            faulty=Counter(reason for _, reason in self.survey.faulty),
            empty=sum(not curve.known for curve in self.curves),
            State=State,
        )

    def _noise_of(self, machine: str) -> results.NoiseRecord | None:
        path = self.noise / f"{machine}.json"
        return results.load(results.NoiseRecord, path) if path.exists() else None

    def _benchmarks(self, judged: dict[str, int], first: Curve | None) -> dict[str, list[tuple[Curve, State]]]:
        """Curves that have a value, with their states, by benchmark; the one of the series on top first."""
        found: dict[str, list[tuple[Curve, State]]] = {first.series.benchmark: []} if first else {}
        for curve in self.curves:
            if not curve.known:
                continue
            state = curve.state(judged[curve.series.machine] or 1)
            found.setdefault(curve.series.benchmark, []).append((curve, state))
        return found

    def _sketch(
        self,
        curve: Curve,
        places: dict[str, int],
        environments: list[bends.EnvironmentChange],
        spans: dict[str, tuple[int, int]],
    ) -> drawing.Sketch:
        there = [one.commit.hash for one in environments if one.machine == curve.series.machine]
        blamed = [one for one in curve.changes if not one.environment]
        worse, better = ([one.first for one in blamed if one.worse is which] for which in (True, False))
        return drawing.sketch(curve.points, places, spans[curve.series.machine], there, worse, better)

    def _write_data(
        self, folder: Path, places: dict[str, int], environments: list[bends.EnvironmentChange]
    ) -> None:  # fmt: skip
        (folder / "series").mkdir(parents=True)
        measured = sorted({places[point.commit] for curve in self.curves for point in curve.points})
        told = [self.commits[place] for place in measured]
        content = {
            "link": self.link, "places": measured, "hashes": [one.hash for one in told],
            "days": [one.day for one in told], "subjects": [one.subject for one in told],
        }  # fmt: skip
        (folder / "commits.js").write_text(_script("commits", content))
        for curve in self.curves:
            there = [one for one in environments if one.machine == curve.series.machine]
            content = self._points(curve, places, there)
            (folder / "series" / f"{curve.key}.js").write_text(_script("series", curve.key, content))

    def _points(
        self, curve: Curve, places: dict[str, int], environments: list[bends.EnvironmentChange]
    ) -> dict[str, Any]:  # fmt: skip
        divisor, unit = units.scale([point.value or 0.0 for point in curve.known], curve.series.unit)
        return {
            "name": curve.series.name, "machine": curve.series.machine, "unit": unit, "divisor": divisor,
            "lessIsBetter": curve.series.less_is_better,
            "places": [places[point.commit] for point in curve.points],
            "values": [point.value for point in curve.points],
            "low": [point.low for point in curve.points],
            "high": [point.high for point in curve.points],
            "changes": [
                {
                    "place": places[one.first], "worse": one.worse, "ratio": one.ratio - 1,
                    "environment": _differences(one.environment),
                }
                for one in curve.changes
            ],
            "environments": [
                {"place": places[one.commit.hash], "text": _differences(one.differences)} for one in environments
            ],
        }  # fmt: skip


def _differences(differences: dict[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name} {old} to {new}" for name, (old, new) in differences.items())


def _script(function: str, *arguments: Any) -> str:
    """A call of the page's script. The text is ASCII and cannot end a script element, wherever it comes from."""
    text = ", ".join(json.dumps(one, separators=(",", ":"), allow_nan=False) for one in arguments)
    return f"dashboard.{function}({text.replace('<', chr(92) + 'u003c')});\n"
