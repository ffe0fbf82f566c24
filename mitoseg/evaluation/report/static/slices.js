// The viewer of slices: one canvas with the image and, over it, what is chosen.
(() => {
  const source = data("slice-data");
  if (!source) return;
  const canvas = byId("slice"), stage = byId("stage"), slider = byId("z"), where = byId("where"), under = byId("under");
  const { width, height } = source, count = source.z.length;
  const aspect = source.voxel_nm ? (source.size[1] * source.voxel_nm[1]) / (source.size[2] * source.voxel_nm[2]) : height / width;
  canvas.width = width; canvas.height = height;
  canvas.style.aspectRatio = `${1 / aspect}`;
  stage.style.maxWidth = `calc(84vh / ${aspect})`; // a whole slice fits the window
  const context = canvas.getContext("2d");
  const over = new OffscreenCanvas(width, height), overContext = over.getContext("2d");
  const boxes = [...document.querySelectorAll("[data-layer]")];
  const opacity = byId("opacity"), outline = byId("outline");
  const view = { zoom: 1, x: 0, y: 0 };
  const kept = new Map(); // unpacked slices, the last few
  let turn = 0, now = null, marked = null;

  async function load(i) {
    if (kept.has(i)) return kept.get(i);
    const picture = source.images.length ? new Image() : null;
    if (picture) { picture.src = `data:image/webp;base64,${source.images[i]}`; await picture.decode(); }
    const codes = await unpack(source.codes[i], Uint8Array);
    const ids = source.ids.length ? await unpack(source.ids[i], Uint32Array) : null;
    kept.set(i, { picture, codes, ids });
    if (kept.size > 12) kept.delete(kept.keys().next().value);
    return kept.get(i);
  }

  // Classes of a layer: a number for each pixel, 0 for nothing; and the colour of a class.
  const rgb = source.colours;
  const kinds = {
    errors: (s) => [(p) => [0, 3, 2, 1, 4, 4, 4, 4][s.codes[p] & 7], (v) => [null, rgb.hit, rgb.false, rgb.missed, rgb.ignored][v]],
    truth: (s) => [(p) => s.codes[p] & 1, () => rgb.truth],
    result: (s) => [(p) => (s.codes[p] & 2) >> 1, () => rgb.result],
    instances: (s) => [(p) => s.ids[p], (v) => instanceColour(v).map((c) => 255 * c)],
  };

  // The order of drawing: areas first, those asked for last on top.
  function paint(slice) {
    const image = overContext.createImageData(width, height), out = image.data;
    for (const name of ["instances", "errors", "result", "truth"]) {
      const box = boxes.find((b) => b.dataset.layer === name);
      if (!box || !box.checked) continue;
      const [value, colour] = kinds[name](slice);
      const found = new Map();
      for (let p = 0; p < width * height; p++) {
        const v = value(p);
        if (!v || (outline.checked && !atEdge(value, p, v))) continue;
        let c = found.get(v);
        if (!c) found.set(v, (c = colour(v)));
        out.set([c[0], c[1], c[2], 255], 4 * p);
      }
    }
    if (page.picked && slice.ids) {
      const value = (p) => (slice.ids[p] === page.picked ? 1 : 0);
      for (let p = 0; p < width * height; p++) if (value(p) && atEdge(value, p, 1)) out.set([255, 255, 255, 255], 4 * p);
    }
    overContext.putImageData(image, 0, 0);
  }

  // Whether another class lies within two pixels, left, right, above or below.
  function atEdge(value, p, v) {
    const x = p % width, y = (p - x) / width;
    return (x > 0 && value(p - 1) !== v) || (x < width - 1 && value(p + 1) !== v) ||
      (y > 0 && value(p - width) !== v) || (y < height - 1 && value(p + width) !== v) ||
      (x > 1 && value(p - 2) !== v) || (x < width - 2 && value(p + 2) !== v) ||
      (y > 1 && value(p - 2 * width) !== v) || (y < height - 2 && value(p + 2 * width) !== v);
  }

  async function draw() {
    const mine = ++turn, i = Number(slider.value);
    let slice;
    try { slice = await load(i); } catch (error) { where.textContent = `The slices cannot be shown: ${error.message}.`; return; }
    if (mine !== turn) return; // a later call is on its way
    now = slice;
    context.fillStyle = "#15191c";
    context.fillRect(0, 0, width, height);
    if (slice.picture) context.drawImage(slice.picture, 0, 0, width, height);
    paint(slice);
    context.globalAlpha = outline.checked ? Math.min(1, 0.4 + opacity.value / 100) : opacity.value / 100;
    context.drawImage(over, 0, 0);
    context.globalAlpha = 1;
    const z = source.z[i];
    where.textContent = `z = ${z}` + (source.voxel_nm ? ` (${(z * source.voxel_nm[0]).toLocaleString("en")} nm)` : "") + `, picture ${i + 1} of ${count}`;
    slider.setAttribute("aria-valuetext", where.textContent);
    canvas.dataset.drawn = String(z);
    if (page.slice !== z) { page.slice = z; page.tell("slice"); }
  }

  function place() {
    const w = stage.clientWidth, h = w * aspect;
    view.zoom = Math.min(16, Math.max(1, view.zoom));
    view.x = Math.min(0, Math.max(w * (1 - view.zoom), view.x));
    view.y = Math.min(0, Math.max(h * (1 - view.zoom), view.y));
    canvas.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    canvas.style.imageRendering = view.zoom > 2.5 ? "pixelated" : "auto";
    const bar = byId("bar"), nice = source.bar;
    let shrink = 1; // the bar stays shorter than 40 % of the stage
    while ((nice.voxels / shrink / source.size[2]) * w * view.zoom > 0.4 * w) shrink *= 2;
    bar.style.width = `${(nice.voxels / shrink / source.size[2]) * w * view.zoom}px`;
    const [number, unit] = nice.text.split(" "), length = Number(number) / shrink;
    bar.firstChild.textContent = unit === "µm" && length < 0.5 ? `${length * 1000} nm` : `${length} ${unit}`;
    const mark = byId("mark");
    mark.hidden = !marked || marked.i !== Number(slider.value);
    if (marked) {
      mark.style.left = `${view.x + ((marked.x - source.start[2] + 0.5) / source.size[2]) * w * view.zoom}px`;
      mark.style.top = `${view.y + ((marked.y - source.start[1] + 0.5) / source.size[1]) * h * view.zoom}px`;
    }
  }

  function zoomBy(factor, x, y) {
    const before = view.zoom;
    view.zoom = Math.min(16, Math.max(1, before * factor));
    const grown = view.zoom / before;
    view.x = x - (x - view.x) * grown;
    view.y = y - (y - view.y) * grown;
    place();
  }

  function pixel(event) {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width), y = Math.floor(((event.clientY - box.top) / box.height) * height);
    return x >= 0 && y >= 0 && x < width && y < height ? [x, y] : null;
  }

  function go(step) { slider.value = Number(slider.value) + step; draw(); place(); }

  slider.addEventListener("input", () => go(0));
  [...boxes, outline, opacity].filter(Boolean).forEach((tool) => tool.addEventListener("input", draw));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5, Home: -count, End: count };
    if (event.key in steps) { go(steps[event.key]); event.preventDefault(); }
    if (event.key === "+" || event.key === "-") zoomBy(event.key === "+" ? 1.5 : 1 / 1.5, stage.clientWidth / 2, stage.clientHeight / 2);
  });
  document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    zoomBy({ 1: 1.5, "-1": 1 / 1.5, 0: 1e-9 }[button.dataset.zoom], stage.clientWidth / 2, stage.clientHeight / 2);
  }));
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  let held = null;
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, moved: false };
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held) {
      const dx = event.clientX - held.x, dy = event.clientY - held.y;
      if (held.moved || Math.hypot(dx, dy) > 4) {
        view.x += dx; view.y += dy;
        held = { x: event.clientX, y: event.clientY, moved: true };
        place();
      }
    }
    const at = pixel(event), id = at && now && now.ids ? now.ids[at[1] * width + at[0]] : 0;
    const voxel = at && at.map((p, i) => source.start[2 - i] + Math.floor((p + 0.5) * source.size[2 - i] / [width, height][i]));
    under.textContent = voxel ? `y ${voxel[1]}, x ${voxel[0]}${id ? `, instance ${id}` : ""}` : "";
  });
  canvas.addEventListener("pointerup", (event) => {
    const at = pixel(event);
    if (held && !held.moved && at && now && now.ids) page.pick(now.ids[at[1] * width + at[0]]);
    held = null;
  });
  canvas.addEventListener("pointercancel", () => { held = null; });
  window.addEventListener("resize", place);
  page.on((what) => { if (what === "picked") draw(); });

  // Show a place: the nearest picture, with a ring.
  page.show = (z, y, x, scroll) => {
    const i = source.z.reduce((best, at, k) => (Math.abs(at - z) < Math.abs(source.z[best] - z) ? k : best), 0);
    slider.value = i;
    marked = y === null ? null : { i, y, x };
    draw(); place();
    if (scroll) byId("slices").scrollIntoView();
  };
  document.querySelectorAll(".gallery button").forEach((button) => button.addEventListener("click", () => {
    page.show(Number(button.dataset.z), Number(button.dataset.y), Number(button.dataset.x), true);
  }));
  draw(); place();
})();
