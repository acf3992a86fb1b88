// Draws the page. User actions call the functions in `actions`, which app.js sets.
import { imageURL } from "./client.js";
import { parseCrop, placeFrame } from "./crop.js";
import {
  COUNTS,
  condition,
  gallery,
  hasQuery,
  isCalibrated,
  isSingle,
  KILOMETERS,
  known,
  MAX_DISTANCE,
  marks,
  NO_CLASS,
  parsePlace,
  readState,
  uploads,
  without,
} from "./state.js";

export const $ = (id) => document.getElementById(id);
export const actions = { go: null, searchWith: null, mark: null, crop: null, why: null, shade: null };

const number = new Intl.NumberFormat("en");
const RETRY_MILLISECONDS = 1500; // until a failed thumbnail is requested again

// ---- Text

export const plural = (count, word, more = `${word}s`) => `${number.format(count)} ${count === 1 ? word : more}`;
export const bytes = (count) => plural(count, "byte");
export const printable = (text) => text.replace(/[\ud800-\udfff]/gu, "\ufffd");
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
const className = (image) => (image.class_name === NO_CLASS ? "" : image.class_name);
const description = (image) => [className(image), image.name].filter(Boolean).join(", ");

// ---- Images

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function thumbnail(id, alt) {
  const image = element("img", { alt: printable(alt), decoding: "async", loading: "lazy", draggable: false });
  let attempts = 0;
  image.addEventListener("error", () => {
    image.classList.add("failed");
    attempts++;
    if (attempts > 2) {
      image.replaceWith(element("span", { className: "gone" }, "no image"));
      return;
    }
    setTimeout(() => {
      image.src = imageURL(id);
    }, RETRY_MILLISECONDS * attempts); // the server may be busy
  });
  image.addEventListener("load", () => image.classList.remove("failed"));
  image.src = imageURL(id);
  return image;
}

function markButtons(image) {
  const kinds = [
    ["more", "+", "More like"],
    ["less", "\u2212", "Less like"],
  ];
  return kinds.map(([kind, sign, words]) => {
    const button = element("button", { type: "button", className: `mark ${kind}`, title: `${words} this` }, sign);
    button.dataset.kind = kind;
    button.setAttribute("aria-label", `${words} ${printable(description(image))}`);
    button.addEventListener("click", () => actions.mark(image.id, kind));
    return button;
  });
}

function whyButton(image, find) {
  const button = element("button", { type: "button", className: "why-button", title: "Why is it alike?" }, "?");
  button.setAttribute("aria-label", `Why is ${printable(description(image))} alike?`);
  button.addEventListener("click", () => actions.why(image.id));
  find.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse") actions.shade(image.id, find);
  });
  find.addEventListener("pointerleave", () => actions.shade(null, find));
  return button;
}

// Frames the part of a result that was found, on the whole picture; its size is known once it is loaded.
function framePart(find, picture, [left, top, width, height]) {
  find.classList.add("part");
  find.setAttribute("aria-description", "A part of it was found.");
  picture.addEventListener("load", () => {
    const [across, down] = [picture.naturalWidth, picture.naturalHeight];
    const box = { x: left * across, y: top * down, width: width * across, height: height * down };
    const frame = $("part-frame").content.firstElementChild.cloneNode(true);
    frame.setAttribute("viewBox", `0 0 ${across} ${down}`);
    for (const line of frame.children) {
      for (const [name, value] of Object.entries(box)) line.setAttribute(name, value);
    }
    find.querySelector("svg")?.remove();
    find.append(frame);
  });
}

function card(image, label) {
  known.set(image.id, image);
  const find = element("button", { type: "button", className: "find", title: printable(image.id) });
  find.setAttribute("aria-label", `Search with ${printable(description(image))}`);
  const picture = thumbnail(image.id, description(image));
  find.append(picture);
  if (image.part) framePart(find, picture, image.part);
  find.addEventListener("click", () => actions.searchWith(image.id));
  const found = image.distance !== undefined;
  const title = element("span", { className: "class" }, printable(className(image) || image.name));
  const copies = image.copies?.length ? ` and ${image.copies.length} like it` : "";
  const below = found ? image.distance.toFixed(3) + copies : className(image) ? printable(image.name) : "";
  const distance = element("span", { className: "distance" }, below);
  const line = element("div", { className: "line" }, distance, ...markButtons(image));
  const made = element("li", { className: "card" }, find, title, line);
  if (found && actions.why && !image.part) made.append(whyButton(image, find));
  made.dataset.id = image.id;
  if (label !== null && found) {
    made.classList.add(image.label === label ? "same" : "other");
    distance.title = image.label === label ? "same class as the query" : "another class";
  } else distance.classList.add("plain-distance");
  return made;
}

