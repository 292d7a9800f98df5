// SPDX-License-Identifier: Apache-2.0
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const DEBOUNCE_MS = 120;

let config = null; // from the server
let image = null; // { blob, name }
let found = null; // the last answer
let running = null; // AbortController of the request in flight
let timer = 0;
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
      box.addEventListener("change", () => change(parameter, box.checked));
      label.append(box, ` ${parameter.name}`);
      $("labels").closest("label").before(label);
      continue;
    }
    const [low, high] = parameter.usual;
    const step = high - low < 10 ? 0.01 : 1;
    const row = document.createElement("label");
    row.className = "slider";
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
  if (value === parameter.default || value === false) moved.delete(parameter.name);
  else moved.set(parameter.name, value);
  showParameters();
  schedule();
}

function showParameters() {
  document.querySelectorAll(".slider").forEach((row) => row.show());
  for (const parameter of config.parameters) {
    if (parameter.type === "bool") $(parameter.name).checked = moved.has(parameter.name);
  }
  showSnippet();
}

function schedule() {
  clearTimeout(timer);
  if (image) timer = setTimeout(detect, DEBOUNCE_MS);
}

async function detect() {
  if (!image) return;
  if (running) running.abort();
  const control = running = new AbortController();
  setState("busy");
  const begin = performance.now();
  try {
    const query = new URLSearchParams([...moved].map(([name, value]) => [name, String(value)]));
    const answer = await fetch(`detect${query.size ? "?" : ""}${query}`, { method: "POST", body: image.blob, signal: control.signal });
    const result = await answer.json();
    if (!answer.ok) throw new Error(result.error);
    found = { ...result, trip: performance.now() - begin };
    say("");
    show();
    setState("done");
  } catch (error) {
    if (error.name === "AbortError") return;
    found = null;
    show();
    say(error instanceof TypeError ? "The playground does not answer; is it still running?" : error.message);
    setState("failed");
  }
}

function show() {
  const overlay = $("overlay");
  overlay.replaceChildren();
  $("boxes").textContent = found ? found.detections.length : "–";
  $("detection").textContent = found ? found.ms.toFixed(0) : "–";
  $("trip").textContent = found ? found.trip.toFixed(0) : "–";
  document.body.dataset.boxes = found ? found.detections.length : "";
  if (!found) return;
  const scores = found.detections.map((one) => one.score);
  const range = scores.length ? `, scores ${Math.min(...scores).toFixed(2)} to ${Math.max(...scores).toFixed(2)}` : "";
  $("facts").textContent = `${image.name}, ${found.width} × ${found.height}, `
    + `${(image.blob.size / 1024).toFixed(0)} kB${range}`;
  overlay.setAttribute("viewBox", `0 0 ${found.width} ${found.height}`);
  overlay.setAttribute("preserveAspectRatio", "none");
  fit();
  for (const one of found.detections) {
    overlay.append(polygon(one.quad, "", `score ${one.score.toFixed(3)}`));
    if (one.polygon) overlay.append(polygon(one.polygon, "outline", ""));
    if ($("labels").checked) {
      const text = document.createElementNS(SVG, "text");
      const height = Math.hypot(one.quad[3][0] - one.quad[0][0], one.quad[3][1] - one.quad[0][1]);
      text.setAttribute("x", one.quad[0][0]);
      text.setAttribute("y", one.quad[0][1]);
      text.setAttribute("font-size", Math.min(Math.max(height * 0.4, found.width / 100), found.width / 55));
      text.textContent = one.score.toFixed(2);
      overlay.append(text);
    }
  }
}

function polygon(points, kind, title) {
  const shape = document.createElementNS(SVG, "polygon");
  shape.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  shape.setAttribute("class", kind);
  if (title) {
    const label = document.createElementNS(SVG, "title");
    label.textContent = title;
    shape.append(label);
  }
  return shape;
}

// The picture as large as its stage allows; the server's size, for a browser that cannot show it has none.
function fit() {
  const width = found ? found.width : $("picture").naturalWidth;
  const height = found ? found.height : $("picture").naturalHeight;
  if (!width || !height) return;
  const room = $("stage").getBoundingClientRect();
  const scale = Math.min((room.width - 24) / width, (room.height - 24) / height, 4);
  $("view").style.width = `${width * scale}px`;
  $("view").style.height = `${height * scale}px`;
}

