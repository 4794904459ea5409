"use strict";
// Draws the charts of the page from the JSON in it, and sorts its tables. Text is only ever set as
// text, so that nothing which a run folder says can become markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 640, HEIGHT = 340, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 46;
  const root = document.documentElement;

  const node = (name, attributes = {}, text = null, space = SVG) => {
    const made = space ? document.createElementNS(space, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  };
  const html = (name, attributes, text) => node(name, attributes, text, "");
  const colour = (place) => (place < 0 ? "var(--muted)" : `var(--c${place % 6})`);
  const dashes = (series) =>
    ["level", "step", "guide"].includes(series.style) ? "5 4" : series.colour >= 6 ? "9 3" : "none";

  const trimmed = (value, digits) => String(Number(value.toPrecision(digits)));
  const bytes = (value) => {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (value < 999.95) return `${trimmed(value, 4)} ${unit}`;
      value /= 1000;
    }
    return `${trimmed(value, 4)} TB`;
  };
  const written = (value, unit) => {
    if (unit === "share") return `${trimmed(100 * value, 4)} %`;
    if (unit === "points") return `${trimmed(100 * value, 4)}`;
    if (unit === "bytes") return bytes(value);
    if (unit === "seconds") return `${trimmed(value, 3)} s`;
    return trimmed(value, 5);
  };

  const ticks = (low, high, most) => {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) found.push(n * step);
    return found;
  };

  const frame = (chart) => {
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    svg.setAttribute("aria-label", chart.title);
    return svg;
  };
  const mark = (element, tip) => {
    element.classList.add("mark");
    element.dataset.tip = tip;
    return element;
  };

  const horizontal = (svg, low, high, unit) => {
    const place = (y) => HEIGHT - BOTTOM - ((y - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
    for (const at of ticks(low, high, 6)) {
      svg.append(node("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: place(at), y2: place(at) }));
      svg.append(node("text", { class: "tick", x: LEFT - 7, y: place(at) + 4, "text-anchor": "end" }, written(at, unit)));
    }
    return place;
  };
  const below = (svg, text) => {
    svg.append(node("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, text));
  };

  const lines = (chart, hidden) => {
    const svg = frame(chart);
    const shown = chart.series.filter((_, place) => !hidden.has(place));
    const xs = chart.series.filter((s) => s.style !== "level").flatMap((s) => s.points.map((p) => p[0]));
    const ys = shown.flatMap((s) => [...s.points.map((p) => p[1]), ...s.band.flatMap((b) => [b[1], b[2]])]);
    let first = Math.min(...xs), last = Math.max(...xs);
    if (chart.x_unit === "bytes" || chart.x_unit === "seconds") first = 0;
    if (chart.x_unit === "share") [first, last] = [0, 1];
    if (first === last) [first, last] = [first - 0.5, last + 0.5];
    let low = ys.length ? Math.min(...ys) : 0, high = ys.length ? Math.max(...ys) : 1;
    const room = (high - low || 0.1) * 0.08;
    low = Math.max(0, low - room);
    if (low < high * 0.35) low = 0;
    high = chart.y_unit === "share" ? Math.min(1, high + room) : high + room;
    const y = horizontal(svg, low, high, chart.y_unit);
    const x = (value) => LEFT + 8 + ((value - first) / (last - first)) * (WIDTH - RIGHT - LEFT - 22);
    for (const at of ticks(first, last, 7)) {
      if (chart.x_unit === "round" && !Number.isInteger(at)) continue;
      svg.append(node("text", { class: "tick", x: x(at), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, written(at, chart.x_unit)));
    }
    below(svg, chart.x);
    let levels = 0;
    const names = [];
    for (const series of shown) {
      const paint = colour(series.colour);
      if (series.style === "level") {
        const at = y(series.points[0][1]);
        const right = WIDTH - RIGHT - 4 - 112 * levels;
        levels += 1;
        const name = series.name.length > 18 ? `${series.name.slice(0, 17)}…` : series.name;
        names.push(node("text", { class: "tick over", x: right, y: at - 3, "text-anchor": "end" }, name));
        const line = node("path", { d: `M${LEFT} ${at}H${WIDTH - RIGHT}`, stroke: paint, fill: "none", "stroke-width": 1.5, "stroke-dasharray": "5 4" });
        svg.append(mark(line, `${series.name}\n${written(series.points[0][1], chart.y_unit)}`));
        continue;
      }
      if (series.band.length > 1) {
        const up = series.band.map((b) => `${x(b[0])} ${y(b[2])}`);
        const down = series.band.map((b) => `${x(b[0])} ${y(b[1])}`).reverse();
        svg.append(node("path", { class: "band", d: `M${[...up, ...down].join("L")}Z`, fill: paint, opacity: 0.14 }));
      }
      if (series.style !== "points") {
        const steps = series.points.map((p, i) =>
          i && series.style === "step" ? `H${x(p[0])}V${y(p[1])}` : `${i ? "L" : "M"}${x(p[0])} ${y(p[1])}`);
        svg.append(node("path", { class: "curve", d: steps.join(""), stroke: paint, fill: "none", "stroke-width": 2, "stroke-dasharray": dashes(series) }));
      }
      if (series.style === "step" || series.style === "guide") continue;
      const size = series.style === "points" ? 6 : series.points.length > 60 ? 2 : 3.5;
      series.points.forEach((p, i) => {
        const at = { cx: x(p[0]), cy: y(p[1]) };
        const told = series.labels[i] || `${chart.x || "at"} ${written(p[0], chart.x_unit)}`;
        const around = series.band[i] ? `\n${written(series.band[i][1], chart.y_unit)} to ${written(series.band[i][2], chart.y_unit)}` : "";
        const further = series.labels[i] ? `, ${written(p[0], chart.x_unit)}` : "";
        svg.append(node("circle", { ...at, r: size, fill: paint }));
        if (series.style === "points" && shown.length < 16) {
          const side = at.cx > WIDTH * 0.6 ? "end" : "start";
          svg.append(node("text", { x: at.cx + (side === "end" ? -10 : 10), y: at.cy + 4, "text-anchor": side }, series.labels[i].slice(0, 40)));
        }
        svg.append(mark(node("circle", { ...at, r: Math.max(9, size), fill: "transparent" }), `${series.name}\n${told}${further}: ${written(p[1], chart.y_unit)}${around}`));
      });
    }
    svg.append(...names);
    return svg;
  };

  // a name on two lines at most, each of so many characters
  const folded = (name, most) => {
    const lines = [""];
    for (const word of name.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (longer.length <= most || !lines.at(-1) || lines.length === 2) lines[lines.length - 1] = longer;
      else lines.push(word);
    }
    return lines.map((line) => (line.length > most ? `${line.slice(0, most - 1)}…` : line));
  };

  const bars = (chart, hidden) => {
    const svg = frame(chart);
    const shown = chart.groups.filter((_, place) => !hidden.has(place));
    const heights = chart.categories.map((_, c) => {
      const those = shown.map((group) => group.values[c] || 0);
      return chart.stacked ? those.reduce((a, b) => a + b, 0) : Math.max(0, ...those);
    });
    const top = Math.max(...heights);
    const y = horizontal(svg, chart.low, top + 0.05 * (top - chart.low) || 1, chart.unit);
    const base = (value) => y(Math.max(value, chart.low));
    const room = (WIDTH - LEFT - RIGHT) / chart.categories.length;
    const width = (room * 0.8) / (chart.stacked ? 1 : Math.max(1, shown.length));
    const every = Math.ceil(chart.categories.length / 24);
    const long = chart.categories.some((name) => name.length * 7.6 > room * every);
    chart.categories.forEach((name, c) => {
      if (c % every === 0) {
        const most = long ? Math.max(4, Math.floor((room * every) / 7)) : name.length;
        folded(name, most).forEach((line, l) => {
          const at = { x: LEFT + room * (c + 0.5), y: HEIGHT - BOTTOM + 16 + 13 * l };
          svg.append(mark(node("text", { class: "tick", ...at, "text-anchor": "middle" }, line), name));
        });
      }
      let floor = 0;
      shown.forEach((group, g) => {
        const value = group.values[c];
        if (value === null) return;
        const at = LEFT + room * (c + 0.1) + (chart.stacked ? 0 : g * width);
        const from = base(floor), to = base(floor + value);
        const bar = node("rect", { x: at, y: to, width: width * 0.94, height: Math.max(0, from - to), fill: colour(group.colour) });
        svg.append(mark(bar, `${chart.x ? `${chart.x} ` : ""}${name}\n${group.name}: ${written(value, chart.unit)}`));
        if (chart.stacked) floor += value;
      });
    });
    below(svg, chart.x);
    return svg;
  };

  const heat = (chart) => {
    const rows = chart.values.length, columns = chart.columns.length;
    const tall = Math.min(Math.max(120, rows * 24), 900);
    const same = new Set(chart.rows).size === 1, left = same ? 40 : 130;
    const svg = node("svg", { viewBox: `0 0 ${WIDTH} ${tall + 60}`, role: "img", "aria-label": chart.title });
    const wide = (WIDTH - left - RIGHT) / columns, high = tall / rows;
    const most = Math.max(1, ...chart.values.flat());
    const every = Math.ceil(rows / 40), skip = Math.ceil(columns / 25);
    chart.values.forEach((counts, r) => {
      if (r % every === 0) {
        const name = same ? String(r * chart.every) : `${chart.rows[r]} · ${r * chart.every}`;
        const short = name.length > 18 ? `…${name.slice(-17)}` : name;
        svg.append(mark(node("text", { class: "tick", x: left - 7, y: high * (r + 0.5) + 4, "text-anchor": "end" }, short), name));
      }
      counts.forEach((count, c) => {
        const box = node("rect", { x: left + wide * c, y: high * r, width: wide - 0.5, height: high - 0.5, fill: "var(--c0)", "fill-opacity": count ? 0.1 + 0.9 * Math.sqrt(count / most) : 0.03 });
        svg.append(mark(box, `${chart.y} ${r * chart.every} (${chart.rows[r]}), ${chart.x} ${chart.columns[c]}: ${count}`));
        if (count && high >= 14 && wide >= 24) {
          const number = node("text", { x: left + wide * (c + 0.5), y: high * (r + 0.5) + 4, "text-anchor": "middle", "pointer-events": "none" }, count);
          if (count > 0.3 * most) number.style.fill = "var(--paper)";
          svg.append(number);
        }
      });
    });
    chart.columns.forEach((name, c) => {
      if (c % skip) return;
      const fits = Math.max(3, Math.floor((wide * skip) / 7));
      const short = name.length > fits ? `${name.slice(0, fits - 1)}…` : name;
      svg.append(mark(node("text", { class: "tick", x: left + wide * (c + 0.5), y: tall + 18, "text-anchor": "middle" }, short), name));
    });
    svg.append(node("text", { x: (left + WIDTH) / 2, y: tall + 44, "text-anchor": "middle" }, chart.x));
    return svg;
  };

  const values = (chart) => {
    const table = html("table"), body = html("tbody");
    const line = (cells, name) => {
      const row = html("tr");
      cells.forEach((cell) => row.append(html(name, {}, cell)));
      return row;
    };
    if (chart.kind === "lines") {
      chart.series.forEach((s) => s.points.forEach((p, i) =>
        body.append(line([s.name, s.style === "level" ? "" : s.labels[i] || written(p[0], chart.x_unit), written(p[1], chart.y_unit)], "td"))));
    } else if (chart.kind === "bars") {
      chart.categories.forEach((name, c) => chart.groups.forEach((g) =>
        body.append(line([g.name, name, g.values[c] === null ? "—" : written(g.values[c], chart.unit)], "td"))));
    } else {
      chart.values.forEach((counts, r) => body.append(line([`${chart.rows[r]} · ${r * chart.every}`, ...counts], "td")));
    }
    table.append(body);
    const details = html("details"), scroll = html("div", { class: "scroll" });
    scroll.append(table);
    details.append(html("summary", {}, "Values"), scroll);
    return details;
  };

  const draw = (chart) => {
    const figure = document.getElementById(`chart-${chart.key}`);
    const hidden = new Set(), canvas = html("div"), legend = html("div", { class: "legend" });
    const make = { lines, bars, heat }[chart.kind];
    const redraw = () => canvas.replaceChildren(make(chart, hidden));
    const named = chart.series || chart.groups || [];
    named.forEach((one, place) => {
      if (named.length < 2) return;
      const button = html("button", { type: "button", "aria-pressed": "true" });
      const swatch = html("span", { class: "swatch" });
      swatch.style.background = colour(one.colour);
      button.append(swatch, html("span", {}, one.name));
      button.addEventListener("click", () => {
        hidden.has(place) ? hidden.delete(place) : hidden.add(place);
        button.setAttribute("aria-pressed", String(!hidden.has(place)));
        redraw();
      });
      legend.append(button);
    });
    redraw();
    figure.querySelector("figcaption").after(legend, canvas, values(chart));
  };

  const sortable = (table) => {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = html("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const order = (a, b) => {
          const [p, q] = [key(a), key(b)], [m, n] = [Number(p), Number(q)];
          if (p === "" || q === "") return p === q ? 0 : p === "" ? 1 : -1;
          const by = Number.isNaN(m) || Number.isNaN(n) ? p.localeCompare(q) : m - n;
          return up ? by : -by;
        };
        body.append(...[...body.rows].sort(order));
      });
    });
  };

  const tip = html("div", { id: "tip", role: "status" });
  tip.hidden = true;
  document.body.append(tip);
  const point = (event) => {
    const over = event.target.closest?.(".mark");
    tip.hidden = !over;
    if (!over) return;
    tip.textContent = over.dataset.tip;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 10)}px`;
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);

  const theme = document.querySelector("button.theme");
  const dress = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    theme.textContent = dark ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Change to ${dark ? "light" : "dark"} colours`);
  };
  dress(matchMedia("(prefers-color-scheme: dark)").matches);
  theme.addEventListener("click", () => dress(root.dataset.theme !== "dark"));
  let before = "";
  addEventListener("beforeprint", () => { before = root.dataset.theme; dress(false); });
  addEventListener("afterprint", () => dress(before === "dark"));

  JSON.parse(document.getElementById("data").textContent).forEach(draw);
  document.querySelectorAll("table.sortable").forEach(sortable);
})();
