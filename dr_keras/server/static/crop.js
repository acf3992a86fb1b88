// Chooses a part of the query to search for: a rectangle, drawn with the pointer or moved with the arrow keys.

const SMALLEST = 0.02; // of a side
const STEP = 0.02; // of an arrow key
const START = [0.25, 0.25, 0.5, 0.5];
const DIGITS = 3;

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Left, top, width and height in shares of the picture, from text such as 0.25,0,0.5,1; null if it is none.
export function parseCrop(text) {
  const numbers = (text ?? "").split(",").map(Number);
  const [left, top, width, height] = numbers;
  const good = numbers.length === 4 && numbers.every((one) => one >= 0 && one <= 1);
  return good && width > 0 && height > 0 && left + width <= 1.001 && top + height <= 1.001 ? numbers : null;
}

// Places a frame over the part of a picture, which fills its parent.
export function placeFrame(frame, [left, top, width, height]) {
  const percent = (share) => `${100 * share}%`;
  Object.assign(frame.style, {
    left: percent(left),
    top: percent(top),
    width: percent(width),
    height: percent(height),
  });
}

export class CropDialog {
  constructor(dialog, onchoose) {
    this.dialog = dialog;
    const part = (name) => dialog.querySelector(`[data-part="${name}"]`);
    this.image = part("image");
    this.frame = part("frame");
    this.text = part("text");
    this.figure = this.image.parentElement;
    part("search").addEventListener("click", () => this.#close(() => onchoose(this.#asText())));
    part("whole").addEventListener("click", () => this.#close(() => onchoose(null)));
    part("close").addEventListener("click", () => this.#close());
    this.figure.addEventListener("pointerdown", (event) => this.#begin(event));
    this.figure.addEventListener("pointermove", (event) => this.#draw(event));
    this.figure.addEventListener("pointerup", () => this.#end());
    this.figure.addEventListener("pointercancel", () => this.#end());
    this.figure.addEventListener("keydown", (event) => this.#press(event));
  }

  show(url, crop) {
    this.image.src = url;
    this.#set(crop ?? START);
    this.dialog.showModal();
    this.figure.focus();
  }

  #close(then) {
    this.dialog.close();
    then?.();
  }

  #asText() {
    // Rounded so that the part stays inside the picture.
    const [left, top, width, height] = this.part;
    const scale = 10 ** DIGITS;
    const whole = [left, top].map((one) => Math.floor(one * scale));
    const sides = [width, height].map((one, axis) => clamp(Math.round(one * scale), 1, scale - whole[axis]));
    return [...whole, ...sides].map((one) => one / scale).join(",");
  }

  #set(part) {
    this.part = part;
    placeFrame(this.frame, part);
    const percent = part.map((share) => `${Math.round(100 * share)}%`);
    this.text.textContent = `${percent[2]} of the width and ${percent[3]} of the height, from ${percent[0]} and ${percent[1]}.`;
  }

  #place(event) {
    const bounds = this.image.getBoundingClientRect();
    return [
      clamp((event.clientX - bounds.left) / bounds.width, 0, 1),
      clamp((event.clientY - bounds.top) / bounds.height, 0, 1),
    ];
  }

  #begin(event) {
    if (event.button) return;
    event.preventDefault();
    this.figure.focus();
    this.figure.setPointerCapture(event.pointerId);
    this.corner = this.#place(event);
  }

  #draw(event) {
    if (!this.corner) return;
    const here = this.#place(event);
    const low = here.map((one, axis) => Math.min(one, this.corner[axis], 1 - SMALLEST));
    const high = here.map((one, axis) => Math.max(one, this.corner[axis], low[axis] + SMALLEST));
    this.#set([low[0], low[1], high[0] - low[0], high[1] - low[1]]);
  }

  #end() {
    this.corner = null;
  }

  // Arrow keys move the part; with Shift, they move its lower right corner.
  #press(event) {
    const steps = { ArrowLeft: [0, -STEP], ArrowRight: [0, STEP], ArrowUp: [1, -STEP], ArrowDown: [1, STEP] };
    const [axis, by] = steps[event.key] ?? [];
    if (axis === undefined) return;
    event.preventDefault();
    const part = [...this.part];
    if (event.shiftKey) part[axis + 2] = clamp(part[axis + 2] + by, SMALLEST, 1 - part[axis]);
    else part[axis] = clamp(part[axis] + by, 0, 1 - part[axis + 2]);
    this.#set(part);
  }
}
