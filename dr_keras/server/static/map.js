// The map: each image of the gallery is a point.
import { getMap, getPoint, imageURL } from "./client.js";
import { colorOf, DISTINCT, PointIndex, PointPainter } from "./map_points.js";

const REACH = 14; // pixels: a point at most this far from the pointer counts as under it
const HOVER_MILLISECONDS = 70; // the pointer rests for this long before an image is loaded
const MAX_ZOOM = 400;
// While the map moves, fewer points are drawn after a frame slower than this, and more after a faster one. A graphics
// card draws 100,000 points in time; software rendering does not.
const SLOW_MILLISECONDS = 34;
const FAST_MILLISECONDS = 22;
const REST_MILLISECONDS = 160; // without movement, after which all points are drawn

export class GalleryMap {
  constructor(parts) {
    Object.assign(this, parts);
    this.key = null;
    this.count = 0;
    this.zoom = 1;
    this.center = [0, 0];
    this.place = null;
    this.filter = [];
    this.hovered = -1;
    this.pinned = -1;
    this.known = new Map();
    this.fingers = new Map();
    this.share = 1; // of the points, drawn while the map moves
    this.last = 0;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.painter = new PointPainter(this.points, () => this.#color());
    this.dark.addEventListener("change", () => this.#color());
    new ResizeObserver(() => this.#draw()).observe(this.points);
    this.#listen();
  }

  async load() {
    const data = await getMap();
    const view = new DataView(data);
    if (view.getUint32(0) !== 0x444b4d31)
      throw new Error("The map has a format that this page does not know; reload the page.");
    const count = view.getUint32(4, true);
    const about = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 12 + 12 * count)));
    if (about.key === this.key) return;
    this.key = about.key;
    this.count = count;
    this.classes = about.classes;
    this.places = new Float32Array(data, 12, 2 * count);
    this.kinds = new Uint32Array(data, 12 + 8 * count, count);
    this.known.clear();
    this.hovered = this.pinned = -1;
    this.index = new PointIndex(this.places);
    this.painter.setPoints(this.places, this.kinds);
    this.#color();
    this.status.textContent = `${count.toLocaleString("en")} images, laid out by ${about.method}`;
    this.#showTip();
  }

  show(place, filter) {
    this.place = place;
    this.filter = filter;
    this.#color();
  }

  zoomBy(what) {
    if (what === "all") {
      this.zoom = 1;
      this.center = [0, 0];
      this.#draw();
    } else this.#zoomAt(what === "in" ? 1.6 : 1 / 1.6, this.points.clientWidth / 2, this.points.clientHeight / 2);
  }

  // ---- Drawing

