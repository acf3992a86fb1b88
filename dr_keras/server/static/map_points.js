// The points of the map: their colors, drawing them with WebGL or on a 2D canvas, and finding the nearest one.

const CELLS = 256; // on each side of the grid that finds the nearest point

const VERTEX = `
attribute vec2 place; attribute vec4 color; attribute float kind;
uniform vec2 scale, shift; uniform float size, chosen, fade;
varying vec4 tint;
void main() {
  gl_Position = vec4(place * scale + shift, 0.0, 1.0);
  bool other = chosen >= 0.0 && abs(kind - chosen) > 0.5;
  gl_PointSize = chosen >= 0.0 && !other ? size * 1.5 : size;
  tint = chosen < 0.0 ? color : other ? vec4(color.rgb, color.a * fade) : vec4(color.rgb, 0.95);
}`;
const FRAGMENT = `
precision mediump float;
varying vec4 tint;
void main() {
  float far = length(gl_PointCoord - 0.5) * 2.0;
  float alpha = tint.a * (1.0 - smoothstep(0.7, 1.0, far));
  gl_FragColor = vec4(tint.rgb * alpha, alpha);
}`;

// Colors of the classes that matter for a query or a filter; they are easy to tell apart on light and dark.
export const DISTINCT = [
  [224, 84, 44],
  [22, 148, 92],
  [138, 86, 214],
  [214, 152, 16],
  [24, 138, 196],
  [216, 66, 142],
];

// Hues a golden angle apart differ most from the previous ones; the lightness differs too, for color-blind people.
export function colorOf(number, dark) {
  const hue = (number * 137.508) % 360;
  const light = (dark ? [0.66, 0.56, 0.74] : [0.46, 0.38, 0.56])[number % 3];
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return light - 0.62 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
  };
  return [part(0), part(8), part(4)].map((value) => Math.round(255 * value));
}

export class PointPainter {
  constructor(canvas, onrestored) {
    this.canvas = canvas;
    this.count = 0;
    // Without a graphics card, a 2D canvas is faster.
    const wanted = { premultipliedAlpha: true, antialias: false, failIfMajorPerformanceCaveat: true };
    this.gl = canvas.getContext("webgl", wanted);
    if (this.gl) this.#prepare();
    else this.plain = canvas.getContext("2d");
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.#prepare();
      if (this.count) this.setPoints(this.places, this.kinds);
      onrestored();
    });
  }

  // Sets the points: x and y of each, and its class.
  setPoints(places, kinds) {
    const count = kinds.length;
    if (kinds !== this.kinds) this.order = shuffled(count);
    Object.assign(this, { places, kinds, count });
    if (!this.gl || !count) return;
    const sorted = new Float32Array(2 * count);
    this.order.forEach((number, n) => {
      sorted.set([places[2 * number], places[2 * number + 1]], 2 * n);
    });
    const sortedKinds = Float32Array.from(this.order, (number) => kinds[number]);
    this.#upload("place", sorted, 2, this.gl.FLOAT, false);
    this.#upload("kind", sortedKinds, 1, this.gl.FLOAT, false);
  }

  // Sets the color and opacity of each class.
  setTints(tints) {
    this.tints = tints;
    if (!this.gl) return;
    const colors = new Uint8Array(4 * this.count);
    for (let n = 0; n < this.count; n++) colors.set(tints[this.kinds[this.order[n]]], 4 * n);
    this.#upload("color", colors, 4, this.gl.UNSIGNED_BYTE, true);
  }

  // Draws the first `drawn` points. `view` has the size of the canvas in page pixels, the canvas pixels per page pixel,
  // the page pixels per unit of the map, and the center. `kind` is the class that stands out, or -1, and `fade` the
  // opacity of the others.
  draw(view, size, kind, fade, drawn) {
    if (this.gl) this.#drawFast(view, size * view.ratio, kind, fade, drawn);
    else if (this.count) this.#drawPlain(view, size, kind, fade, drawn);
  }

  #prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [type, source] of [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
      throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.at = (name) => gl.getUniformLocation(program, name);
    this.buffers = {};
    for (const name of ["place", "color", "kind"]) {
      this.buffers[name] = { buffer: gl.createBuffer(), at: gl.getAttribLocation(program, name) };
    }
  }

  #upload(name, values, size, type, normalized) {
    const gl = this.gl;
    const { buffer, at } = this.buffers[name];
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, type, normalized, 0, 0);
  }

  #drawFast({ width, height, unit, center }, size, kind, fade, drawn) {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.count) return;
    const across = (2 * unit) / width;
    const up = (2 * unit) / height;
    gl.uniform2f(this.at("scale"), across, up);
    gl.uniform2f(this.at("shift"), -center[0] * across, -center[1] * up);
    gl.uniform1f(this.at("size"), size);
    gl.uniform1f(this.at("chosen"), kind);
    gl.uniform1f(this.at("fade"), fade);
    gl.drawArrays(gl.POINTS, 0, drawn);
  }

  #drawPlain({ width, height, ratio, unit, center }, size, kind, fade, drawn) {
    const pen = this.plain;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const left = width / 2 - center[0] * unit;
    const top = height / 2 + center[1] * unit;
    const inks = this.tints.map(([r, g, b, a], number) => {
      const alpha = kind < 0 ? a / 255 : number === kind ? 0.95 : (a / 255) * fade;
      return `rgb(${r} ${g} ${b} / ${alpha.toFixed(3)})`;
    });
    for (let at = 0; at < drawn; at++) {
      const n = this.order[at];
      const x = left + this.places[2 * n] * unit;
      const y = top - this.places[2 * n + 1] * unit;
      if (x < 0 || y < 0 || x > width || y > height) continue;
      pen.fillStyle = inks[this.kinds[n]];
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
  }
}

