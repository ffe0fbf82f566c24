// The surfaces in WebGL 2: positions and normals in one buffer, one draw a mitochondrion, picked by colour.
(async () => {
  const source = data("scene-data");
  if (!source) return;
  const canvas = byId("scene");
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) { canvas.hidden = true; byId("no-webgl").hidden = false; return; }

  const VERTEX = `#version 300 es
    in vec3 place; in vec3 normal;
    uniform mat3 turn; uniform vec3 extent; uniform vec4 lens; // zoom, aspect, shift x, shift y
    out vec3 facing;
    void main() {
      vec3 p = turn * (place.zyx * extent * vec3(1., -1., -1.)); // x right, y down, z away, as in the slices
      facing = turn * (normal.zyx * vec3(1., -1., -1.));
      float w = 3.2 - p.z;
      gl_Position = vec4(p.x * lens.x / lens.y + lens.z * w, p.y * lens.x + lens.w * w, (w - 2.) * 1.5 - 1., w);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 facing; uniform vec4 colour; out vec4 shown; // colour.a: 1 lit, 0 plain
    void main() {
      vec3 n = normalize(facing);
      float front = abs(n.z), side = max(dot(n, normalize(vec3(-.45, .75, .5))), 0.);
      float gloss = pow(max(dot(n, normalize(vec3(-.25, .45, .86))), 0.), 40.);
      vec3 lit = colour.rgb * (.34 + .38 * front + .5 * side) + .14 * gloss;
      shown = vec4(mix(colour.rgb, lit, colour.a), 1.);
    }`;
  const shader = (kind, text) => { const s = gl.createShader(kind); gl.shaderSource(s, text); gl.compileShader(s); return s; };
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, FRAGMENT));
  gl.bindAttribLocation(program, 0, "place"); gl.bindAttribLocation(program, 1, "normal");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const uniform = Object.fromEntries(["turn", "extent", "lens", "colour"].map((name) => [name, gl.getUniformLocation(program, name)]));

  const positions = await unpack(source.positions, Int16Array), corners = await unpack(source.corners, Int32Array);
  for (let i = 1; i < corners.length; i++) corners[i] += corners[i - 1];
  const longest = Math.max(...source.extent), [ez, ey, ex] = source.extent.map((e) => e / longest);

  function normals() {
    const sum = new Float32Array(positions.length), scale = [ez, ey, ex];
    const at = (v, k) => positions[3 * v + k] * scale[k];
    for (let t = 0; t < corners.length; t += 3) {
      const [a, b, c] = [corners[t], corners[t + 1], corners[t + 2]];
      const u = [0, 1, 2].map((k) => at(b, k) - at(a, k)), v = [0, 1, 2].map((k) => at(c, k) - at(a, k));
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) sum[3 * corner + k] += n[k];
    }
    const out = new Int8Array(positions.length);
    for (let i = 0; i < sum.length; i += 3) {
      const length = Math.hypot(sum[i], sum[i + 1], sum[i + 2]) || 1;
      for (let k = 0; k < 3; k++) out[i + k] = Math.round((127 * sum[i + k]) / length);
    }
    return out;
  }

  const buffer = (target, values) => { const b = gl.createBuffer(); gl.bindBuffer(target, b); gl.bufferData(target, values, gl.STATIC_DRAW); return b; };
  const mesh = gl.createVertexArray();
  gl.bindVertexArray(mesh);
  buffer(gl.ARRAY_BUFFER, positions); gl.enableVertexAttribArray(0); gl.vertexAttribPointer(0, 3, gl.SHORT, true, 0, 0);
  buffer(gl.ARRAY_BUFFER, normals()); gl.enableVertexAttribArray(1); gl.vertexAttribPointer(1, 3, gl.BYTE, true, 0, 0);
  buffer(gl.ELEMENT_ARRAY_BUFFER, new Uint32Array(corners));
  let first = 0;
  const parts = source.instances.map((id, i) => {
    const part = { id, first, count: 3 * source.triangles[i] };
    first += part.count;
    return part;
  });

  // The box, and in it the frame of the slice that is shown.
  const CUBE = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]].map((c) => c.map((v) => 2 * v - 1));
  const EDGES = [0, 1, 1, 3, 3, 2, 2, 0, 4, 5, 5, 7, 7, 6, 6, 4, 0, 4, 1, 5, 2, 6, 3, 7];
  const lines = gl.createVertexArray();
  gl.bindVertexArray(lines);
  const lineBuffer = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, lineBuffer); gl.enableVertexAttribArray(0); gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
  gl.vertexAttrib3f(1, 0, 0, 1);
  const slices = data("slice-data");
  function fillLines() {
    const z = slices ? (2 * (page.slice - slices.start[0] + 0.5)) / slices.size[0] - 1 : -1;
    const frame = [[z, -1, -1], [z, -1, 1], [z, -1, 1], [z, 1, 1], [z, 1, 1], [z, 1, -1], [z, 1, -1], [z, -1, -1]];
    gl.bindBuffer(gl.ARRAY_BUFFER, lineBuffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([...EDGES.map((c) => CUBE[c]), ...frame].flat()), gl.DYNAMIC_DRAW);
  }

  const multiply = (a, b) => a.map((_, i) => [0, 1, 2].reduce((s, k) => s + a[3 * Math.floor(i / 3) + k] * b[3 * k + (i % 3)], 0));
  const about = (axis, angle) => {
    const c = Math.cos(angle), s = Math.sin(angle);
    return axis === "x" ? [1, 0, 0, 0, c, -s, 0, s, c] : [c, 0, s, 0, 1, 0, -s, 0, c];
  };
  const corner = (p) => [p[2] * ex, -p[1] * ey, -p[0] * ez];
  const turned = (turn, p) => [0, 1, 2].map((i) => corner(p).reduce((s, v, k) => s + turn[3 * i + k] * v, 0));
  function start() { // as close as the box fits
    const turn = multiply(about("x", 0.42), about("y", -0.55)), aspect = canvas.clientWidth / canvas.clientHeight;
    const needs = CUBE.map((p) => turned(turn, p)).map(([x, y, z]) => Math.max(Math.abs(x) / aspect, Math.abs(y)) / (3.2 - z));
    return { turn, zoom: 0.84 / Math.max(...needs), x: 0, y: 0 };
  }
  let view = start(), waiting = false;
  const colours = new Map();

  const cssColour = (name) => {
    const value = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((i) => parseInt(value.slice(i, i + 2), 16) / 255);
  };

  function project(p) { // a point of the box, from -1 to 1, as pixels of the canvas
    const [x, y, z] = turned(view.turn, p), w = 3.2 - z, aspect = canvas.clientWidth / canvas.clientHeight;
    return [((x * view.zoom) / aspect / w + view.x + 1) / 2 * canvas.clientWidth, (1 - (y * view.zoom) / w - view.y) / 2 * canvas.clientHeight];
  }

  const lengthText = (value) => source.unit === "nm" ? `${Number((value / 1000).toPrecision(3))} µm` : `${value} voxels`;
  function labelAxes() { // each on the edge of its direction that is lowest on the canvas
    const mid = project([0, 0, 0]);
    ["z", "y", "x"].forEach((name, axis) => {
      const ends = [[-1, -1], [-1, 1], [1, -1], [1, 1]].map((two) => { const p = [...two]; p.splice(axis, 0, 0); return project(p); });
      const at = ends.reduce((best, p) => (p[1] + 0.3 * Math.abs(p[0] - mid[0]) > best[1] + 0.3 * Math.abs(best[0] - mid[0]) ? p : best));
      const label = byId(`axis-${name}`);
      label.textContent = `${name} ${lengthText(source.extent[axis])}`;
      const long = label.offsetWidth;
      const x = at[0] < mid[0] - 20 ? at[0] - long - 6 : at[0] > mid[0] + 20 ? at[0] + 6 : at[0] - long / 2;
      label.style.transform = `translate(${Math.max(4, Math.min(canvas.clientWidth - long - 4, x))}px, ${at[1] + 4}px)`;
    });
  }

  function render(picking) {
    const ratio = window.devicePixelRatio || 1;
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    gl.viewport(0, 0, w, h);
    const back = picking ? [0, 0, 0] : cssColour("--shade");
    gl.clearColor(...back, 1); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.uniformMatrix3fv(uniform.turn, true, view.turn);
    gl.uniform3f(uniform.extent, ex, ey, ez);
    gl.uniform4f(uniform.lens, view.zoom, w / h, view.x, view.y);
    gl.bindVertexArray(mesh);
    parts.forEach((part, i) => {
      let c = picking ? [((i + 1) & 255) / 255, ((i + 1) >> 8) / 255, 0] : colours.get(part.id) || instanceColour(part.id);
      if (!picking && page.picked && page.picked !== part.id) c = c.map((v, k) => 0.35 * v + 0.65 * back[k]);
      gl.uniform4f(uniform.colour, ...c, picking ? 0 : 1);
      gl.drawElements(gl.TRIANGLES, part.count, gl.UNSIGNED_INT, 4 * part.first);
    });
    if (picking) return;
    gl.bindVertexArray(lines);
    gl.uniform4f(uniform.colour, ...cssColour("--soft"), 0); gl.drawArrays(gl.LINES, 0, 24);
    if (slices) { gl.uniform4f(uniform.colour, ...cssColour("--accent"), 0); gl.drawArrays(gl.LINES, 24, 8); }
    labelAxes();
    canvas.dataset.drawn = "yes";
  }

  function later() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; if (byId("spin").checked) { turnBy(0.008, 0); } render(false); if (byId("spin").checked) later(); });
  }
  const turnBy = (dx, dy) => { view.turn = multiply(multiply(about("x", dy), about("y", dx)), view.turn); };

  function pickAt(event) {
    const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
    render(true); // without antialiasing of its own, so only pixels that lie inside a surface are trusted
    const seen = new Uint8Array(4);
    gl.readPixels(Math.round((event.clientX - box.left) * ratio), canvas.height - 1 - Math.round((event.clientY - box.top) * ratio), 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, seen);
    render(false);
    const part = parts[seen[0] + 256 * seen[1] - 1];
    page.pick(part ? part.id : 0);
  }

  // Fingers and mouse: one turns, two move and zoom.
  const pointers = new Map();
  let moved = 0;
  canvas.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, event); moved = 0; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY) || 1;
      view.zoom *= apart(event) / apart(before);
    }
    if (pointers.size === 2 || event.shiftKey) { view.x += (2 * dx) / canvas.clientWidth; view.y -= (2 * dy) / canvas.clientHeight; }
    else turnBy(dx / 180, dy / 180);
    pointers.set(event.pointerId, event);
    later();
  });
  canvas.addEventListener("pointerup", (event) => { if (pointers.delete(event.pointerId) && moved < 5) pickAt(event); });
  canvas.addEventListener("pointercancel", (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault(); view.zoom *= Math.exp(-event.deltaY / 300); later();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const turns = { ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, -0.12], ArrowDown: [0, 0.12] };
    if (event.key in turns) { turnBy(...turns[event.key]); event.preventDefault(); later(); }
    if (event.key === "+" || event.key === "-") { view.zoom *= event.key === "+" ? 1.15 : 1 / 1.15; later(); }
  });
  byId("spin").addEventListener("input", later);
  byId("reset").addEventListener("click", () => { view = start(); later(); });
  window.addEventListener("resize", later);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);

  // Colours by a column of the table: a ramp like viridis, from its 2nd to its 98th percentile.
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]].map((c) => c.map((v) => v / 255));
  const ramp = (t) => { const k = Math.min(3, Math.floor(t * 4)), f = t * 4 - k; return RAMP[k].map((v, i) => v + f * (RAMP[k + 1][i] - v)); };
  const select = byId("colour-by");
  ["instance", ...Object.keys(columns || {}).filter((key) => key !== "instance")].forEach((key) => select.add(new Option(key.replaceAll("_", " "), key)));
  select.addEventListener("input", () => {
    const key = select.value, box = byId("ramp");
    colours.clear();
    box.hidden = key === "instance";
    if (key !== "instance") {
      const values = columns[key], sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
      const [low, high] = [0.02, 0.98].map((q) => sorted[Math.round(q * (sorted.length - 1))]);
      const curve = low > 0 && high / low > 30 ? Math.log : (v) => v;
      source.instances.forEach((id) => {
        const v = rowOf.has(id) ? values[rowOf.get(id)] : null;
        const t = (curve(v) - curve(low)) / (curve(high) - curve(low) || 1);
        colours.set(id, v === null ? [0.5, 0.5, 0.5] : ramp(Math.min(1, Math.max(0, t))));
      });
      const strip = document.createElement("i");
      strip.style.background = `linear-gradient(90deg, ${RAMP.map((c) => `rgb(${c.map((v) => Math.round(255 * v))})`)})`;
      box.replaceChildren(readable(low ?? 0), strip, readable(high ?? 0));
    }
    later();
  });
  page.on((what) => {
    if (what === "slice") fillLines();
    byId("picked").textContent = page.picked ? told(page.picked) : "";
    later();
  });
  fillLines();
  render(false);
})().catch((error) => {
  byId("scene").hidden = true;
  byId("no-webgl").textContent = `The 3D scene cannot be drawn: ${error.message}.`;
  byId("no-webgl").hidden = false;
});
