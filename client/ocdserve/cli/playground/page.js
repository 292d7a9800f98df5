// SPDX-License-Identifier: Apache-2.0
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const DEBOUNCE_MS = 120;
const LABEL_PX = 11;
const LOWEST_LABELLED_PX = 18;

let config = null; // from the server
// { blob, name, shown, page, pages, pdf }: shown is false until the browser has drawn it; page, from 1, is null where
// the file has only one; pdf: whether it is a PDF.
let image = null;
let found = null; // the last answer
let running = null; // { control, subject, outdated } of the request in flight: its AbortController, file and page
let timer = 0;
let files = 0; // that have been taken
const moved = new Map(); // parameters that differ from their defaults

const setState = (state) => { document.body.dataset.state = state; };

function say(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

function buildSliders() {
  for (const parameter of config.parameters) {
    if (parameter.type === "bool") {
      const label = document.createElement("label");
      label.className = "check";
      label.title = parameter.meaning;
      const box = document.createElement("input");
      box.type = "checkbox";
      box.id = parameter.name;
      label.dataset.stage = parameter.stage;
      box.addEventListener("change", () => change(parameter, box.checked));
      label.append(box, ` ${parameter.name}`);
      $("labels").closest("label").before(label);
      continue;
    }
    const [low, high] = parameter.usual;
    const step = high - low < 10 ? 0.01 : 1;
    const row = document.createElement("label");
    row.className = "slider";
    row.dataset.stage = parameter.stage;
    row.title = parameter.meaning;
    const name = document.createElement("span");
    name.textContent = parameter.name;
    const value = document.createElement("output");
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: low, max: high, step, id: parameter.name });
    const note = document.createElement("small");
    note.textContent = parameter.meaning;
    row.append(name, value, input, note);
    $("sliders").append(row);
    input.addEventListener("input", () => change(parameter, Number(input.value)));
    row.show = () => {
      const now = moved.has(parameter.name) ? moved.get(parameter.name) : parameter.default;
      input.value = now;
      value.textContent = step < 1 ? Number(now).toFixed(2) : now;
      row.classList.toggle("moved", moved.has(parameter.name));
    };
    row.show();
  }
}

function change(parameter, value) {
  if (value === parameter.default) moved.delete(parameter.name);
  else moved.set(parameter.name, value);
  showParameters();
  schedule();
}

function showParameters() {
  document.querySelectorAll(".slider").forEach((row) => row.show());
  for (const parameter of config.parameters) {
    const now = moved.has(parameter.name) ? moved.get(parameter.name) : parameter.default;
    if (parameter.type === "bool") $(parameter.name).checked = now;
  }
  document.querySelectorAll("[data-stage=read]").forEach((row) => { row.hidden = !reads(); });
  showSnippet();
}

function schedule() {
  clearTimeout(timer);
  if (image) timer = setTimeout(detect, DEBOUNCE_MS);
}

// Parameters of the request: those of the sliders, and the page.
const given = () => [
  ...config.parameters.filter((one) => moved.has(one.name) && (one.stage !== "read" || reads()))
    .map((one) => [one.name, moved.get(one.name)]),
  ...(image && image.page ? [["page", image.page]] : []),
];

async function ask(path, options) {
  const answer = await fetch(path, { method: "POST", ...options });
  const result = await answer.json();
  if (!answer.ok) throw new Error(result.error);
  return result;
}

function fail(error) {
  found = null;
  show();
  say(error instanceof TypeError ? "The playground does not answer; is it still running?" : error.message);
  setState("failed");
}

