// SPDX-License-Identifier: Apache-2.0
"use strict";

const MOST_CANVAS_PIXELS = 2 ** 27; // browsers draw no larger canvas

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const stem = () => image.name.replace(/\.[^.]*$/, "") + (image.page ? `.page-${image.page}` : "");

// One line of `ocdserve detect --json`, or of `ocdserve read --format json`.
const resultJson = () => {
  const { page, width, height, ms, detections } = found;
  return `${JSON.stringify({ image: image.name, page, width, height, ms, detections })}\n`;
};

function annotated() {
  const scale = Math.min(1, Math.sqrt(MOST_CANVAS_PIXELS / (found.width * found.height)));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: Math.round(found.width * scale), height: Math.round(found.height * scale) });
  const pen = canvas.getContext("2d");
  pen.drawImage($("picture"), 0, 0, canvas.width, canvas.height);
  pen.scale(scale, scale);
  const line = Math.max(2, Math.min(found.width, found.height) / 400) / scale;
  const style = getComputedStyle(document.documentElement);
  const shapes = found.detections.flatMap((one) => [[one.quad, "--quad"], [one.polygon, "--polygon"]]);
  for (const [width, colour] of [[2 * line, "rgb(0 0 0 / .5)"], [line, ""]]) {
    for (const [points, name] of shapes.filter(([points]) => points)) {
      Object.assign(pen, { lineWidth: width, lineJoin: "round", strokeStyle: colour || style.getPropertyValue(name) });
      pen.stroke(new Path2D(closed(points)));
    }
  }
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// The document of what is shown, made by the playground from the answer and the file.
async function saveDocument({ name, suffix }) {
  const query = new URLSearchParams({ format: name, name: image.name });
  const answer = await fetch(`document?${query}`, {
    method: "POST", body: new Blob([resultJson(), image.blob]),
  });
  if (answer.ok) save(await answer.blob(), `${stem()}${suffix}`);
  else say((await answer.json()).error);
}
