// SPDX-License-Identifier: Apache-2.0
"use strict";

// The picture in its stage: fitted, zoomed about a point, moved. Sizes are in CSS pixels.
const zoom = { width: 0, height: 0, factor: 1, x: 0, y: 0 }; // size of the image; factor over fitted; offset of centre
const MARGIN = 12;
const STEP = 1.3;
const NEAREST = 8; // screen pixels per pixel of the image, at most, or four times the fitted size

function fitted() {
  const room = document.getElementById("stage").getBoundingClientRect();
  return Math.min((room.width - 2 * MARGIN) / zoom.width, (room.height - 2 * MARGIN) / zoom.height, 4);
}

const scaleOf = () => fitted() * zoom.factor;

function place() {
  if (!zoom.width || !zoom.height) return;
  const width = zoom.width * scaleOf();
  const height = zoom.height * scaleOf();
  // Any part can be moved to the middle, and nothing out of sight.
  const within = (offset, length) => (zoom.factor > 1 ? Math.min(Math.max(offset, -length / 2), length / 2) : 0);
  zoom.x = within(zoom.x, width);
  zoom.y = within(zoom.y, height);
  const view = document.getElementById("view");
  Object.assign(view.style, { width: `${width}px`, height: `${height}px` });
  view.style.transform = `translate(calc(-50% + ${zoom.x}px), calc(-50% + ${zoom.y}px))`;
  document.getElementById("percent").textContent = `${Math.round(scaleOf() * 100)} %`;
  document.body.dataset.zoomed = zoom.factor > 1 ? "yes" : "no";
  document.dispatchEvent(new Event("zoomed"));
}

// Fit an image of this size, unless it is already shown.
function frame(width, height) {
  if (width !== zoom.width || height !== zoom.height) Object.assign(zoom, { width, height, factor: 1, x: 0, y: 0 });
  place();
}

function fit() {
  Object.assign(zoom, { factor: 1, x: 0, y: 0 });
  place();
}

// Zoom so that what is at a point of the window stays there; without a point, at the middle of the stage.
function zoomBy(factor, clientX, clientY) {
  if (!zoom.width) return;
  const room = document.getElementById("stage").getBoundingClientRect();
  const x = (clientX ?? room.left + room.width / 2) - room.left - room.width / 2;
  const y = (clientY ?? room.top + room.height / 2) - room.top - room.height / 2;
  const wanted = Math.min(Math.max(zoom.factor * factor, 1), Math.max(NEAREST / fitted(), 4));
  const change = wanted / zoom.factor;
  Object.assign(zoom, { factor: wanted, x: x - (x - zoom.x) * change, y: y - (y - zoom.y) * change });
  place();
}

function pan(x, y) {
  zoom.x += x;
  zoom.y += y;
  place();
}

function listenToZoom() {
  const stage = document.getElementById("stage");
  const pointers = new Map();
  stage.addEventListener("wheel", (event) => {
    if (!zoom.width) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    // A pinch on a touchpad arrives as a wheel with ctrlKey, in smaller steps.
    zoomBy(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0015)), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button, label") || !zoom.width) return;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    const now = [event.clientX, event.clientY];
    pointers.set(event.pointerId, now);
    if (other) {
      const [x, y] = other[1];
      const length = (point) => Math.max(Math.hypot(point[0] - x, point[1] - y), 1);
      zoomBy(length(now) / length(before), (now[0] + x) / 2, (now[1] + y) / 2);
    } else {
      pan(now[0] - before[0], now[1] - before[1]);
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, (event) => pointers.delete(event.pointerId));
  }
  stage.addEventListener("dblclick", (event) => {
    if (!event.target.closest("button, label")) zoomBy(2, event.clientX, event.clientY);
  });
  document.querySelectorAll("[data-zoom]").forEach((one) => one.addEventListener("click", () =>
    ({ in: () => zoomBy(STEP), out: () => zoomBy(1 / STEP), fit })[one.dataset.zoom]()));
  const keys = {
    "+": () => zoomBy(STEP), "=": () => zoomBy(STEP), "-": () => zoomBy(1 / STEP), 0: fit,
    ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60),
  };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !zoom.width || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  addEventListener("resize", place);
}