function take(blob, name, sample = "") {
  if (blob.size > config.max_bytes) {
    say(`${name} has ${(blob.size / 2 ** 20).toFixed(1)} MiB; at most ${config.max_bytes / 2 ** 20} MiB are accepted.`);
    return;
  }
  image = { blob, name };
  found = null;
  say("");
  document.querySelectorAll("[data-sample]").forEach((one) =>
    one.setAttribute("aria-pressed", String(one.dataset.sample === sample)));
  if ($("picture").src) URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(blob);
  $("view").hidden = false;
  showSnippet();
  detect();
}

async function takeSample(name) {
  setState("busy");
  const answer = await fetch(`samples/${name}.png`);
  if (answer.ok) {
    take(await answer.blob(), `${name}.png`, name);
  } else {
    say((await answer.json()).error);
    setState(image ? "failed" : "empty");
  }
}

function snippets() {
  const file = image ? image.name : "photo.jpg";
  const given = [...moved].map(([name, value]) => [name, value === true ? "True" : value]);
  const keywords = given.map(([name, value]) => `, ${name}=${value}`).join("");
  const quoted = `'${file.replaceAll("'", "'\\''")}'`;
  const python = config.url
    ? `from ocdserve.client import TextDetector\n\nwith TextDetector(${JSON.stringify(config.url)}) as detector:\n`
      + `    found = detector.detect(${JSON.stringify(file)}${keywords})\nprint(found.quads, found.scores)`
    : `from ocdserve.backend import Detector\n\ndetector = Detector.load()\n`
      + `found = detector.detect(${JSON.stringify(file)}${keywords})\nprint(found.quads, found.scores)`;
  const parameters = JSON.stringify(Object.fromEntries(moved));
  const query = new URLSearchParams([...moved].map(([name, value]) => [name, String(value)])).toString();
  const curl = config.url && config.url.startsWith("http")
    ? `image=${quoted}; size=$(stat -c %s "$image")\n`
      + `header='{"inputs":[{"name":"IMAGE","shape":[1,1],"datatype":"BYTES",\n`
      + `"parameters":{"binary_data_size":'$((size+4))'}}],"parameters":${parameters},\n`
      + `"outputs":[{"name":"QUADS"},{"name":"SCORES"},{"name":"COUNT"}]}'\n`
      + `length=$(printf '\\\\x%02x' $((size&255)) $((size>>8&255)) $((size>>16&255)) $((size>>24&255)))\n`
      + `{ printf '%s' "$header"; printf "$length"; cat "$image"; } |\n`
      + `  curl -s --data-binary @- -H "Inference-Header-Content-Length: \${#header}" \\\n`
      + `  ${config.url.replace(/\/$/, "")}/v2/models/ocdnet/infer`
    : `curl -s --data-binary @${quoted} \\\n  '${location.origin}/detect${query ? `?${query}` : ""}'`;
  return { python, curl };
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
  addEventListener("resize", fit);
  $("picture").addEventListener("load", fit);
  $("picture").addEventListener("error", () => say("This browser cannot show the picture; the boxes are right."));
  $("labels").addEventListener("change", show);
  $("reset").addEventListener("click", () => { moved.clear(); showParameters(); schedule(); });
  $("copy").addEventListener("click", () => navigator.clipboard.writeText($("snippet").textContent));
  document.querySelectorAll("[data-sample]").forEach((one) =>
    one.addEventListener("click", () => takeSample(one.dataset.sample)));
  document.querySelectorAll(".tab").forEach((tab) => tab.addEventListener("click", () => {
    document.querySelectorAll(".tab").forEach((one) => one.setAttribute("aria-pressed", String(one === tab)));
    showSnippet();
  }));
}

// ?sample=receipt&box_thresh=0.6&labels: a link that opens with a picture and its settings.
async function start() {
  config = await (await fetch("config")).json();
  $("source").textContent = config.source;
  $("formats").textContent = config.formats.map((form) => form.label).join(", ");
  $("file").accept = config.formats.map((form) => form.media_type).join(",");
  buildSliders();
  listen();
  const query = new URLSearchParams(location.search);
  for (const parameter of config.parameters) {
    if (!query.has(parameter.name)) continue;
    const text = query.get(parameter.name);
    moved.set(parameter.name, parameter.type === "bool" ? true : Number(text));
  }
  $("labels").checked = query.has("labels");
  if (query.get("tab") === "curl") document.querySelector('[data-tab="curl"]').click();
  showParameters();
  if (query.has("sample")) await takeSample(query.get("sample"));
}

start();