export function showMarks() {
  for (const one of $("grid").children) {
    const kind = marks.get(one.dataset.id);
    one.classList.toggle("is-more", kind === "more");
    one.classList.toggle("is-less", kind === "less");
    for (const button of one.querySelectorAll(".mark")) {
      button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    }
  }
  const kinds = [...marks.values()];
  const more = kinds.filter((kind) => kind === "more").length;
  const less = kinds.length - more;
  $("marked").hidden = !kinds.length;
  $("marked-count").textContent = [more && `${more} more like this`, less && `${less} less`].filter(Boolean).join(", ");
  $("marked-search").disabled = !hasQuery(readState()) && !more;
}

// ---- The query and the filters

function queryItem(kind, first, image, text, title, remove) {
  const button = element("button", { type: "button", title: "Remove" }, "\u00d7");
  button.setAttribute("aria-label", `Remove ${title}`);
  button.addEventListener("click", remove);
  const relation = kind === "less" ? "less like" : first ? "like" : "more like";
  const words = [element("span", { className: "kind" }, relation), element("span", {}, text)];
  return element("li", { className: kind, title }, image, ...words, button);
}

export function showQuery(state) {
  const items = [];
  if (state.upload) {
    const upload = uploads.get(state.upload);
    const image = upload
      ? element("img", { alt: "Your image", src: upload.url })
      : element("span", { className: "gone" }, "no image");
    const text = upload ? "your image" : "not available";
    items.push(queryItem("more", true, image, text, "your image", () => actions.go({ upload: null })));
  }
  for (const [kind, ids] of [
    ["more", state.q],
    ["less", state.not],
  ]) {
    for (const id of ids) {
      const image = known.get(id) || { class_name: NO_CLASS, name: id.split("/").pop() };
      const text = printable(className(image) || image.name);
      const remove = () => actions.go(without(readState(), id));
      const title = printable(description(image));
      items.push(queryItem(kind, !items.length, thumbnail(id, description(image)), text, title, remove));
    }
  }
  $("query-images").replaceChildren(...items);
  $("query").hidden = !items.length;
  const part = isSingle(state) && hasQuery(state) && items[0].querySelector("img") ? parseCrop(state.crop) : null;
  $("part").hidden = !isSingle(state) || !hasQuery(state);
  $("part").textContent = part ? "Change the part" : "Search for a part";
  if (part) showPart(items[0], part);
}

// Frames the part of the query that is searched for.
function showPart(item, part) {
  const image = item.querySelector("img");
  const frame = element("i", { className: "frame" });
  frame.setAttribute("aria-hidden", "true");
  const inside = element("span", { className: "inside" });
  image.replaceWith(inside);
  inside.append(image, frame);
  item.querySelector(".kind").textContent = "like a part of";
  placeFrame(frame, part);
}

function classChip(state, label) {
  const name = gallery.classes.find((one) => one.label === label)?.name || label;
  const button = element("button", { type: "button" }, `${printable(name)} \u00d7`);
  button.setAttribute("aria-label", `Remove the filter ${printable(name)}`);
  button.addEventListener("click", () => actions.go({ classes: state.classes.filter((one) => one !== label) }));
  return element("li", {}, button);
}

export function showFilters(state) {
  const calibrated = gallery.stats?.calibrated ?? null;
  $("class-chips").replaceChildren(...state.classes.map((label) => classChip(state, label)));
  $("near").value = state.d === "auto" ? (calibrated ?? MAX_DISTANCE) : (state.d ?? MAX_DISTANCE);
  $("near-auto").hidden = !isCalibrated(state);
  showDistance(state.d);
  const place = COUNTS.findIndex((count) => count >= state.k);
  $("k").value = place < 0 ? COUNTS.length - 1 : place;
  $("k-value").textContent = state.k;
  $("where").value = state.where;
  showPhotoFilters(state);
  $("distinct").checked = state.distinct;
  $("whole").checked = state.whole;
  $("whole-field").hidden = !gallery.stats?.parts;
  $("variety").value = state.variety;
  showVariety(state.variety);
  const set = [
    state.classes.length > 0,
    state.d !== null,
    state.where !== "",
    state.distinct,
    state.whole,
    state.variety > 0,
  ];
  set.push(state.from !== "", state.to !== "", state.camera !== "", parsePlace(state.at) !== null);
  const count = set.filter(Boolean).length;
  $("filters-count").textContent = count ? ` \u00b7 ${count} set` : "";
}