  #color() {
    if (!this.count) return this.#draw();
    const shown = this.#shown();
    const special = this.place || this.filter.length;
    const alpha = this.count > 20000 ? 150 : 190;
    const tints = this.classes.map((_, number) => [...colorOf(number, this.dark.matches), special ? 64 : alpha]);
    shown.forEach((number, n) => {
      tints[number] = [...(special ? DISTINCT[n] : tints[number].slice(0, 3)), special ? 235 : alpha];
    });
    this.tints = tints;
    this.painter.setTints(tints);
    this.#legend(shown);
    this.#draw();
  }

  // The numbers of the classes in the legend: those of the filter, then those with the most neighbors.
  #shown() {
    const counts = new Map();
    if (this.place?.key === this.key) {
      for (const n of this.place.neighbors) counts.set(this.kinds[n], (counts.get(this.kinds[n]) || 0) + 1);
    }
    this.classes.forEach((one, number) => {
      if (this.filter.includes(one.label)) counts.set(number, Infinity);
    });
    const most = DISTINCT.length;
    if (!counts.size && this.classes.length <= most) return this.classes.map((_, number) => number);
    return [...counts]
      .sort((a, b) => b[1] - a[1])
      .slice(0, most)
      .map(([number]) => number);
  }

  #legend(numbers) {
    const lines = [];
    const add = (className, color, text) => {
      const dot = document.createElement("i");
      dot.className = className;
      if (color) dot.style.background = `rgb(${color.slice(0, 3)})`;
      const line = document.createElement("li");
      line.append(dot, text);
      lines.push(line);
    };
    if (this.place) {
      add("query", null, "the query");
      add("ring", null, `its ${this.place.neighbors.length} neighbors`);
    }
    for (const number of numbers) {
      const name = this.classes[number].name;
      add("", this.tints[number], name === "-" ? "no class" : this.printable(name));
    }
    this.legend.replaceChildren(...lines);
  }

  // The opacity of the other classes while the pointer is on one; with a query or filter they are already faint.
  get #fade() {
    return this.place || this.filter.length ? 1 : 0.18;
  }

  // Page pixels per unit of the map.
  get #unit() {
    return (Math.min(this.points.clientWidth, this.points.clientHeight) / 2.15) * this.zoom;
  }

  #toScreen(x, y) {
    const unit = this.#unit;
    return [
      this.points.clientWidth / 2 + (x - this.center[0]) * unit,
      this.points.clientHeight / 2 - (y - this.center[1]) * unit,
    ];
  }

  #toMap(left, top) {
    const unit = this.#unit;
    return [
      this.center[0] + (left - this.points.clientWidth / 2) / unit,
      this.center[1] - (top - this.points.clientHeight / 2) / unit,
    ];
  }

  #draw(moving = false) {
    this.moving ||= moving;
    if (!this.frame) this.frame = requestAnimationFrame(() => this.#now());
  }

  #now() {
    this.frame = 0;
    const width = this.points.clientWidth;
    const height = this.points.clientHeight;
    if (!width || !height) return;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    for (const canvas of [this.points, this.overlay]) {
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
    }
    // Points grow slowly while zooming in, and are smaller if there are many.
    const size = Math.min(18, (this.count > 50000 ? 2.6 : this.count > 10000 ? 3.6 : 5) * this.zoom ** 0.35);
    const drawn = this.moving ? Math.ceil(this.count * this.#pace()) : this.count;
    this.moving = false;
    const chosen = this.pinned >= 0 ? this.pinned : this.hovered;
    const kind = chosen >= 0 && this.classes.length > 1 ? this.kinds[chosen] : -1;
    const view = { width, height, ratio, unit: this.#unit, center: this.center };
    this.painter.draw(view, size, kind, this.#fade, drawn);
    this.#drawMarks(ratio, chosen);
    this.#placeTip(chosen);
  }

  // The share of the points that can be drawn in time while the map moves.
  #pace() {
    const now = performance.now();
    const took = now - this.last;
    this.last = now;
    if (took < 500) {
      if (took > SLOW_MILLISECONDS) this.share = Math.max(0.05, this.share * 0.75);
      else if (took < FAST_MILLISECONDS) this.share = Math.min(1, this.share * 1.08);
    }
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.#draw(), REST_MILLISECONDS);
    return this.share;
  }

  #drawMarks(ratio, chosen) {
    const pen = this.overlay.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.points.clientWidth, this.points.clientHeight);
    if (!this.count) return;
    const style = getComputedStyle(document.documentElement);
    const [ink, blue, paper] = ["--ink", "--blue", "--paper"].map((name) => style.getPropertyValue(name));
    const ring = (x, y, radius, color, width) => {
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.lineWidth = width + 2;
      pen.strokeStyle = paper;
      pen.stroke();
      pen.lineWidth = width;
      pen.strokeStyle = color;
      pen.stroke();
    };
    const at = (n) => this.#toScreen(this.places[2 * n], this.places[2 * n + 1]);
    if (this.place && this.place.key === this.key) {
      for (const n of this.place.neighbors) ring(...at(n), 6, ink, 1.5);
      const [x, y] = this.#toScreen(this.place.x, this.place.y);
      pen.fillStyle = blue;
      pen.beginPath();
      pen.arc(x, y, 8, 0, 2 * Math.PI);
      pen.fill();
      ring(x, y, 8, ink, 2);
      ring(x, y, 15, blue, 2);
    }
    if (chosen >= 0) ring(...at(chosen), 9, blue, 2.5);
  }

  // ---- Points under the pointer

  #nearest(left, top) {
    return this.count ? this.index.nearest(...this.#toMap(left, top), REACH / this.#unit) : -1;
  }

  #hover(number) {
    if (this.pinned >= 0 || number === this.hovered) return;
    this.hovered = number;
    this.#showTip();
    this.#draw();
  }

  #pin(number) {
    this.pinned = number;
    this.hovered = -1;
    this.#showTip();
    this.#draw();
  }

  // Shows the image of the point that is pinned or under the pointer.
  #showTip() {
    clearTimeout(this.timer);
    const number = this.pinned >= 0 ? this.pinned : this.hovered;
    this.tip.classList.toggle("pinned", this.pinned >= 0);
    if (number < 0) {
      this.tip.hidden = true;
      return;
    }
    const fill = (one) => {
      if (number !== (this.pinned >= 0 ? this.pinned : this.hovered)) return;
      this.about = one;
      const name = one.class_name === "-" ? "" : this.printable(one.class_name);
      this.className.textContent = name;
      this.name.textContent = this.printable(one.name);
      this.image.alt = this.printable([name, one.name].filter(Boolean).join(", "));
      this.image.classList.remove("failed");
      this.image.src = imageURL(one.id);
      this.tip.hidden = false;
      this.#draw();
    };
    if (this.known.has(number)) return fill(this.known.get(number));
    this.tip.hidden = true;
    this.timer = setTimeout(
      async () => {
        try {
          const one = await getPoint(this.key, number);
          this.known.set(number, one);
          fill(one);
        } catch (error) {
          if (error.status === 409) {
            await this.load();
            return;
          }
          this.status.textContent = error.message;
        }
      },
      this.pinned >= 0 ? 0 : HOVER_MILLISECONDS,
    );
  }

  #placeTip(number) {
    if (number < 0 || this.tip.hidden) return;
    const [x, y] = this.#toScreen(this.places[2 * number], this.places[2 * number + 1]);
    const width = this.tip.offsetWidth;
    const height = this.tip.offsetHeight;
    let left = x + 18;
    if (left + width > this.points.clientWidth - 8) left = x - width - 18;
    const keep = (value, most) => Math.max(8, Math.min(value, most - 8));
    left = keep(left, this.points.clientWidth - width);
    const top = keep(y - height / 2, this.points.clientHeight - height);
    this.tip.style.transform = `translate(${left}px, ${top}px)`;
  }

  // ---- Input

  #zoomAt(factor, left, top) {
    const [x, y] = this.#toMap(left, top);
    this.zoom = Math.min(MAX_ZOOM, Math.max(0.5, this.zoom * factor));
    const [x2, y2] = this.#toMap(left, top);
    this.center = [this.center[0] + x - x2, this.center[1] + y - y2];
    this.#draw(true);
  }

  #pan(across, down) {
    const unit = this.#unit;
    const keep = (value) => Math.max(-1.5, Math.min(1.5, value));
    this.center = [keep(this.center[0] - across / unit), keep(this.center[1] + down / unit)];
    this.#draw(true);
  }

  // Pins the next point in a direction from the pinned one, or else the point nearest to the middle.
  #step(across, up) {
    const from = this.pinned >= 0 && (across || up) ? this.pinned : -1;
    const start = from < 0 ? this.center : [this.places[2 * from], this.places[2 * from + 1]];
    let best = -1;
    let least = Number.POSITIVE_INFINITY;
    for (let number = 0; number < this.count; number++) {
      const [x, y] = [this.places[2 * number] - start[0], this.places[2 * number + 1] - start[1]];
      const ahead = x * across + y * up;
      const aside = Math.abs(x * up - y * across);
      if (number === from || (from >= 0 && (ahead <= 0 || aside > ahead))) continue;
      const away = x * x + y * y;
      if (away < least) [best, least] = [number, away];
    }
    if (best < 0) return;
    const [left, top] = this.#toScreen(this.places[2 * best], this.places[2 * best + 1]);
    const { clientWidth: width, clientHeight: height } = this.points;
    if (left < 0 || top < 0 || left > width || top > height) this.#pan(width / 2 - left, height / 2 - top);
    this.#pin(best);
  }

  #listen() {
    const canvas = this.points;
    let moved = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
      if (this.fingers.size === 1) moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const old = this.fingers.get(event.pointerId);
      if (!old) {
        this.#hover(this.#nearest(event.offsetX, event.offsetY));
        return;
      }
      const now = [event.offsetX, event.offsetY];
      if (this.fingers.size === 1) this.#pan(now[0] - old[0], now[1] - old[1]);
      else if (this.fingers.size === 2) {
        const [other] = [...this.fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
        const apart = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
        this.#pan((now[0] - old[0]) / 2, (now[1] - old[1]) / 2);
        this.#zoomAt(apart(now) / apart(old), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      }
      moved += Math.hypot(now[0] - old[0], now[1] - old[1]);
      this.fingers.set(event.pointerId, now);
    });
    canvas.addEventListener("pointerup", (event) => {
      const alone = this.fingers.size === 1;
      this.fingers.delete(event.pointerId);
      if (alone && moved < 6) this.#pin(this.#nearest(event.offsetX, event.offsetY));
    });
    canvas.addEventListener("pointercancel", (event) => this.fingers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.#hover(-1));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const lines = event.deltaMode === 1 ? 20 : 1;
        this.#zoomAt(
          Math.exp(-Math.max(-240, Math.min(240, event.deltaY * lines)) / 300),
          event.offsetX,
          event.offsetY,
        );
      },
      { passive: false },
    );
    canvas.addEventListener("dblclick", (event) => this.#zoomAt(2.2, event.offsetX, event.offsetY));
    canvas.addEventListener("keydown", (event) => {
      const step = 60;
      const keys = {
        ArrowLeft: () => this.#pan(step, 0),
        ArrowRight: () => this.#pan(-step, 0),
        ArrowUp: () => this.#pan(0, step),
        ArrowDown: () => this.#pan(0, -step),
        "+": () => this.zoomBy("in"),
        "=": () => this.zoomBy("in"),
        "-": () => this.zoomBy("out"),
        0: () => this.zoomBy("all"),
        Escape: () => this.#pin(-1),
        Enter: () => this.#step(0, 0),
      };
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      if (event.shiftKey && steps[event.key]) this.#step(...steps[event.key]);
      else keys[event.key]();
    });
    this.image.addEventListener("error", () => this.image.classList.add("failed"));
    this.search.addEventListener("click", () => {
      const { id } = this.about;
      this.#pin(-1); // now, and not with the results: another point may be chosen until they are there
      this.onsearch(id);
    });
  }
}
