// The page: what is searched for is in the address; every change of it is a search.
import { GalleryMap } from "./map.js";

const $ = (id) => document.getElementById(id);
const COUNTS = [10, 20, 30, 50, 100, 200, 500, 1000];
const FAR = 2; // unit vectors are never farther apart: the right end of the slider means any distance
const THUMBNAIL = 256; // pixels: cards are at most 200 wide, and screens have up to two pixels for one
const NO_CLASS = "-";
const MAX_BYTES = 20 * 2 ** 20; // as the server's own limit; it is said before anything is sent
const number = new Intl.NumberFormat("en");

const uploads = new Map(); // by the hash in the address: {file, url}; they stay in this tab
const marks = new Map(); // id -> "more" or "less", not searched for yet
const known = new Map(); // id -> what the server said of it
let stats = null;
let classes = [];
let running = null;
let map = null;

// ---- The address

function readState() {
  const from = new URLSearchParams(location.search);
  return {
    q: from.getAll("q"),
    not: from.getAll("not"),
    upload: from.get("upload"),
    k: Number(from.get("k")) || 30,
    d: from.has("d") ? from.get("d") : null,
    classes: from.getAll("class"),
    where: from.get("where") || "",
    view: from.get("view") === "map" ? "map" : "grid",
  };
}

function address(state) {
  const to = new URLSearchParams();
  if (state.upload) to.append("upload", state.upload);
  for (const id of state.q) to.append("q", id);
  for (const id of state.not) to.append("not", id);
  if (state.k !== 30) to.set("k", state.k);
  if (state.d !== null) to.set("d", state.d);
  for (const label of state.classes) to.append("class", label);
  if (state.where) to.set("where", state.where);
  if (state.view === "map") to.set("view", "map");
  const text = to.toString();
  return text ? `?${text}` : "./"; // relative, as all addresses here: a proxy may offer the page below a path
}

function go(change, { replace = false, scroll = false } = {}) {
  const state = { ...readState(), ...change };
  history[replace ? "replaceState" : "pushState"](null, "", address(state));
  if (scroll) scrollTo({ top: 0 });
  render();
}

const asks = (state) => state.upload || state.q.length;

// ---- The server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server does not answer. Is it still running?");
    }
    if (answer.ok) return answer;
    if (answer.status === 503 && attempt < 3) {
      await new Promise((wake) => setTimeout(wake, 1000 * Number(answer.headers.get("Retry-After") || 1)));
      continue;
    }
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.detail || `The server answered ${answer.status}.`);
  }
}

// Names of files need not be UTF-8; their other bytes come as lone surrogates and go back as what they were.
function encoded(id) {
  let text = "";
  for (const sign of id) {
    const code = sign.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) text += `%${(code - 0xdc00).toString(16)}`;
    else text += sign === "/" && text ? "/" : encodeURIComponent(sign);
  }
  return text;
}

const imageAddress = (id, side = THUMBNAIL) => `v1/images/${encoded(id)}?thumbnail=${side}`;

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

function condition(state) {
  const parts = [];
  if (state.classes.length) parts.push(`label IN (${state.classes.map(quoted).join(", ")})`);
  if (state.where) parts.push(state.classes.length ? `(${state.where})` : state.where);
  return parts.join(" AND ");
}

function asked(state) {
  const where = condition(state);
  if (!state.upload) {
    const body = { positives: state.q, negatives: state.not };
    if (where) body.where = where;
    if (state.d !== null) body.max_distance = state.d === "auto" ? "auto" : Number(state.d);
    return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  }
  const form = new FormData();
  form.append("image", uploads.get(state.upload).file, "image");
  for (const id of state.q) form.append("positives", id);
  for (const id of state.not) form.append("negatives", id);
  if (where) form.append("where", where);
  if (state.d !== null) form.append("max_distance", state.d);
  return { method: "POST", body: form };
}

