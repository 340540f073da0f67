/* The overview's large chart, its table and the filter. Data come as scripts that call `dashboard.commits` and
   `dashboard.series`, so that the page works from a folder too. What they say enters the page as text, never as markup. */
"use strict";

const dashboard = (() => {
  const byId = (id) => document.getElementById(id);
  const loaded = new Map();
  let commits = null; // link, and by measured commit: places, hashes, days, subjects
  let index = new Map(); // of a place in those
  let shown = null; // the series in the chart
  let plot = null;
  let wanted = null;
  const MOST = 400; // points that are drawn one by one; of more a line is a block, so medians of neighbours are drawn
  const BINS = 200;

  function load(path) {
    if (!loaded.has(path)) {
      loaded.set(path, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = path;
        script.onload = resolve;
        script.onerror = () => reject(new Error(`${path} is missing: build the page again`));
        document.head.append(script);
      }));
    }
    return loaded.get(path);
  }

  const known = new Map();

  async function show(key) {
    wanted = key;
    byId("choice").value = key;
    try {
      await Promise.all([load("data/commits.js"), load(`data/series/${key}.js`)]);
    } catch (error) {
      byId("readout").textContent = error.message;
      return;
    }
    if (wanted === key) draw(known.get(key));
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function digits(value) {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2);
    const places = size === 0 ? 0 : Math.max(0, 3 - Math.floor(Math.log10(size)));
    return value.toLocaleString("en", {minimumFractionDigits: 0, maximumFractionDigits: Math.min(places, 6)});
  }

  const reading = (value) => digits(value / shown.divisor) + shown.unit;
  const percent = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(1)} %`;

  function commitAt(place) {
    const number = index.get(place);
    return {hash: commits.hashes[number], day: commits.days[number], subject: commits.subjects[number]};
  }

  function dayNear(place) {
    let low = 0, high = commits.places.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (commits.places[middle] < place) low = middle + 1; else high = middle;
    }
    return commits.days[low];
  }

  function ticks(chart, splits) {
    const wide = chart.bbox.width / devicePixelRatio;
    const every = Math.max(1, Math.ceil(splits.length / Math.max(1, Math.floor(wide / 100))));
    const days = splits.map((place, number) => (Number.isInteger(place) && number % every === 0 ? dayNear(place) : ""));
    return days.map((day, number) => (days.indexOf(day) === number ? day : ""));
  }

  function verticals(chart) {
    const context = chart.ctx, {left, top, width, height} = chart.bbox;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    const line = (place, name, dash) => {
      const x = Math.round(chart.valToPos(place, "x", true));
      context.beginPath();
      context.strokeStyle = colour(name);
      context.lineWidth = 1.5 * devicePixelRatio;
      context.setLineDash(dash.map((size) => size * devicePixelRatio));
      context.moveTo(x, top);
      context.lineTo(x, top + height);
      context.stroke();
    };
    for (const one of shown.environments) line(one.place, "environment", [5, 4]);
    for (const one of shown.changes) if (!one.environment) line(one.place, one.worse ? "bad" : "good", []);
    context.restore();
  }

  function median(values) {
    const sorted = values.filter((one) => one !== null).sort((one, other) => one - other);
    const half = sorted.length >> 1;
    if (!sorted.length) return null;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }

  function between(low, high) { // what is drawn of that stretch of the branch, and of how many commits each is the median
    const begin = Math.max(0, shown.places.findIndex((place) => place >= low) - 1);
    const end = shown.places.findLastIndex((place) => place <= high) + 2;
    const part = (values) => values.slice(begin, end), count = part(shown.places).length;
    const size = count > MOST ? Math.ceil(count / BINS) : 1;
    const binned = (values, middle) => {
      const bins = [];
      for (let first = 0; first < values.length; first += size) bins.push(middle(values.slice(first, first + size)));
      return bins;
    };
    const scaled = (values) => binned(part(values), median).map((value) => (value === null ? null : value / shown.divisor));
    const values = scaled(shown.values);
    const bound = (bounds) => scaled(bounds).map((one, number) => (values[number] === null ? null : one ?? values[number]));
    const places = binned(part(shown.places), (some) => some[some.length >> 1]);
    return {data: [places, bound(shown.low), bound(shown.high), values], size};
  }

  function zoom(low, high) {
    const {data, size} = between(low, high);
    const margin = low === high ? 1 : 0; // one commit alone
    plot.batch(() => {
      plot.setData(data, false);
      plot.setScale("x", {min: low - margin, max: high + margin});
    });
    document.querySelector(".value-key").textContent = size === 1 ? "value" : `medians of ${size} commits each, until zoomed`;
  }

  function zoomToSelected(chart) {
    const {left, width} = chart.select;
    if (width === 0) return;
    chart.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
    zoom(chart.posToVal(left, "x"), chart.posToVal(left + width, "x"));
  }

  function pointed(chart) { // the number of the point nearest to the cursor, though it may be drawn with others as one
    if (chart.cursor.left === null || chart.cursor.left === undefined || chart.cursor.left < 0) return null;
    const place = chart.posToVal(chart.cursor.left, "x");
    const after = shown.places.findIndex((one) => one >= place);
    if (after < 0) return shown.places.length - 1;
    return after > 0 && place - shown.places[after - 1] < shown.places[after] - place ? after - 1 : after;
  }

  function widthOf(chart, labels, axis) {
    const {font, gap, ticks} = chart.axes[axis];
    chart.ctx.font = font[0];
    const widths = (labels ?? []).map((label) => chart.ctx.measureText(label).width / devicePixelRatio);
    return Math.ceil(ticks.size + gap + Math.max(0, ...widths));
  }

  function draw(series) {
    shown = series;
    const {data} = between(series.places[0], series.places[series.places.length - 1]);
    const target = byId("plot");
    if (plot) plot.destroy();
    const axis = {stroke: colour("soft"), grid: {stroke: colour("grid"), width: 1}, ticks: {stroke: colour("grid"), width: 1}};
    const plain = {points: {show: false}, stroke: "transparent", width: 0};
    plot = new uPlot({
      width: target.clientWidth, height: 320, legend: {show: false}, padding: [12, 12, 0, 0],
      scales: {x: {time: false, range: (chart, low, high) => (low === high ? [low - 1, high + 1] : [low, high])}},
      axes: [
        {...axis, values: ticks, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]},
        {...axis, size: widthOf, values: (chart, splits) => splits.map((value) => digits(value) + (series.unit.length <= 3 ? series.unit : ""))},
      ],
      series: [
        {}, {...plain}, {...plain},
        {stroke: colour("curve"), width: 2, points: {show: (chart, line, first, last) => last - first < 80, size: 6, fill: colour("back"), width: 1.5}},
      ],
      bands: [{series: [2, 1], fill: colour("band")}],
      cursor: {
        points: {size: 10}, drag: {x: true, y: false, setScale: false}, focus: {prox: -1}, bind: {dblclick: () => whole},
      },
      hooks: {drawClear: [verticals], setCursor: [(chart) => tell(pointed(chart))], setSelect: [zoomToSelected]},
    }, data, target);
    whole();
    document.querySelector(".band-key").hidden = series.low.every((one) => one === null);
    target.setAttribute("aria-label", `${series.name} on ${series.machine}: ${series.values.length} commits, ` + changes(series));
    target.dataset.series = series.name;
    byId("subject").textContent = `${series.name} on ${series.machine}: ${series.unit ? `${series.unit.trim()}, ` : ""}${series.lessIsBetter ? "less" : "more"} is better`;
    performance.mark("chart-drawn");
    tell(lastKnown());
    if (byId("table").open) tabulate();
  }

  function changes(series) {
    const told = series.changes.map((one) => `${percent(one.ratio)} at ${commitAt(one.place).hash.slice(0, 10)}`
      + (one.environment ? ` with ${one.environment}` : ""));
    return told.length ? `changed ${told.join("; ")}` : "no changes";
  }

  function lastKnown() {
    let number = shown.values.length - 1;
    while (number > 0 && shown.values[number] === null) number -= 1;
    return number;
  }

  function isolated(text) { // of whatever direction it is, what stands around it keeps its own
    const one = document.createElement("bdi");
    one.textContent = text;
    return one;
  }

  let told = null;

  function notes(place) {
    const found = shown.environments.filter((one) => one.place === place).map((one) => one.text);
    for (const one of shown.changes) {
      if (one.place === place && !one.environment) found.push(`${one.worse ? "worse" : "better"} from here on, ${percent(one.ratio)}`);
      if (one.place === place && one.environment) found.push(`${percent(one.ratio)} from here on, with the environment`);
    }
    return found;
  }

  function measured(number) {
    const value = shown.values[number], low = shown.low[number], high = shown.high[number];
    if (value === null) return "no value";
    return reading(value) + (low === null || high === null ? "" : ` [${digits(low / shown.divisor)}, ${digits(high / shown.divisor)}]`);
  }

  function linked(commit) {
    const text = commit.hash.slice(0, 10);
    if (!commits.link) {
      const code = document.createElement("code");
      code.textContent = text;
      return code;
    }
    const link = document.createElement("a");
    link.href = commits.link + commit.hash;
    link.rel = "noopener noreferrer";
    link.className = "commit";
    link.textContent = text;
    return link;
  }

  function tell(number) {
    if (number === null || number === undefined || number === told?.number && told.series === shown) return;
    told = {number, series: shown};
    const place = shown.places[number], commit = commitAt(place);
    const value = document.createElement("strong");
    value.textContent = measured(number);
    byId("readout").replaceChildren(value, " at ", linked(commit), ` ${commit.day} `, isolated(commit.subject),
      ...notes(place).flatMap((note) => [" · ", isolated(note)]));
  }

  function pointAt(number) {
    const value = shown.values[number];
    plot.setCursor({
      left: plot.valToPos(shown.places[number], "x"), top: value === null ? 0 : plot.valToPos(value / shown.divisor, "y"),
    }, false);
    tell(number);
  }

  function key(event) {
    if (!plot) return;
    const last = shown.values.length - 1, now = told ? told.number : last;
    const moved = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last, PageUp: now - 10, PageDown: now + 10}[event.key];
    if (moved !== undefined) {
      event.preventDefault();
      const number = Math.min(last, Math.max(0, moved));
      const place = shown.places[number];
      if (place < plot.scales.x.min || place > plot.scales.x.max) whole();
      pointAt(number);
    } else if (event.key === "+" || event.key === "-") {
      const {min, max} = plot.scales.x, reach = Math.max(1, (max - min) * (event.key === "+" ? 0.25 : 1)), place = shown.places[now];
      event.preventDefault();
      zoom(Math.max(shown.places[0], place - reach), Math.min(shown.places[last], place + reach));
      pointAt(now);
    } else if (event.key === "Enter" && commits.link && event.target === byId("plot")) {
      window.open(commits.link + commitAt(shown.places[now]).hash, "_blank", "noopener");
    }
  }

  function whole() {
    zoom(shown.places[0], shown.places[shown.places.length - 1]);
  }

  function tabulate() {
    const table = document.createElement("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const text of ["commit", "date", "value", "99 % interval", "what happened", "subject"]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = text;
      head.append(cell);
    }
    for (let number = shown.values.length - 1; number >= 0; number -= 1) {
      const place = shown.places[number], commit = commitAt(place), row = body.insertRow();
      const [value, interval] = measured(number).split(" [");
      row.insertCell().append(linked(commit));
      for (const text of [commit.day, value, interval ? `[${interval}` : "", notes(place).join("; "), commit.subject]) {
        row.insertCell().textContent = text;
      }
    }
    byId("table").querySelector(".scroll").replaceChildren(table);
  }

  function filter() {
    const text = byId("filter").value.trim().toLowerCase();
    let count = 0;
    for (const benchmark of document.querySelectorAll(".benchmark")) {
      let any = false;
      for (const row of benchmark.querySelectorAll("tbody tr")) {
        row.hidden = !row.dataset.name.includes(text);
        any ||= !row.hidden;
        count += !row.hidden;
      }
      benchmark.hidden = !any;
      if (text && any) benchmark.open = true;
    }
    byId("shown").textContent = text ? `${count} series` : "";
  }

  function needsServer(event) { // asv's pages fetch their data, which browsers allow of no folder
    event.preventDefault();
    byId("served").hidden = false;
    byId("served").scrollIntoView();
  }

  function begin() {
    if (location.protocol === "file:") {
      for (const link of document.querySelectorAll("a[href^='asv/']")) link.addEventListener("click", needsServer);
    }
    if (!byId("panel")) return;
    byId("panel").hidden = byId("tools").hidden = false;
    byId("choice").addEventListener("change", (event) => show(event.target.value));
    byId("plot").addEventListener("keydown", key);
    byId("whole").addEventListener("click", whole);
    byId("table").addEventListener("toggle", (event) => event.target.open && shown && tabulate());
    byId("filter").addEventListener("input", filter);
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a.show");
      if (link) show(link.dataset.series);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown && draw(shown));
    new ResizeObserver(() => plot && plot.setSize({width: byId("plot").clientWidth, height: 320})).observe(byId("plot"));
    show(byId("choice").value);
  }

  document.addEventListener("DOMContentLoaded", begin);

  return {
    commits(content) {
      commits = content;
      index = new Map(content.places.map((place, number) => [place, number]));
    },
    series(key, content) {
      known.set(key, content);
    },
  };
})();
