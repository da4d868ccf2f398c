"""The page that `viewer_html` fills: a canvas, a camera that turns around a point, and keys. No library is loaded."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@TITLE@</title>
<style>
html, body { margin: 0; height: 100%; background: #f6f7f9; color: #1c2330; font: 13px/1.5 system-ui, sans-serif; }
canvas { display: block; width: 100vw; height: 100vh; cursor: grab; }
#bar { position: fixed; top: 0; left: 0; right: 0; padding: .4em .8em; background: #f6f7f9cc; }
#bar > * { margin-right: .7em; } #help { position: fixed; bottom: .5em; left: .8em; color: #5a6474; }
button, select { background: #ffffff; color: inherit; border: 1px solid #c3c9d2; border-radius: 4px;
padding: .15em .6em; max-width: 40vw; }
</style></head><body>
<canvas id="view"></canvas>
<div id="bar"><b>@TITLE@</b><button id="previous">previous</button><select id="frame"></select>
<button id="next">next</button><label><input type="checkbox" id="objects" checked> labels</label>
<label><input type="checkbox" id="detections" checked> detections</label>
<label><input type="checkbox" id="texts" checked> texts</label><span id="told"></span></div>
<div id="help">drag: turn &middot; shift and drag: move &middot; wheel: zoom &middot; left, right: frame &middot;
T: from above &middot; R: reset &middot; L, D: labels, detections</div>
<script>
"use strict";
const EDGES = @EDGES@;
const FRAMES = @FRAMES@;
const HOME = {azimuth: Math.PI, elevation: 0.45, distance: 32, target: [10, 0, -1]};
const FOCAL = 1.1;  // of the shorter side of the canvas
const NEAR = 0.5;   // metres before the camera

// Points of a frame, Int16Array of centimetres.
function unpack(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return new Int16Array(bytes.buffer);
}

// The camera looks at `target` from `distance` away; azimuth is where it stands, counter-clockwise from +x.
// Returns rows right, up and back of the rotation, and the camera's place.
function cameraOf(view) {
  const ca = Math.cos(view.azimuth), sa = Math.sin(view.azimuth);
  const ce = Math.cos(view.elevation), se = Math.sin(view.elevation);
  const back = [ce * ca, ce * sa, se];
  return {right: [-sa, ca, 0], up: [-se * ca, -se * sa, ce], back,
          place: view.target.map((t, i) => t + view.distance * back[i])};
}

// Camera coordinates of a point: to the right, upwards, and how far ahead.
function seen(camera, x, y, z) {
  const dx = x - camera.place[0], dy = y - camera.place[1], dz = z - camera.place[2];
  const dot = a => a[0] * dx + a[1] * dy + a[2] * dz;
  return [dot(camera.right), dot(camera.up), -dot(camera.back)];
}

// A stroke between two points in camera coordinates, cut off behind the camera; null if nothing is left.
function cut(a, b) {
  if (a[2] < NEAR && b[2] < NEAR) return null;
  const at = (p, q) => { const s = (NEAR - p[2]) / (q[2] - p[2]); return p.map((v, i) => v + s * (q[i] - v)); };
  return [a[2] < NEAR ? at(a, b) : a, b[2] < NEAR ? at(b, a) : b];
}

// Red, green, blue of a height above the ground: light there, dark from 3 m on.
function shade(height) {
  const t = Math.min(1, Math.max(0, height / 3));
  return [185 - 150 * t, 190 - 145 * t, 200 - 135 * t];
}

// The height below which a tenth of the points lie.
function ground(points) {
  const z = [];
  for (let i = 2; i < points.length; i += 3) z.push(points[i]);
  z.sort((a, b) => a - b);
  return z.length ? z[Math.floor(z.length / 10)] : 0;
}

function start() {
  const canvas = document.getElementById("view"), pen = canvas.getContext("2d");
  const get = id => document.getElementById(id), cache = new Map();
  let place = 0, view, waiting = false;
  const reset = () => { view = {...HOME, target: [...HOME.target]}; };
  reset();
  FRAMES.forEach((f, i) => get("frame").add(new Option(`${i + 1}/${FRAMES.length}  ${f.name}`, i)));

  function pointsOf(i) {
    if (!cache.has(i)) { const p = unpack(FRAMES[i].points); cache.set(i, {p, low: ground(p)}); }
    return cache.get(i);
  }

  function draw() {
    waiting = false;
    const ratio = window.devicePixelRatio || 1;
    const w = canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const h = canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const scale = FOCAL * Math.min(w, h), camera = cameraOf(view), frame = FRAMES[place];
    const image = pen.createImageData(w, h), pixels = image.data, {p, low} = pointsOf(place);
    for (let i = 0; i < pixels.length; i += 4) {
      pixels[i] = 246; pixels[i + 1] = 247; pixels[i + 2] = 249; pixels[i + 3] = 255;
    }
    for (let i = 0; i < p.length; i += 3) {
      const s = seen(camera, p[i] / 100, p[i + 1] / 100, p[i + 2] / 100);
      if (s[2] < NEAR) continue;
      const u = Math.round(w / 2 + scale * s[0] / s[2]), v = Math.round(h / 2 - scale * s[1] / s[2]);
      const size = s[2] < 25 ? Math.ceil(2 * ratio) : Math.ceil(ratio), colour = shade((p[i + 2] - low) / 100);
      for (let a = Math.max(0, u); a < Math.min(w, u + size); a++)
        for (let b = Math.max(0, v); b < Math.min(h, v + size); b++) {
          const k = 4 * (b * w + a);
          pixels[k] = colour[0]; pixels[k + 1] = colour[1]; pixels[k + 2] = colour[2];
        }
    }
    pen.putImageData(image, 0, 0);
    const stroke = (a, b) => {
      const ends = cut(a, b);
      if (!ends) return;
      const [from, to] = ends.map(e => [w / 2 + scale * e[0] / e[2], h / 2 - scale * e[1] / e[2]]);
      pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke();
    };
    pen.font = `${12 * ratio}px system-ui, sans-serif`;
    for (const box of frame.boxes) {
      if (!get(box.object ? "objects" : "detections").checked) continue;
      const corners = box.corners.map(c => seen(camera, ...c)), heading = box.heading.map(c => seen(camera, ...c));
      pen.strokeStyle = pen.fillStyle = box.colour;
      pen.lineWidth = (box.thick ? 2.2 : 1.3) * ratio;
      pen.setLineDash(box.object ? [5 * ratio, 4 * ratio] : []);
      EDGES.forEach(([a, b]) => stroke(corners[a], corners[b]));
      stroke(...heading);
      if (box.cross) { stroke(corners[4], corners[6]); stroke(corners[5], corners[7]); }
      const top = corners[4];
      if (get("texts").checked && top[2] > NEAR && top[2] < 80)
        pen.fillText(box.text, w / 2 + scale * top[0] / top[2], h / 2 - scale * top[1] / top[2] - 4 * ratio);
    }
    get("frame").value = place;
    get("told").textContent = `${p.length / 3} of ${frame.total} points`;
  }

  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const step = by => { place = (place + by + FRAMES.length) % FRAMES.length; redraw(); };
  const toggle = id => { get(id).checked = !get(id).checked; redraw(); };
  const KEYS = {
    ArrowRight: () => step(1), ArrowLeft: () => step(-1), n: () => step(1), p: () => step(-1),
    t: () => { view.elevation = Math.PI / 2 - 1e-3; redraw(); }, r: () => { reset(); redraw(); },
    l: () => toggle("objects"), d: () => toggle("detections"),
  };
  addEventListener("keydown", e => {
    const act = KEYS[e.key] || KEYS[e.key.toLowerCase()];
    if (act && !e.ctrlKey && !e.metaKey && !e.altKey) { act(); e.preventDefault(); }
  });
  get("previous").onclick = () => step(-1);
  get("next").onclick = () => step(1);
  get("frame").onchange = e => { place = Number(e.target.value); e.target.blur(); redraw(); };
  for (const id of ["objects", "detections", "texts"]) get(id).onchange = redraw;
  canvas.addEventListener("pointermove", e => {
    if (!e.buttons) return;
    const size = Math.min(canvas.clientWidth, canvas.clientHeight);
    if (e.shiftKey || e.buttons !== 1) {
      const camera = cameraOf(view), metres = view.distance / (FOCAL * size);
      const moved = i => metres * (e.movementX * camera.right[i] - e.movementY * camera.up[i]);
      view.target = view.target.map((t, i) => t - moved(i));
    } else {
      view.azimuth -= 3 * e.movementX / size;
      view.elevation = Math.min(1.57, Math.max(-1.57, view.elevation + 3 * e.movementY / size));
    }
    redraw();
  });
  canvas.addEventListener("pointerdown", e => canvas.setPointerCapture(e.pointerId));
  canvas.addEventListener("contextmenu", e => e.preventDefault());
  canvas.addEventListener("wheel", e => {
    view.distance = Math.min(300, Math.max(2, view.distance * Math.exp(e.deltaY * 0.001)));
    redraw(); e.preventDefault();
  }, {passive: false});
  addEventListener("resize", redraw);
  redraw();
}
if (typeof document !== "undefined") start();
</script></body></html>
"""