// ---- Drawing

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const shownClass = (one) => (one.class_name === NO_CLASS ? "" : one.class_name);
const described = (one) => [shownClass(one), one.name].filter(Boolean).join(", ");
const plural = (count, word, more = `${word}s`) => `${number.format(count)} ${count === 1 ? word : more}`;
const printable = (text) => text.replace(/[\ud800-\udfff]/gu, "�");

function picture(id, alt) {
  const image = element("img", { alt: printable(alt), decoding: "async", loading: "lazy", draggable: false });
  let tried = 0;
  image.addEventListener("error", () => {
    image.classList.add("failed");
    if (tried++ < 2) setTimeout(() => (image.src = imageAddress(id)), 1500 * tried); // the server may be busy
    else image.replaceWith(element("span", { className: "gone" }, "no picture"));
  });
  image.addEventListener("load", () => image.classList.remove("failed"));
  image.src = imageAddress(id);
  return image;
}

function card(one, label) {
  known.set(one.id, one);
  const find = element("button", { type: "button", className: "find", title: printable(one.id) });
  find.setAttribute("aria-label", `Search with ${printable(described(one))}`);
  find.append(picture(one.id, described(one)));
  find.addEventListener("click", () => searchWith(one.id));
  const title = element("span", { className: "class" }, printable(shownClass(one) || one.name));
  const near = one.distance === undefined ? (shownClass(one) ? printable(one.name) : "") : one.distance.toFixed(3);
  const distance = element("span", { className: "distance" }, near);
  const line = element("div", { className: "line" }, distance);
  for (const [kind, sign, words] of [["more", "+", "More like"], ["less", "−", "Less like"]]) {
    const button = element("button", { type: "button", className: `mark ${kind}`, title: `${words} this` }, sign);
    button.dataset.kind = kind;
    button.setAttribute("aria-label", `${words} ${printable(described(one))}`);
    button.addEventListener("click", () => mark(one.id, kind));
    line.append(button);
  }
  const made = element("li", { className: "card" }, find, title, line);
  made.dataset.id = one.id;
  if (label !== null && one.distance !== undefined) {
    made.classList.add(one.label === label ? "same" : "other");
    distance.title = one.label === label ? "of the query's class" : "of another class";
  } else distance.classList.add("plain-distance");
  return made;
}

function drawMarks() {
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
  $("marked").hidden = !kinds.length;
  $("marked-count").textContent = [more && `${more} more like this`, kinds.length - more && `${kinds.length - more} less`]
    .filter(Boolean)
    .join(", ");
  const able = asks(readState()) || more;
  $("marked-search").disabled = !able;
}

function mark(id, kind) {
  if (marks.get(id) === kind) marks.delete(id);
  else marks.set(id, kind);
  drawMarks();
}

function drawQuery(state) {
  const items = [];
  const add = (kind, image, text, title, remove) => {
    const button = element("button", { type: "button", title: "Leave it out" }, "×");
    button.setAttribute("aria-label", `Leave out ${title}`);
    button.addEventListener("click", remove);
    items.push(
      element(
        "li",
        { className: kind, title },
        image,
        element("span", { className: "kind" }, kind === "less" ? "less like" : items.length ? "more like" : "like"),
        element("span", {}, text),
        button,
      ),
    );
  };
  if (state.upload) {
    const kept = uploads.get(state.upload);
    const image = element("img", { alt: "The image you sent" });
    if (kept) image.src = kept.url;
    add("more", image, kept ? "your image" : "not here", "your image", () => go({ upload: null }));
  }
  for (const [kind, ids] of [["more", state.q], ["less", state.not]]) {
    for (const id of ids) {
      const one = known.get(id) || { class_name: NO_CLASS, name: id.split("/").pop() };
      const text = printable(shownClass(one) || one.name);
      add(kind, picture(id, described(one)), text, printable(described(one)), () => {
        const left = (list) => list.filter((other) => other !== id);
        const rest = { q: left(state.q), not: left(state.not) };
        go(rest.q.length || state.upload ? rest : { q: [], not: [] });
      });
    }
  }
  $("query-images").replaceChildren(...items);
  $("query").hidden = !items.length;
}

