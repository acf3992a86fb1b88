// Shows where two images are alike: on a card while the pointer rests there, and in a dialog.
import { explain, imageURL } from "./client.js";

const DARKEST = 0.15; // of the brightness that is left where a part adds nothing
const SIDE = 256; // pixels of an overlay's longer side

const explanations = new Map(); // of the current query, by the id of the neighbor

export function forgetExplanations() {
  explanations.clear();
}

export function explanationOf(query, neighbor, pairs = false) {
  const key = `${neighbor} ${pairs}`;
  if (!explanations.has(key)) {
    const asked = explain(query, neighbor, pairs);
    asked.catch(() => explanations.delete(key));
    explanations.set(key, asked);
  }
  return explanations.get(key);
}

// The part of an image that the network sees: [left, top, width, height].
function seen(width, height, resize) {
  if (resize === "stretch") return [0, 0, width, height];
  const side = resize === "crop" ? Math.min(width, height) : Math.max(width, height);
  return [(width - side) / 2, (height - side) / 2, side, side];
}

// Draws darkness over an image where a map adds little. The canvas gets the image's shape, so that CSS fits both alike.
export function shade(canvas, image, map, resize) {
  const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight, 1);
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const largest = Math.max(1e-12, ...map.flat());
  const cells = document.createElement("canvas");
  cells.height = map.length;
  cells.width = map[0].length;
  const pixels = new ImageData(cells.width, cells.height);
  for (const [place, value] of map.flat().entries()) {
    const light = Math.max(0, value) / largest;
    pixels.data[4 * place + 3] = 255 * (1 - DARKEST) * (1 - light);
  }
  cells.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const [left, top, width, height] = seen(canvas.width, canvas.height, resize);
  if (resize === "crop") {
    context.fillStyle = `rgb(0 0 0 / ${1 - DARKEST})`;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.clearRect(left, top, width, height);
  }
  context.drawImage(cells, left, top, width, height);
}

export class WhyDialog {
  constructor(dialog) {
    this.dialog = dialog;
    const part = (name) => dialog.querySelector(`[data-part="${name}"]`);
    this.images = { query: part("query"), neighbor: part("neighbor") };
    this.shades = { query: part("query-shade"), neighbor: part("neighbor-shade") };
    this.text = part("text");
    this.reset = part("reset");
    this.reset.addEventListener("click", () => this.#showAll());
    part("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    for (const side of ["query", "neighbor"]) {
      const figure = this.images[side].parentElement;
      figure.addEventListener("click", (event) => this.#choose(side, event));
      figure.addEventListener("keydown", (event) => this.#move(side, event));
    }
  }

  async show(query, neighbor) {
    this.found = null;
    this.text.textContent = "";
    for (const canvas of Object.values(this.shades)) canvas.width = 1; // empties it
    this.images.query.src = imageURL(query);
    this.images.neighbor.src = imageURL(neighbor);
    if (!this.dialog.open) this.dialog.showModal();
    const asked = `${query} ${neighbor}`;
    this.asked = asked;
    try {
      const found = await explanationOf(query, neighbor, true);
      await Promise.all(Object.values(this.images).map((image) => image.decode()));
      if (this.asked !== asked) return;
      this.found = found;
      this.#showAll();
    } catch (error) {
      if (this.asked === asked) this.text.textContent = error.message;
    }
  }

  #showAll() {
    const { found } = this;
    if (!found) return;
    this.spot = null;
    this.#shade(found.query_map, found.neighbor_map);
    const share = found.exact
      ? `The parts of each picture add up to it, with ${found.bias.toFixed(3)} that comes from neither.`
      : "Approximate: by how much it falls when a part is covered.";
    const hint = found.pairs ? " Click a spot of one picture to see what answers to it in the other." : "";
    this.text.textContent = `Similarity (cosine) ${found.cosine.toFixed(3)}. ${share}${hint}`;
    this.reset.hidden = true;
  }

  #shade(query, neighbor) {
    shade(this.shades.query, this.images.query, query, this.found.resize);
    shade(this.shades.neighbor, this.images.neighbor, neighbor, this.found.resize);
  }

  #choose(side, event) {
    const image = this.images[side];
    const [left, top, width, height] = seen(image.clientWidth, image.clientHeight, this.found?.resize);
    const bounds = image.getBoundingClientRect();
    this.#showSpot(side, (event.clientY - bounds.top - top) / height, (event.clientX - bounds.left - left) / width);
  }

  #move(side, event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Enter: [0, 0] };
    const step = steps[event.key];
    if (!step || !this.found?.pairs) return;
    event.preventDefault();
    const count = this.found.pairs.length;
    const [row, column] = this.spot?.side === side ? this.spot.place : [Math.floor(count / 2), Math.floor(count / 2)];
    this.#showSpot(side, (row + step[0] + 0.5) / count, (column + step[1] + 0.5) / count);
  }

  // Lights one cell of one picture, and in the other what it is alike to.
  #showSpot(side, down, right) {
    const pairs = this.found?.pairs;
    if (!pairs || down < 0 || right < 0 || down >= 1 || right >= 1) return;
    const count = pairs.length;
    const row = Math.floor(down * count);
    const column = Math.floor(right * count);
    const all = [...Array(count).keys()];
    const here = all.map((r) => all.map((c) => Number(r === row && c === column)));
    const there = side === "query" ? pairs[row][column] : all.map((r) => all.map((c) => pairs[r][c][row][column]));
    this.#shade(...(side === "query" ? [here, there] : [there, here]));
    this.spot = { side, place: [row, column] };
    const total = there.flat().reduce((sum, value) => sum + value, 0);
    this.text.textContent = `This part adds ${total.toFixed(3)} of ${this.found.cosine.toFixed(3)}.`;
    this.reset.hidden = false;
  }
}
