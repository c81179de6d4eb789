// Draws the figures that the page carries, keeps what is live alive, and re-scores a moved SLA.
"use strict";
(() => {
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const CONFIG = { responsive: true, displaylogo: false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };
  const DEADLINE_MS = 30000;

  function themed(figure) {
    const layout = structuredClone(figure.layout), ink = css("--ink"), grid = css("--grid"), soft = css("--soft");
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font = { family: css("--sans"), size: 13, color: ink };
    layout.hoverlabel = { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: ink, size: 12.5 }, align: "left" };
    for (const key of Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k)))
      layout[key] = { gridcolor: grid, linecolor: css("--line"), tickcolor: grid, zerolinecolor: grid, ...layout[key] };
    for (const note of layout.annotations || []) {
      if (note.meta === "note") { note.font = { ...note.font, color: css("--warn") }; note.bgcolor = css("--warn-soft"); note.borderpad = 4; }
      delete note.meta;
      if (note.showarrow) note.arrowcolor = soft;
    }
    const data = figure.data.map((trace) => trace.meta === "star"
      ? { ...trace, marker: { ...trace.marker, color: css("--star"), line: { width: 1.5, color: css("--card") } } } : trace);
    return { data, layout };
  }

  async function draw(box, figure) {
    box.figure = figure;
    const { data, layout } = themed(figure);
    const small = box.clientWidth < 620;
    if (small) {
      layout.margin = { ...layout.margin, l: 52, r: 8 };
      layout.font.size = 11;
      if (layout.legend) layout.legend.font = { size: 10 };
      for (const key of Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k)))
        if (layout[key].title) layout[key].title = { text: layout[key].title.text.split(" (")[0], font: { size: 11 } };
      for (const note of layout.annotations || []) if (note.font?.size === 11) note.font = { ...note.font, size: 9 };
    }
    if (layout.height) box.style.height = `${layout.height}px`;
    box.querySelector(".waiting")?.remove();
    await Plotly.react(box, data, layout, CONFIG);
    if (box.clicks) return;
    box.clicks = true;
    box.on("plotly_click", (event) => {
      const to = event.points[0]?.customdata;
      if (typeof to === "string" && (to.startsWith("/studies/") || to.startsWith("#"))) location.assign(to);
    });
  }

  function redrawAll() { document.querySelectorAll(".chart").forEach((box) => box.figure && draw(box, box.figure)); }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
  matchMedia("print").addEventListener("change", redrawAll);

  function drawCarried(root) {
    for (const box of root.querySelectorAll(".chart[data-figure]")) {
      const carried = document.getElementById(box.dataset.figure);
      if (carried && !box.figure) draw(box, JSON.parse(carried.textContent));
    }
  }

  async function ask(url, body) {
    const response = await fetch(url, { signal: AbortSignal.timeout(DEADLINE_MS), headers: { "content-type": "application/json" },
      ...(body ? { method: "POST", body: JSON.stringify(body) } : {}) });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error || response.statusText);
    return answer;
  }

  // The picture: the report carries every choice, a served page asks for each.
  const box = document.querySelector(".chart.picture[data-study]");
  const measure = document.getElementById("measure"), colour = document.getElementById("colour"), focus = document.getElementById("focus");
  const said = document.getElementById("picture-said");
  let moved = null, latest = 0;
  async function picture() {
    const mine = ++latest;
    const body = { measure: measure.value, colour: colour.value, focus: focus.value || null };
    if (moved) { body.slas = moved.all; body.focus = moved.name; }
    try {
      const answer = await ask(`/api/v1/studies/${encodeURIComponent(box.dataset.study)}/picture`, body);
      if (mine !== latest) return;
      await draw(box, answer.figure);
      said.textContent = answer.pending_launches ? `${answer.pending_launches} launches are still being read` : "";
      if (answer.pending_launches) setTimeout(picture, 1500);
    } catch (problem) { said.textContent = `The picture could not be drawn: ${problem.message}`; }
  }

  // Sliders.
  const panel = document.getElementById("sliders");
  function at(slider) {
    const low = Number(slider.dataset.low), high = Number(slider.dataset.high), t = Number(slider.value) / 1000;
    return slider.dataset.log ? low * (high / low) ** t : low + (high - low) * t;
  }
  function shown(slider, value) {
    const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
    return slider.dataset.unit === "ms" && value >= 10000 ? `${(value / 1000).toFixed(1)} s` : `${value.toFixed(digits)} ${slider.dataset.unit}`;
  }
  function slaOf(fieldset) {
    const sla = JSON.parse(fieldset.dataset.sla);
    for (const slider of fieldset.querySelectorAll("input[type=range]")) {
      const path = JSON.parse(slider.dataset.path), value = at(slider), unit = slider.dataset.unit;
      let place = sla;
      for (const key of path.slice(0, -1)) place = place[key];
      place[path.at(-1)] = unit === "%" ? value / 100 : unit === "ms" ? `${(value / 1000).toFixed(6)}s` : value;
      slider.parentElement.querySelector("output").textContent = shown(slider, value);
    }
    return sla;
  }
  let timer = 0;
  async function rescore(fieldset) {
    const name = fieldset.dataset.name, sla = slaOf(fieldset), out = document.getElementById("moved");
    const all = [...panel.querySelectorAll("fieldset")].map(slaOf);
    const began = performance.now();
    try {
      const answer = await ask(`/api/v1/studies/${encodeURIComponent(panel.dataset.study)}/score`, { sla });
      const took = performance.now() - began;
      out.replaceChildren(...moveResult(answer.slas[0], took));
      moved = { name, all };
      picture();
    } catch (problem) { out.textContent = problem.message; }
  }
  const number = (x) => x == null ? "-" : x >= 1e6 ? `${(x / 1e6).toPrecision(4)} M` : Number(x.toPrecision(4)).toString();
  function element(tag, text, cls) { const e = document.createElement(tag); e.textContent = text; if (cls) e.className = cls; return e; }
  function moveResult(a, took) {
    const head = element("h3", a.trial == null ? "Withheld" : `Trial ${a.trial} would be recommended`);
    const parts = [head, element("p", a.contract, "soft")];
    if (a.trial != null) {
      const words = Object.entries(a.configuration).map(([k, v]) => `${k}=${v}`).join(" ") || "engine defaults";
      parts.push(element("p", words, "config"));
      const list = document.createElement("dl");
      const rows = { "goodput": `${number(a.goodput_tok_per_s)} tok/s`, "good tok/s/MW": `${number(a.tok_per_s_per_mw)} (${a.power_basis})`,
        "capacity": `${number(a.capacity_rps)} req/s`, "attainment": `${(a.attainment * 100).toFixed(1)} %`,
        "engine defaults": a.baseline.trial == null ? a.baseline.reason : `${number(a.baseline.goodput_tok_per_s)} tok/s` };
      for (const [k, v] of Object.entries(rows)) list.append(element("dt", k), element("dd", v));
      parts.push(list);
    }
    if (a.reason) parts.push(element("p", a.reason, "soft"));
    parts.push(element("small", `scored from the archive in ${took.toFixed(0)} ms`));
    return parts;
  }
  if (panel) {
    panel.addEventListener("input", (event) => {
      const fieldset = event.target.closest("fieldset");
      slaOf(fieldset);
      clearTimeout(timer);
      timer = setTimeout(() => rescore(fieldset), 80);
    });
    document.getElementById("sliders-reset").addEventListener("click", () => {
      panel.querySelectorAll("input[type=range]").forEach((s) => { s.value = s.defaultValue; });
      panel.querySelectorAll("fieldset").forEach(slaOf);
      document.getElementById("moved").textContent = "The study's own SLAs.";
      moved = null; picture();
    });
  }

  // Parts that change on the server: fetched again while there is a reason to.
  const LIVE_MS = 3000;
  async function refresh(part) {
    try {
      const response = await fetch(part.dataset.part, { signal: AbortSignal.timeout(DEADLINE_MS) });
      if (!response.ok) throw new Error(response.statusText);
      const holder = document.createElement("template");
      holder.innerHTML = await response.text();
      const fresh = holder.content.querySelector("[data-part]");
      const wasPending = Number(part.dataset.pending || 0), launches = part.dataset.launches;
      part.replaceWith(fresh);
      if (box && fresh.dataset.launches !== launches) picture();
      follow(fresh, wasPending ? 1200 : LIVE_MS);
    } catch { setTimeout(() => refresh(part), 4 * LIVE_MS); }
  }
  function follow(part, after) { if (part.dataset.again) setTimeout(() => refresh(part), after); }

  document.addEventListener("DOMContentLoaded", () => {
    drawCarried(document);
    if (box) { [measure, colour, focus].forEach((c) => c.addEventListener("change", picture)); picture(); }
    document.querySelectorAll("[data-part]").forEach((part) => follow(part, 1200));
    const carried = document.getElementById("report-measure");
    if (carried) carried.addEventListener("change", () => {
      const target = document.getElementById("report-picture");
      draw(target, JSON.parse(document.getElementById(`picture-${carried.value}`).textContent));
    });
  });
})();
