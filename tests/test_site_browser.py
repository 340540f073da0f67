"""The dashboard in a real browser: headless Chromium, from a folder and from a web server, offline.

Pictures of every page are left in `.bench/screenshots` to be looked at. Without a browser these tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gate, site
from benchmarks.site.overview import Verdict
from tests.records import make_run, steady
from tests.synthetic_history import MACHINES, Benchmark, Step, Updated, make

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / ".bench" / "screenshots"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PLANTED, DRIVER = 44, 25
LONG = "a_name_" + "that_goes_on_" * 9
OURS = (
    Benchmark("bench.Quick.track_speedup", "x", 15.9, {"workload": ("1x32x128000-fp16-100", LONG)}, False),
    Benchmark("bench.Quick.track_fused_us", "µs", 7.6, {"workload": ("1x32x128000-fp16-100", "<b>bold</b>")}, True),
)
SERIES = "track_speedup(1x32x128000-fp16-100)"
TURNED = "\u202eturned"  # by Unicode's right-to-left override
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A site with everything on it, and its commits."""
    folder = tmp_path_factory.mktemp("site")
    history = make(
        folder,
        commits=50,
        benchmarks=OURS,
        machines=(MACHINES[0], "a-machine-" + "with-a-long-name-" * 5),
        noise=0.003,
        steps=[Step(PLANTED, 1.06, "", "h100"), Step(DRIVER, 1.05, "", "h100")],
        updates=[Updated(DRIVER, "driver", "590.11", "h100")],
        failed=[10],
        subjects={PLANTED: "Planted <b>slowdown</b> " + "of_a_long_subject_" * 12, 49: f"{TURNED} around"},
    )
    subprocess.run(
        ["git", "remote", "add", "origin", "git@github.com:someone/project.git"], cwd=history.repository, check=True
    )
    (history.results / MACHINES[0] / f"{history.commits[3][:8]}-shared-py3.json").write_text("{")
    run = make_run(steady())
    verdict = Verdict(MACHINES[0], run, gate.judge(run, gate.Case()))
    return site.build(history.results, history.repository, folder / "site", verdict=verdict), history.commits


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


class Visit:
    """A page with what went wrong on it."""

    def __init__(self, browser: playwright.Browser, url: str, viewport: dict = WIDE, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda said: self.faults.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", lambda request: self.faults.append(f"failed: {request.url}"))
        self.page.on("response", lambda got: got.status >= 400 and self.faults.append(f"{got.status}: {got.url}"))
        self.page.on("request", lambda request: self._own(request.url, url))
        self.page.goto(url)
        self.page.wait_for_load_state("networkidle")

    def _own(self, asked: str, url: str) -> None:
        if not asked.startswith(("data:", url[: url.index("/", 8)])):
            self.faults.append(f"another host: {asked}")

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser: playwright.Browser) -> Iterator[functools.partial[Visit]]:
    made: list[Visit] = []

    def start(*arguments: object, **options: object) -> Visit:
        made.append(Visit(browser, *arguments, **options))
        return made[-1]

    yield start
    for one in made:
        one.context.close()


@pytest.fixture(scope="module")
def served(built: tuple[Path, list[str]]) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(built[0].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "verdict.html"])
def test_a_page_opens_from_a_folder_without_a_fault(built, visit, page: str, scheme: str) -> None:
    seen = visit((built[0].parent / page).as_uri(), scheme=scheme)
    assert seen.page.inner_text("h1")
    seen.picture(f"{page.partition('.')[0]}-{scheme}")
    assert seen.faults == []


@pytest.mark.parametrize("page", ["index.html", "verdict.html", "asv/index.html"])
def test_a_page_opens_from_a_server_without_a_fault_and_asks_no_other_host(visit, served: str, page: str) -> None:
    seen = visit(served + page)
    seen.page.wait_for_timeout(1000)
    seen.picture(f"served-{page.replace('/', '-').partition('.')[0]}")
    assert len(seen.page.inner_text("body")) > 200
    assert seen.faults == []