// Points are drawn in random order: no class covers all others, and the first points are a fair sample.
function shuffled(count) {
  const order = Uint32Array.from({ length: count }, (_, n) => n);
  for (let n = count - 1; n > 0; n--) {
    const other = Math.floor(Math.random() * (n + 1));
    [order[n], order[other]] = [order[other], order[n]];
  }
  return order;
}

export class PointIndex {
  constructor(places) {
    const count = places.length / 2;
    const low = [Infinity, Infinity];
    const high = [-Infinity, -Infinity];
    for (let n = 0; n < 2 * count; n++) {
      low[n & 1] = Math.min(low[n & 1], places[n]);
      high[n & 1] = Math.max(high[n & 1], places[n]);
    }
    this.places = places;
    this.low = low;
    this.cell = (Math.max(high[0] - low[0], high[1] - low[1], 1e-6) / CELLS) * 1.0001;
    const starts = new Uint32Array(CELLS * CELLS + 1);
    const cells = new Uint32Array(count);
    for (let n = 0; n < count; n++) {
      const across = Math.floor((places[2 * n] - low[0]) / this.cell);
      const up = Math.floor((places[2 * n + 1] - low[1]) / this.cell);
      cells[n] = up * CELLS + across;
      starts[cells[n] + 1]++;
    }
    for (let c = 0; c < CELLS * CELLS; c++) starts[c + 1] += starts[c];
    const next = starts.slice();
    this.sorted = new Uint32Array(count);
    for (let n = 0; n < count; n++) this.sorted[next[cells[n]]++] = n;
    this.starts = starts;
  }

  // The number of the nearest point within a distance, or -1.
  nearest(x, y, reach) {
    if (!this.places.length) return -1;
    const clamp = (value) => Math.min(CELLS - 1, Math.max(0, value));
    const range = (value, low) => [
      clamp(Math.floor((value - reach - low) / this.cell)),
      clamp(Math.floor((value + reach - low) / this.cell)),
    ];
    const [across0, across1] = range(x, this.low[0]);
    const [up0, up1] = range(y, this.low[1]);
    let best = -1;
    let least = reach * reach;
    for (let up = up0; up <= up1; up++) {
      for (let s = this.starts[up * CELLS + across0]; s < this.starts[up * CELLS + across1 + 1]; s++) {
        const n = this.sorted[s];
        const far = (this.places[2 * n] - x) ** 2 + (this.places[2 * n + 1] - y) ** 2;
        if (far < least) [least, best] = [far, n];
      }
    }
    return best;
  }
}
