// What the parts of the page share: the data, unpacked, and which mitochondrion is picked.
const byId = (name) => document.getElementById(name);
const data = (name) => { const block = byId(name); return block ? JSON.parse(block.textContent) : null; };

const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// Deflated bytes (zlib, base64) as a typed array.
async function unpack(text, Type) {
  if (!("DecompressionStream" in window)) throw new Error("this browser is too old to unpack the data");
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Type(await new Response(stream).arrayBuffer());
}

const columns = data("columns");
const rowOf = new Map(columns && columns.instance ? columns.instance.map((id, row) => [id, row]) : []);

// Neighbouring numbers get colours far apart: steps of the golden angle round the circle of hues.
function instanceColour(id) {
  const hue = (id * 137.508) % 360, light = 0.58 + 0.1 * ((id % 3) - 1);
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return light - 0.62 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
  };
  return [part(0), part(8), part(4)];
}

const page = {
  picked: 0,
  slice: 0, // z of the slice that is shown, in voxels
  listeners: [],
  on(listener) { this.listeners.push(listener); },
  tell(what) { this.listeners.forEach((listener) => listener(what)); },
  pick(id) { this.picked = this.picked === id ? 0 : id; this.tell("picked"); },
};

const readable = (value) =>
  Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));

// A few words on an instance, from the table.
function told(id) {
  const row = rowOf.get(id);
  const lines = [`instance ${id}`];
  if (row === undefined) return lines[0];
  const say = (key, unit, factor) => {
    const value = columns[key] && columns[key][row];
    if (value !== null && value !== undefined) lines.push(`${key.replace(/_nm\d?$/, "").replaceAll("_", " ")} ${readable(value * factor)} ${unit}`);
  };
  say("volume_nm3", "µm³", 1e-9);
  if (!columns.volume_nm3) say("voxels", "", 1);
  say("length_nm", "nm", 1);
  say("sphericity", "", 1);
  return lines.join("\n");
}