function drawFilters(state) {
  $("class-chips").replaceChildren(
    ...state.classes.map((label) => {
      const name = classes.find((one) => one.label === label)?.name || label;
      const button = element("button", { type: "button" }, `${printable(name)} ×`);
      button.setAttribute("aria-label", `No longer only ${printable(name)}`);
      button.addEventListener("click", () => go({ classes: state.classes.filter((one) => one !== label) }));
      return element("li", {}, button);
    }),
  );
  $("near").value = state.d === null ? FAR : state.d === "auto" ? (stats?.calibrated ?? FAR) : state.d;
  $("near-auto").hidden = !stats || stats.calibrated === null;
  showNear(state.d);
  const place = COUNTS.findIndex((count) => count >= state.k);
  $("k").value = place < 0 ? COUNTS.length - 1 : place;
  $("k-value").textContent = state.k;
  $("where").value = state.where;
  const count = (state.classes.length > 0) + (state.d !== null) + (state.where !== "");
  $("filters-count").textContent = count ? ` · ${count} set` : "";
}

function showNear(d) {
  $("near-value").textContent =
    d === null ? "any distance" : d === "auto" ? "as calibrated" : `within ${Number(d).toFixed(2)}`;
}

function drawStatus(text, ...more) {
  $("status").replaceChildren(...(text ? [element("b", {}, text), ...more] : []));
}

function drawAnswer(state, answer) {
  const found = answer.results;
  $("grid").replaceChildren(...found.map((one) => card(one, answer.label)));
  $("none").hidden = found.length > 0;
  if (found.length) {
    const last = found[found.length - 1];
    const range = found.length > 1 ? `, ${found[0].distance.toFixed(3)} to ${last.distance.toFixed(3)} away` : "";
    const same = answer.label === null ? 0 : found.filter((one) => one.label === answer.label).length;
    const of = answer.label === null ? "" : `; ${same} of ${printable(found.find((one) => one.label === answer.label)?.class_name || answer.label)}`;
    drawStatus(plural(found.length, "image"), `${range}${of}`);
  } else {
    drawStatus("");
    const near = answer.max_distance === null ? "" : ` within a distance of ${answer.max_distance.toFixed(2)}`;
    const filtered = condition(state) ? "that meets the filters " : "";
    $("none-why").textContent = `No image ${filtered}lies${near || " in the gallery"}.`;
    if (near) tellNearest(state);
    $("none-near").hidden = answer.max_distance === null;
    $("none-filters").hidden = !condition(state);
  }
  drawMarks();
}

// How far the nearest image is that was too far.
async function tellNearest(state) {
  const control = running;
  const found = await (await ask("v1/search?k=1", { ...asked({ ...state, d: null }), signal: control.signal })).json();
  if (running !== control || !found.results.length) return;
  $("none-why").textContent += ` The nearest is at ${found.results[0].distance.toFixed(3)}.`;
}

// What a query's images are, where the address names some that were not shown; base names become ids.
async function recognise(state, signal) {
  const ids = new Map();
  for (const name of [...state.q, ...state.not]) {
    if (known.has(name) || ids.has(name)) continue;
    const one = await (await ask(`v1/find?name=${encoded(name)}`, { signal })).json();
    known.set(one.id, one);
    ids.set(name, one.id);
  }
  const renamed = (names) => names.map((name) => ids.get(name) ?? name);
  const found = { ...state, q: renamed(state.q), not: renamed(state.not) };
  if (address(found) !== address(state)) history.replaceState(null, "", address(found));
  return found;
}

async function drawSample(signal, onMap) {
  const found = await (await ask("v1/sample?k=48", { signal })).json();
  $("grid").replaceChildren(...found.map((one) => card(one, null)));
  $("none").hidden = true;
  if (found.length && onMap) drawStatus("The gallery", "; rest on a point to see its image, choose it to search with it");
  else if (found.length) drawStatus("Some images of the gallery", "; choose one to search with it");
  else drawStatus("The gallery is empty", "; add images with index.py add");
  drawMarks();
}

