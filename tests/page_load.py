"""How long pages take to open in a browser: `python -m tests.page_load FILE… [--times 9]`.

Each time in a fresh profile, headless, from the file; medians and the slowest. Not a test: a machine's load decides.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.test_site_browser import CHROMIUM, FLAGS

READ = """() => new Promise(resolve => requestAnimationFrame(() => setTimeout(() => resolve({
  "first paint": performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? NaN,
  "page loaded": performance.timing.loadEventEnd - performance.timing.navigationStart,
  "chart drawn": performance.getEntriesByName("chart-drawn")[0]?.startTime ?? NaN,
}))))"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--times", type=int, default=9, help="(default 9)")
    options = parser.parse_args()
    with sync_playwright() as driver:
        for path in options.pages:
            taken = []
            for _ in range(options.times):
                browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
                page = browser.new_page()
                page.goto(path.resolve().as_uri())
                page.wait_for_load_state("networkidle")
                taken.append(page.evaluate(READ))
                browser.close()
            print(path)
            for name in taken[0]:
                values = [one[name] for one in taken]
                print(f"  {name}: {statistics.median(values):.0f} ms, at most {max(values):.0f}")


if __name__ == "__main__":
    main()