def test_the_chart_shows_the_planted_change_at_its_commit(built, visit) -> None:
    page, commits = built
    seen = visit(page.as_uri()).page
    label = seen.locator("#plot").get_attribute("aria-label")
    assert f"{SERIES} on {MACHINES[0]}: 49 commits" in label
    assert f"at {commits[PLANTED][:10]}" in label
    assert f"at {commits[DRIVER][:10]} with driver 580.159.04 to 590.11" in label

    seen.click("#table summary")
    rows = seen.locator("#table tbody tr").all_inner_texts()
    assert len(rows) == 49
    noted = {row.split()[0]: row for row in rows if "from here on" in row}
    assert set(noted) == {commits[PLANTED][:10], commits[DRIVER][:10]}
    assert "worse from here on" in noted[commits[PLANTED][:10]]
    assert "with the environment" in noted[commits[DRIVER][:10]]
    assert "no value" in next(row for row in rows if row.startswith(commits[10][:10]))

    drawn = seen.evaluate("document.querySelector('#plot canvas').toDataURL()")
    assert len(drawn) > 5000, "something is on the canvas"


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 900 commits of another project, without intervals, whose labels are as long as they become."""
    folder = tmp_path_factory.mktemp("long")
    one = Benchmark("sorting.time_sort", "seconds", 0.0011, {}, None, "time")
    history = make(folder, commits=900, benchmarks=(one,), noise=0.01)
    for path in history.results.glob("*/*-shared-py3.json"):
        content = json.loads(path.read_text())
        content["results"]["sorting.time_sort"][5:7] = [None, None]
        path.write_text(json.dumps(content))
    return site.build(history.results, history.repository, folder / "site")


def test_a_long_history_is_drawn_as_medians_until_zoomed(long: Path, visit) -> None:
    seen = visit(long.as_uri())
    page = seen.page
    assert "medians of 5 commits each" in page.inner_text("#legend")
    assert "interval" not in page.inner_text("#legend"), "the results have none"
    page.focus("#plot")
    page.keyboard.press("Home")
    for _ in range(45):
        page.keyboard.press("PageDown")
    assert "Change number 450" in page.inner_text("#readout"), "every commit is reached, drawn or not"
    for _ in range(3):
        page.keyboard.press("+")
    assert page.inner_text("#legend").startswith("value")
    assert "Change number 450" in page.inner_text("#readout")
    page.keyboard.press("ArrowRight")
    assert "Change number 451" in page.inner_text("#readout")
    for _ in range(4):
        page.keyboard.press("-")
    assert "medians of 5 commits each" in page.inner_text("#legend")
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 250, box["y"] + 50)
    page.mouse.up()
    assert page.inner_text("#legend").startswith("value")
    page.mouse.dblclick(box["x"] + 100, box["y"] + 50)
    assert "medians of 5 commits each" in page.inner_text("#legend")
    assert seen.faults == []


def test_labels_beside_the_chart_are_whole(long: Path, browser) -> None:
    page = browser.new_page(viewport=WIDE)
    page.add_init_script(
        """window.cut = []; window.labels = 0;
        const draw = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
          const end = new DOMPoint(x, y).matrixTransform(this.getTransform()).x;
          if (this.textAlign === "right") {
            window.labels += 1;
            if (end < this.measureText(text).width) window.cut.push(text);
          }
          return draw.apply(this, arguments);
        };"""
    )
    page.goto(long.as_uri())
    page.wait_for_selector("#plot[data-series]")
    for _ in range(8):
        page.locator("#plot").press("+")
    assert page.evaluate("window.labels") > 5
    assert page.evaluate("window.cut") == []
    page.close()


def test_another_series_is_shown_when_it_is_asked_for(built, visit) -> None:
    seen = visit(built[0].as_uri())
    seen.page.locator("tr a.show", has_text="<b>bold</b>").first.click()
    seen.page.wait_for_selector("#plot[data-series*=bold]")
    assert "track_fused_us(<b>bold</b>)" in seen.page.inner_text("#subject")
    seen.page.select_option("#choice", label=SERIES)
    seen.page.wait_for_selector("#plot:not([data-series*=bold])")
    assert seen.page.locator(".uplot").count() == 1
    assert seen.faults == []


def test_the_filter_leaves_what_was_asked_for(built, visit) -> None:
    seen = visit(built[0].as_uri()).page
    seen.fill("#filter", "FUSED")
    visible = seen.locator(".benchmark tbody tr:visible")
    assert visible.count() == 4
    assert seen.inner_text("#shown") == "4 series"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "verdict.html"])
def test_at_390_pixels_nothing_is_cut_off(built, visit, page: str, scheme: str) -> None:
    seen = visit((built[0].parent / page).as_uri(), viewport=PHONE, scheme=scheme).page
    for details in seen.locator("details").all():
        details.evaluate("one => one.open = true")
    seen.wait_for_timeout(200)
    assert seen.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    beyond = seen.evaluate(
        """() => [...document.querySelectorAll('body *')]
          .filter(one => !one.closest('.scroll, .skip, pre') && one.getBoundingClientRect().width > 0)
          .filter(one => one.getBoundingClientRect().right > innerWidth + .5 || one.getBoundingClientRect().left < -.5)
          .map(one => one.outerHTML.slice(0, 120))"""
    )
    assert beyond == []
    clipped = seen.evaluate(
        """() => [...document.querySelectorAll('main *')]
          .filter(one => one.children.length === 0 && one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0)
          .filter(one => !one.closest('.scroll, pre, select, svg, .uplot, .hidden'))
          .map(one => one.outerHTML.slice(0, 120))"""
    )
    assert clipped == []
    PICTURES.mkdir(parents=True, exist_ok=True)
    seen.screenshot(path=PICTURES / f"phone-{page.partition('.')[0]}-{scheme}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "verdict.html"])
def test_text_stands_out(built, visit, page: str, scheme: str) -> None:
    """Contrast of 4.5 or more between every text and what is behind it (WCAG 2, AA)."""
    seen = visit((built[0].parent / page).as_uri(), scheme=scheme).page
    faint = seen.evaluate(
        """() => {
          const parts = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
            .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (one) => {
            for (; one; one = one.parentElement) {
              const back = parts(getComputedStyle(one).backgroundColor);
              if (back.length < 4 || back[3] === 1) return back;
            }
            return [255, 255, 255];
          };
          return [...document.querySelectorAll('body *')]
            .filter(one => [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
            .filter(one => one.getClientRects().length && !one.closest('option, optgroup'))
            .map(one => {
              const pair = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort((a, b) => b - a);
              return [(pair[0] + 0.05) / (pair[1] + 0.05), one.outerHTML.slice(0, 100)];
            })
            .filter(([ratio]) => ratio < 4.5);
        }"""
    )
    assert faint == []


def test_by_keyboard(built, visit) -> None:
    """Everything that can be worked is reached by Tab with a visible focus; the chart is walked by arrows."""
    page, commits = built
    seen = visit(page.as_uri()).page
    seen.keyboard.press("Tab")
    assert seen.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(400):
        seen.keyboard.press("Tab")
        here = seen.evaluate(
            """() => { const one = document.activeElement, style = getComputedStyle(one);
              return [one.id || one.tagName, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1]; }"""
        )
        if here[0] == "BODY":
            break
        reached.append(here[0])
        assert here[1], f"{here[0]} shows no focus"
    assert {"explorer", "choice", "plot", "whole", "filter"} <= set(reached)
    working = seen.locator("a[href], button, input, select, summary, [tabindex='0']")
    visible = [one for one in working.all() if one.is_visible()]
    assert len(reached) >= len(visible) - 1, "the link to skip to the content came first"

    seen.focus("#plot")
    seen.keyboard.press("Home")
    assert commits[0][:10] in seen.inner_text("#readout")
    seen.keyboard.press("ArrowRight")
    assert commits[1][:10] in seen.inner_text("#readout")
    seen.keyboard.press("End")
    assert commits[49][:10] in seen.inner_text("#readout")
    for _ in range(49 - PLANTED):
        seen.keyboard.press("ArrowLeft")
    told = seen.inner_text("#readout")
    assert commits[PLANTED][:10] in told
    assert "worse from here on, -5." in told
    assert "Planted <b>slowdown</b>" in told


def test_what_turns_text_around_turns_nothing_of_the_page(built, visit) -> None:
    """The date, after the subject of the latest commit, stands right of it, and so do its digits."""
    seen = visit(built[0].as_uri()).page
    left = """([selector, text]) => {
      const root = document.querySelector(selector), walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
      for (let node; (node = walk.nextNode());) {
        const at = node.data.indexOf(text);
        if (at < 0) continue;
        const range = document.createRange();
        return [at, at + text.length - 1].map((n) => {
          range.setStart(node, n);
          range.setEnd(node, n + 1);
          return range.getBoundingClientRect().left;
        });
      }
    }"""
    for selector in (".latest", "#readout"):
        year = seen.evaluate(left, [selector, "2023"])
        assert year[0] < year[1]
    subject, day = (seen.evaluate(left, [".latest", text]) for text in ("around", "2023"))
    assert max(subject) < min(day)


def test_landmarks_and_names(built, visit) -> None:
    seen = visit(built[0].as_uri()).page
    for landmark in ("header", "nav", "main", "footer"):
        assert seen.locator(landmark).count() == 1
    assert seen.evaluate("document.documentElement.lang") == "en"
    nameless = seen.evaluate(
        """() => [...document.querySelectorAll('a, button, input, select, [role=img], [role=group], [role=region]')]
          .filter(one => !(one.textContent.trim() || one.getAttribute('aria-label') || one.labels?.length))
          .map(one => one.outerHTML.slice(0, 100))"""
    )
    assert nameless == []
    ids = seen.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))


def test_the_explorer_is_explained_where_it_cannot_work(built, visit) -> None:
    seen = visit(built[0].as_uri())
    assert not seen.page.is_visible("#served")
    seen.page.click("#explorer")
    assert "http.server" in seen.page.inner_text("#served")
    assert seen.page.url == built[0].as_uri()


def test_without_its_script_the_page_is_whole(built, browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(built[0].as_uri())
    words = page.inner_text("body")
    assert f"Worse on {MACHINES[0]} since {built[1][PLANTED][:10]}" in words
    assert page.locator("svg.spark").count() == 10
    assert not page.is_visible("#panel")
    context.close()


def test_with_reduced_motion_nothing_moves(built, browser) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(built[0].as_uri())
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert page.evaluate("document.getAnimations().length") == 0
    context.close()