// ---- Searching

// Where the query lies in the map; where the gallery has changed meanwhile, in the new one.
async function placed(state, signal) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await (await ask(`v1/map/query?k=${state.k}`, { ...asked(state), signal })).json();
    } catch (error) {
      if (error.status !== 409 || attempt === 2) throw error;
      await map.load();
    }
  }
}

async function render() {
  let state = readState();
  running?.abort();
  const control = (running = new AbortController());
  marks.clear();
  $("problem").hidden = true;
  drawFilters(state);
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
  }
  const onMap = state.view === "map";
  $("map").hidden = !onMap;
  $("grid").hidden = onMap;
  document.body.classList.add("busy");
  try {
    if (state.upload && !uploads.has(state.upload)) {
      drawQuery({ q: [], not: [], upload: state.upload });
      throw new Refused(0, "This search was for an image on somebody's device, which is not in the address. Drop it here to search with it.");
    }
    state = await recognise(state, control.signal);
    drawQuery(state);
    if (onMap) await showMap();
    if (asks(state)) {
      const answer = await (await ask(`v1/search?k=${state.k}`, { ...asked(state), signal: control.signal })).json();
      drawAnswer(state, answer);
      document.title = `${printable(shownTitle(state, answer))} – Image search`;
      if (onMap) {
        map.show(await placed(state, control.signal), state.classes);
      }
    } else {
      document.title = "Image search";
      await drawSample(control.signal, onMap);
      map?.show(null, state.classes);
    }
    if (onMap) $("none").hidden = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!state.upload || uploads.has(state.upload)) drawQuery(state);
    $("problem").textContent = printable(sentence(error.message));
    $("problem").hidden = false;
    $("none").hidden = true;
    $("grid").replaceChildren();
    drawStatus("");
    if (!(error instanceof Refused)) console.error(error);
  } finally {
    if (running === control) document.body.classList.remove("busy");
  }
}

const shownTitle = (state, answer) => (state.upload ? "Your image" : (answer.queries[0] || "").split("/").pop());
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

function searchWith(id) {
  go({ q: [id], not: [], upload: null }, { scroll: true });
}

function searchMarked() {
  const state = readState();
  const chosen = (kind) => [...marks].filter(([, one]) => one === kind).map(([id]) => id);
  const more = chosen("more");
  const less = chosen("less");
  const q = [...state.q.filter((id) => !less.includes(id) && !more.includes(id)), ...more];
  const not = [...state.not.filter((id) => !more.includes(id) && !less.includes(id)), ...less];
  go({ q, not }, { scroll: true });
}

