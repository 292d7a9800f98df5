// SPDX-License-Identifier: Apache-2.0
"use strict";

const UNSURE = 0.8; // below this score a text is marked

const canRead = () => config.documents.length > 0;
const reads = () => canRead() && $("reads").checked;

// Rows in reading order, the detections of a row separated by a space, as `Reading.text`.
const wholeText = () => found.rows.map((row) =>
  row.map((index) => found.detections[index].text).filter(Boolean).join(" ")).filter(Boolean).join("\n");

function showText() {
  const isRead = Boolean(found && found.rows);
  $("text").replaceChildren(...(isRead ? found.rows : []).map((row) => {
    const line = document.createElement("div");
    row.forEach((index, place) => {
      const one = found.detections[index];
      const part = document.createElement("span");
      part.textContent = one.text;
      part.dataset.index = index;
      part.title = about(one);
      part.classList.toggle("unsure", one.text_score < UNSURE);
      line.append(...(place ? [" "] : []), part);
    });
    return line;
  }));
  $("copy-text").disabled = !isRead;
  $("documents").querySelectorAll("button").forEach((one) => { one.disabled = !isRead; });
}

// Of a box and its text: what it says, and how sure that is.
const about = (one) => (one.text === undefined
  ? `score ${one.score.toFixed(3)}`
  : `${one.text}\ntext ${one.text_score.toFixed(3)}, box ${one.score.toFixed(3)}`);

const label = (one) => [
  $("texts").checked && one.text, $("labels").checked && one.score.toFixed(2),
].filter(Boolean).join("  ");

// A box and its text are marked together, whichever is pointed at.
function mark(index, from) {
  document.querySelectorAll(".lit").forEach((one) => one.classList.remove("lit"));
  if (index === undefined) return;
  document.querySelectorAll(`[data-index="${index}"]`).forEach((one) => {
    one.classList.add("lit");
    if (from === "overlay" && one.closest("#text")) one.scrollIntoView({ block: "nearest" });
  });
}

function buildText() {
  $("reading").hidden = $("texts").parentElement.hidden = !canRead();
  $("documents").replaceChildren(...config.documents.map((form) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: form.suffix, title: `save as ${form.name}`, disabled: true });
    button.addEventListener("click", () => saveDocument(form));
    return button;
  }));
  $("copy-text").addEventListener("click", () => navigator.clipboard.writeText(wholeText()));
  $("texts").addEventListener("change", show);
  $("reads").addEventListener("change", () => { showParameters(); schedule(); });
  for (const id of ["text", "overlay"]) {
    $(id).addEventListener("pointerover", (event) => mark(event.target.dataset.index, id));
    $(id).addEventListener("pointerleave", () => mark());
  }
}