async function detect() {
  if (!image) return;
  const subject = `${image.number}#${image.page}`;
  if (running && running.subject === subject) { // the networks would work on both, one after the other
    running.outdated = true;
    return;
  }
  if (running) running.control.abort();
  const request = running = { control: new AbortController(), subject, outdated: false };
  setState("busy");
  const begin = performance.now();
  try {
    const query = new URLSearchParams([...given(), ...(reads() ? [["words", true]] : [])]);
    const path = `${reads() ? "read" : "detect"}${query.size ? "?" : ""}${query}`;
    const result = await ask(path, { body: image.blob, signal: request.control.signal });
    found = { ...result, trip: performance.now() - begin };
    say("");
    show();
    setState("done");
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
  if (running !== request) return;
  running = null;
  if (request.outdated) detect();
}

const caption = () => `${image.name}${image.page ? `, page ${image.page}` : ""}`;

function show() {
  const overlay = $("overlay");
  overlay.replaceChildren();
  $("boxes").textContent = found ? found.detections.length : "–";
  $("detection").textContent = found ? found.ms.toFixed(0) : "–";
  $("trip").textContent = found ? found.trip.toFixed(0) : "–";
  $("kind").textContent = `ms ${(found ? found.rows : reads()) ? "reading" : "detection"}`;
  document.body.dataset.boxes = found ? found.detections.length : "";
  $("facts").textContent = image ? `${caption()}, ${(image.blob.size / 1024).toFixed(0)} kB` : "no picture yet";
  $("save-json").disabled = !found;
  $("save-picture").disabled = !found || !image.shown;
  showText();
  if (!found) return;
  const scores = found.detections.map((one) => one.score);
  const range = scores.length ? `, scores ${Math.min(...scores).toFixed(2)} to ${Math.max(...scores).toFixed(2)}` : "";
  $("facts").textContent = `${caption()}, ${found.width} × ${found.height}, `
    + `${(image.blob.size / 1024).toFixed(0)} kB${range}`;
  overlay.setAttribute("viewBox", `0 0 ${found.width} ${found.height}`);
  overlay.setAttribute("preserveAspectRatio", "none");
  // A dark edge below all lines, so that they are seen on any ground.
  const edge = document.createElementNS(SVG, "path");
  edge.setAttribute("class", "edge");
  edge.setAttribute("d", found.detections.flatMap((one) => [one.quad, one.polygon ?? []]).map(closed).join(" "));
  overlay.append(edge);
  found.detections.forEach((one, index) => {
    const quad = polygon(one.quad, "", about(one));
    quad.dataset.index = index;
    overlay.append(quad);
    if (one.polygon) overlay.append(polygon(one.polygon, "outline", ""));
    if (label(one)) {
      const text = document.createElementNS(SVG, "text");
      const sides = [3, 1].map((corner) => Math.hypot(
        one.quad[corner][0] - one.quad[0][0], one.quad[corner][1] - one.quad[0][1]));
      text.setAttribute("x", one.quad[0][0]);
      text.setAttribute("y", one.quad[0][1]);
      text.side = Math.min(...sides);
      text.textContent = label(one);
      overlay.append(text);
    }
  });
  settle();
}

// Labels are of one size on the screen; those of lines too low for them appear when the picture is zoomed.
function sizeLabels() {
  if (!found) return;
  const scale = scaleOf();
  $("overlay").setAttribute("font-size", LABEL_PX / scale);
  $("overlay").querySelectorAll("text").forEach((one) =>
    one.classList.toggle("crowded", one.side * scale < LOWEST_LABELLED_PX));
}

const closed = (points) => (points.length ? `M${points.map((point) => point.join(",")).join("L")}Z` : "");

function polygon(points, kind, title) {
  const shape = document.createElementNS(SVG, "polygon");
  shape.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  shape.setAttribute("class", kind);
  if (title) {
    const tip = document.createElementNS(SVG, "title");
    tip.textContent = title;
    shape.append(tip);
  }
  return shape;
}

// The size of the picture as it is served; until then, the browser's.
function settle() {
  const width = found ? found.width : $("picture").naturalWidth;
  const height = found ? found.height : $("picture").naturalHeight;
  if (width && height) frame(width, height);
}

function blank() {
  if ($("picture").src) URL.revokeObjectURL($("picture").src);
  $("picture").removeAttribute("src");
  $("view").hidden = true;
  found = null;
  say("");
  show();
}

function clear() {
  if (running) running.control.abort();
  running = null;
  clearTimeout(timer);
  image = null;
  blank();
  $("pages").hidden = true;
  frame(0, 0);
  setState("empty");
  document.querySelectorAll("[data-sample]").forEach((one) => one.setAttribute("aria-pressed", "false"));
}

function take(blob, name, sample = "") {
  clear();
  if (blob.size > config.max_bytes) {
    say(`${name} has ${(blob.size / 2 ** 20).toFixed(1)} MiB; at most ${config.max_bytes / 2 ** 20} MiB are accepted.`);
    return;
  }
  image = { blob, name, shown: false, page: null, pages: 1, pdf: false, number: (files += 1) };
  document.querySelectorAll("[data-sample]").forEach((one) =>
    one.setAttribute("aria-pressed", String(one.dataset.sample === sample)));
  showSnippet();
  openFile(image);
}

async function openFile(opened) {
  setState("busy");
  try {
    const counted = await ask("pages", { body: opened.blob });
    if (image === opened) Object.assign(opened, counted);
  } catch (error) {
    if (image === opened) fail(error);
    return;
  }
  if (image !== opened) return;
  if (opened.pages > 1) {
    $("page").replaceChildren(...Array.from({ length: opened.pages }, (_, index) => new Option(index + 1)));
    $("count").textContent = `of ${opened.pages}`;
    $("pages").hidden = false;
    turn(1);
  } else {
    draw(opened.blob, () => preview(opened));
    showSnippet();
    detect();
  }
}

function turn(page) {
  blank();
  Object.assign(image, { page, shown: false });
  preview(image);
  showSnippet();
  detect();
}

function draw(blob, failed) {
  const drawn = image;
  const picture = $("picture");
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.onload = () => {
    if (image !== drawn) return;
    drawn.shown = true;
    $("view").hidden = false;
    settle();
    $("save-picture").disabled = !found;
  };
  picture.onerror = () => { if (image === drawn) failed(); };
  picture.src = URL.createObjectURL(blob);
}

// A PNG of a page, or of a file that the browser cannot show. Why it cannot be made, the detection says.
async function preview(drawn) {
  const page = drawn.page;
  const answer = await fetch(`preview${page ? `?page=${page}` : ""}`, { method: "POST", body: drawn.blob });
  if (image !== drawn || image.page !== page) return;
  if (answer.ok) draw(await answer.blob(), () => {});
  else if (found) say(`This browser cannot show the picture; the boxes are right. ${(await answer.json()).error}`);
}

async function takeSample(name) {
  clear();
  setState("busy");
  const answer = await fetch(`samples/${name}.png`);
  if (answer.ok) {
    take(await answer.blob(), `${name}.png`, name);
  } else {
    setState("empty");
    say((await answer.json()).error);
  }
}

function showSnippet() {
  const tab = document.querySelector('.tab[aria-pressed="true"]').dataset.tab;
  $("snippet").textContent = snippets()[tab];
}

function listen() {
  $("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0], $("file").files[0].name));
  addEventListener("dragover", (event) => { event.preventDefault(); $("stage").classList.add("over"); });
  addEventListener("dragleave", () => $("stage").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("stage").classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) take(file, file.name);
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file) take(file, file.name);
  });
  listenToZoom();
  document.addEventListener("zoomed", sizeLabels);
  $("save-json").addEventListener("click", () =>
    save(new Blob([resultJson()], { type: "application/json" }), `${stem()}.json`));
  $("save-picture").addEventListener("click", async () => save(await annotated(), `${stem()}-boxes.png`));
  $("labels").addEventListener("change", show);
  $("page").addEventListener("change", () => turn(Number($("page").value)));
  $("reset").addEventListener("click", () => { moved.clear(); showParameters(); schedule(); });
  $("copy").addEventListener("click", () => navigator.clipboard.writeText($("snippet").textContent));
  document.querySelectorAll("[data-sample]").forEach((one) =>
    one.addEventListener("click", () => takeSample(one.dataset.sample)));
  document.querySelectorAll(".tab").forEach((tab) => tab.addEventListener("click", () => {
    document.querySelectorAll(".tab").forEach((one) => one.setAttribute("aria-pressed", String(one === tab)));
    showSnippet();
  }));
}

// ?sample=receipt&box_thresh=0.6&labels: a link that opens with a picture and its settings; detect: without its text.
async function start() {
  config = await (await fetch("config")).json();
  $("source").textContent = config.source;
  $("formats").textContent = config.formats.map((form) => form.label).join(", ");
  $("file").accept = config.formats.map((form) => form.media_type).join(",");
  buildSliders();
  buildText();
  listen();
  const query = new URLSearchParams(location.search);
  for (const parameter of config.parameters) {
    if (!query.has(parameter.name)) continue;
    const text = query.get(parameter.name);
    moved.set(parameter.name, parameter.type === "bool" ? text !== "false" : Number(text));
  }
  $("labels").checked = query.has("labels");
  $("texts").checked = query.has("texts");
  $("reads").checked = !query.has("detect");
  document.querySelector(`[data-tab="${CSS.escape(query.get("tab") ?? "python")}"]`)?.click();
  showParameters();
  if (query.has("sample")) await takeSample(query.get("sample"));
}

start();