async function searchFile(file) {
  const refuse = (text) => {
    $("problem").textContent = text;
    $("problem").hidden = false;
  };
  if (!file.type.startsWith("image/")) return refuse(`${file.name || "This"} is no image.`);
  if (file.size > MAX_BYTES) return refuse(`${file.name} has ${number.format(file.size)} bytes; at most ${number.format(MAX_BYTES)} are taken.`);
  let key = String(uploads.size + 1);
  if (crypto.subtle) {
    // Only over HTTPS and on this machine; elsewhere a number does, as the image does not leave the tab's memory.
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    key = [...digest.slice(0, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }
  if (!uploads.has(key)) uploads.set(key, { file, url: URL.createObjectURL(file) });
  go({ upload: key, q: [], not: [] }, { scroll: true });
}

async function showMap() {
  if (!map) {
    map = new GalleryMap({
      points: $("points"), overlay: $("marks"), tip: $("tip"), image: $("tip-image"), className: $("tip-class"),
      name: $("tip-name"), search: $("tip-search"), legend: $("legend"), status: $("map-status"),
      ask, imageAddress, printable, onsearch: searchWith,
    });
    for (const button of document.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => map.zoomBy(button.dataset.zoom));
    }
  }
  await map.load();
}

// ---- What a person does

$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files[0]) searchFile($("file").files[0]);
  $("file").value = "";
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) {
    event.preventDefault();
    searchFile(file);
  }
});
let inside = 0;
addEventListener("dragenter", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  inside++;
  $("dropping").hidden = false;
});
addEventListener("dragleave", () => {
  inside = Math.max(0, inside - 1);
  $("dropping").hidden = !inside;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  $("dropping").hidden = true;
  const file = event.dataTransfer.files[0];
  if (file) searchFile(file);
});
$("by-name").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (name) searchWith(name);
});
$("clear").addEventListener("click", () => go({ q: [], not: [], upload: null }));
$("marked-search").addEventListener("click", searchMarked);
$("marked-clear").addEventListener("click", () => {
  marks.clear();
  drawMarks();
});
$("class").addEventListener("change", () => {
  const wanted = $("class").value.trim();
  if (!wanted) return;
  const one = classes.find((c) => c.name === wanted || c.label === wanted)
    || classes.find((c) => c.name.toLowerCase() === wanted.toLowerCase());
  if (!one) {
    $("class").setCustomValidity("There is no such class.");
    $("class").reportValidity();
    return;
  }
  $("class").value = "";
  const state = readState();
  if (!state.classes.includes(one.label)) go({ classes: [...state.classes, one.label] });
});
$("class").addEventListener("input", () => $("class").setCustomValidity(""));
$("near").addEventListener("input", () => showNear(Number($("near").value) >= FAR ? null : $("near").value));
$("near").addEventListener("change", () => go({ d: Number($("near").value) >= FAR ? null : $("near").value }));
$("near-auto").addEventListener("click", () => go({ d: "auto" }));
$("k").addEventListener("input", () => ($("k-value").textContent = COUNTS[$("k").value]));
$("k").addEventListener("change", () => go({ k: COUNTS[$("k").value] }));
$("where").addEventListener("change", () => go({ where: $("where").value.trim() }));
$("none-near").addEventListener("click", () => go({ d: null }));
$("none-filters").addEventListener("click", () => go({ d: null, classes: [], where: "" }));
for (const button of document.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => go({ view: button.dataset.view }));
}
addEventListener("popstate", render);

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, canvas");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("name").focus();
  } else if (event.key === "Escape" && marks.size) {
    marks.clear();
    drawMarks();
  } else if (!typing && event.target.closest?.(".card")) {
    const here = event.target.closest(".card");
    if (event.key === "+" || event.key === "=") mark(here.dataset.id, "more");
    else if (event.key === "-") mark(here.dataset.id, "less");
    else if (event.key.startsWith("Arrow")) {
      const next = neighbourCard(here, event.key);
      if (next) {
        event.preventDefault();
        next.querySelector(".find").focus();
        next.scrollIntoView({ block: "nearest" });
      }
    }
  }
});

function neighbourCard(here, key) {
  const cards = [...$("grid").children];
  const place = cards.indexOf(here);
  const columns = cards.filter((one) => one.offsetTop === cards[0].offsetTop).length;
  return cards[place + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key]];
}

$("filters").open = matchMedia("(min-width: 48rem)").matches;
render();
(async () => {
  try {
    stats = await (await ask("v1/stats")).json();
    const of = stats.classes > 1 ? ` of ${plural(stats.classes, "class", "classes")}` : "";
    $("about").textContent = `${plural(stats.searched, "image")}${of}, searched with ${stats.run}`;
    drawFilters(readState());
    classes = (await (await ask("v1/classes")).json()).filter((one) => one.label !== NO_CLASS);
    $("classes").replaceChildren(...classes.map((one) => element("option", { value: one.name, label: `${one.name} (${one.count})` })));
    drawFilters(readState());
  } catch (error) {
    console.error(error); // the search itself says what is wrong
  }
})();