// The filters of what photos say of themselves, as far as there are photos that do.
function showPhotoFilters(state) {
  const photos = gallery.photos;
  $("taken-field").hidden = !photos?.first && !state.from && !state.to;
  for (const name of ["from", "to"]) {
    if (photos?.first) Object.assign($(name), { min: day(photos.first), max: day(photos.last) });
    $(name).value = state[name];
  }
  const cameras = (photos?.cameras ?? []).map(({ model, count }) => [model, `${printable(model)} (${count})`]);
  if (state.camera && !cameras.some(([model]) => model === state.camera))
    cameras.push([state.camera, printable(state.camera)]);
  $("camera-field").hidden = !cameras.length;
  const options = [["", "any camera"], ...cameras].map(([value, text]) => element("option", { value }, text));
  $("camera").replaceChildren(...options);
  $("camera").value = state.camera;
  $("place-field").hidden = !photos?.placed && !state.at;
  $("at").value = state.at;
  const near = KILOMETERS.findIndex((one) => one >= state.km);
  $("km").value = near < 0 ? KILOMETERS.length - 1 : near;
  showKilometers(state.km);
  $("at-query").hidden = !placeOfQuery(state);
}

const day = (time) => time.slice(0, 10);

export function showKilometers(km) {
  $("km-value").textContent = `within ${number.format(km)} km`;
}

// Where the only image of the query was taken, as text; empty if that is unknown.
export function placeOfQuery(state) {
  const { latitude, longitude } = (isSingle(state) && known.get(state.q[0])?.attributes) || {};
  return latitude === undefined || longitude === undefined ? "" : `${latitude}, ${longitude}`;
}

export function showDistance(d) {
  const text = d === null ? "any distance" : d === "auto" ? "calibrated" : `up to ${Number(d).toFixed(2)}`;
  $("near-value").textContent = text;
}

export function showVariety(variety) {
  $("variety-value").textContent = variety ? `${Math.round(100 * variety)}%` : "nearest first";
}

// ---- Results

function showStatus(text, ...more) {
  $("status").replaceChildren(...(text ? [element("b", {}, text), ...more] : []));
}

function showResults(results, label) {
  $("grid").replaceChildren(...results.map((image) => card(image, label)));
  $("none").hidden = true;
  showMarks();
}

export function showAnswer(state, answer) {
  const found = answer.results;
  const label = answer.label === NO_CLASS ? null : answer.label;
  showResults(found, label);
  if (!found.length) {
    showNoMatch(state, answer);
    return;
  }
  const distances = found.map((one) => one.distance);
  const nearest = Math.min(...distances).toFixed(3);
  const farthest = Math.max(...distances).toFixed(3);
  const range = found.length > 1 ? `, at distances from ${nearest} to ${farthest}` : "";
  const same = found.filter((one) => one.label === label);
  const share = label === null ? "" : `; ${same.length} of class ${printable(same[0]?.class_name || label)}`;
  showStatus(plural(found.length, "image"), range + share);
}

function showNoMatch(state, answer) {
  const limited = answer.max_distance !== null;
  const filtered = condition(state) !== "";
  const near = limited ? `within a distance of ${answer.max_distance.toFixed(2)}` : "in the gallery";
  showStatus("");
  $("none").hidden = false;
  $("none-why").textContent = `There is no image ${filtered ? "that meets the filters " : ""}${near}.`;
  $("none-near").hidden = !limited;
  $("none-filters").hidden = !filtered;
}

export function showNearestDistance(distance) {
  $("none-why").textContent += ` The nearest is at ${distance.toFixed(3)}.`;
}

export function showSample(images, onMap) {
  showResults(images, null);
  if (!images.length) showStatus("The gallery is empty", "; add images with index.py add");
  else if (onMap) showStatus("The gallery", "; point at a dot to see its image, click it to search with it");
  else showStatus("Some images of the gallery", "; choose one to search with it");
}

export function showView(view) {
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
  $("map").hidden = view !== "map";
  $("grid").hidden = view === "map";
}

export function showProblem(text) {
  $("problem").textContent = printable(text);
  $("problem").hidden = false;
}

export function showFailure(text) {
  showProblem(sentence(text));
  $("none").hidden = true;
  $("grid").replaceChildren();
  showStatus("");
}

export function showGallery() {
  const { stats, classes } = gallery;
  const of = stats.classes > 1 ? ` of ${plural(stats.classes, "class", "classes")}` : "";
  $("about").textContent = `${plural(stats.searched, "image")}${of}, searched with ${stats.run}`;
  const option = (one) => element("option", { value: one.name, label: `${one.name} (${one.count})` });
  $("classes").replaceChildren(...classes.map(option));
}

// The card beside, above or below another one.
export function nextCard(here, key) {
  const cards = [...$("grid").children];
  const columns = cards.filter((one) => one.offsetTop === cards[0].offsetTop).length;
  return cards[cards.indexOf(here) + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key]];
}
