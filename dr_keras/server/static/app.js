// The page: each user action changes the URL, and each change of the URL starts a search.
import * as client from "./client.js";
import { CropDialog, parseCrop } from "./crop.js";
import { GalleryMap } from "./map.js";
import {
  addUpload,
  COUNTS,
  gallery,
  hasQuery,
  KILOMETERS,
  known,
  MAX_DISTANCE,
  marks,
  NO_CLASS,
  NO_FILTERS,
  parsePlace,
  readState,
  stateURL,
  uploads,
  withMarks,
} from "./state.js";
import * as view from "./view.js";
import { explanationOf, forgetExplanations, shade, WhyDialog } from "./why.js";

const { $ } = view;
const SAMPLE_IMAGES = 48;
let running = null; // the AbortController of the current search
let map = null;

const queryFields = ["q", "not", "upload"];

function go(change, { scroll = false } = {}) {
  const next = { ...readState(), ...change };
  if (queryFields.some((field) => field in change)) next.crop = null; // it was of another picture
  history.pushState(null, "", stateURL(next));
  if (scroll) scrollTo({ top: 0 });
  render();
}

const searchWith = (id) => go({ q: [id], not: [], upload: null }, { scroll: true });

function mark(id, kind) {
  if (marks.get(id) === kind) marks.delete(id);
  else marks.set(id, kind);
  view.showMarks();
}

function clearMarks() {
  marks.clear();
  view.showMarks();
}

// The one image of the gallery that is searched for, if nothing else is: the only query that is explained.
function explained() {
  const { q, not, upload, crop } = readState();
  return q.length === 1 && !not.length && !upload && !crop ? q[0] : null;
}

let dialog = null;

function why(id) {
  dialog ??= new WhyDialog($("why"));
  dialog.show(explained(), id);
}

const CROPPED_PIXELS = 1024; // of the longer side of the picture in the dialog
let cropDialog = null;

function crop() {
  const state = readState();
  cropDialog ??= new CropDialog($("crop"), (chosen) => go({ crop: chosen }));
  const url = state.upload ? uploads.get(state.upload).url : client.imageURL(state.q[0], CROPPED_PIXELS);
  cropDialog.show(url, parseCrop(state.crop));
}

const REST_MILLISECONDS = 250; // the pointer rests for this long before an image is explained
let resting = 0;

// Darkens the image of a card where it is not like the query, while the pointer is on it.
function shadeCard(id, find) {
  clearTimeout(resting);
  for (const canvas of find.querySelectorAll("canvas")) canvas.remove();
  if (id === null || !explained()) return;
  resting = setTimeout(async () => {
    const query = explained();
    if (!query) return; // the search has changed while the pointer rested
    try {
      const found = await explanationOf(query, id);
      const image = find.querySelector("img");
      if (!image || !find.matches(":hover") || find.querySelector("canvas")) return;
      const canvas = document.createElement("canvas");
      canvas.setAttribute("aria-hidden", "true");
      shade(canvas, image, found.neighbor_map, found.resize);
      find.append(canvas);
    } catch (error) {
      report(error); // the dialog says why
    }
  }, REST_MILLISECONDS);
}

Object.assign(view.actions, { go, searchWith, mark, crop, shade: shadeCard });

// ---- Searching

// Looks up the images in the URL that have not been shown yet. Base names become ids.
async function lookUp(state, signal) {
  const ids = new Map();
  for (const name of [...state.q, ...state.not]) {
    if (known.has(name) || ids.has(name)) continue;
    const image = await client.findImage(name, signal);
    known.set(image.id, image);
    ids.set(name, image.id);
  }
  const renamed = (names) => names.map((name) => ids.get(name) ?? name);
  const found = { ...state, q: renamed(state.q), not: renamed(state.not) };
  if (stateURL(found) !== stateURL(state)) history.replaceState(null, "", stateURL(found));
  return found;
}

// Places the query on the map; if the gallery has changed meanwhile, on the new map.
async function placeQuery(state, signal) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await client.placeQuery(state, signal);
    } catch (error) {
      if (error.status !== 409 || attempt === 2) throw error;
      await map.load();
    }
  }
}

async function showMap() {
  if (!map) {
    map = new GalleryMap({
      points: $("points"),
      overlay: $("marks"),
      tip: $("tip"),
      image: $("tip-image"),
      className: $("tip-class"),
      name: $("tip-name"),
      search: $("tip-search"),
      legend: $("legend"),
      status: $("map-status"),
      printable: view.printable,
      onsearch: searchWith,
    });
    for (const button of document.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => map.zoomBy(button.dataset.zoom));
    }
  }
  await map.load();
}

// Shows how far away the nearest image is if none was near enough.
async function showNearest(state, control) {
  const { results } = await client.search({ ...state, d: null, k: 1 }, control.signal);
  if (running === control && results.length) view.showNearestDistance(results[0].distance);
}

async function showSearch(state, control) {
  if (state.d === "auto") gallery.stats ??= await client.getStats(); // which say whether it suits the search
  const answer = await client.search(state, control.signal);
  view.showAnswer(state, answer);
  const title = state.upload ? "Your image" : answer.queries[0].split("/").pop();
  document.title = `${view.printable(title)} \u2013 Image search`;
  if (state.view === "map") map.show(await placeQuery(state, control.signal), state.classes);
  else if (!answer.results.length && answer.max_distance !== null) showNearest(state, control).catch(report);
}

async function showSample(state, signal) {
  document.title = "Image search";
  view.showSample(await client.sampleImages(SAMPLE_IMAGES, signal), state.view === "map");
  map?.show(null, state.classes);
}

function report(error) {
  if (error.name !== "AbortError") console.error(error);
}

async function render() {
  let state = readState();
  running?.abort();
  const control = new AbortController();
  running = control;
  marks.clear();
  $("problem").hidden = true;
  view.showFilters(state);
  view.showView(state.view);
  document.body.classList.add("busy");
  try {
    if (state.upload && !uploads.has(state.upload)) {
      const why = "This search used an image from another device or tab, which the URL does not contain.";
      view.showQuery({ q: [], not: [], upload: state.upload });
      throw new client.RequestError(0, `${why} Drop it here to search with it.`);
    }
    state = await lookUp(state, control.signal);
    view.showQuery(state);
    view.showFilters(state);
    forgetExplanations();
    view.actions.why = explained() ? why : null;
    if (state.view === "map") await showMap();
    if (hasQuery(state)) await showSearch(state, control);
    else await showSample(state, control.signal);
    if (state.view === "map") $("none").hidden = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!state.upload || uploads.has(state.upload)) view.showQuery(state);
    view.showFailure(error.message);
    if (!(error instanceof client.RequestError)) console.error(error);
  } finally {
    if (running === control) document.body.classList.remove("busy");
  }
}

async function searchFile(file) {
  const name = file.name || "This file";
  if (file.type && !file.type.startsWith("image/")) {
    view.showProblem(`${name} is not an image.`);
  } else if (file.size > client.MAX_UPLOAD_BYTES) {
    view.showProblem(
      `${name} has ${view.bytes(file.size)}; at most ${view.bytes(client.MAX_UPLOAD_BYTES)} are accepted.`,
    );
  } else {
    go({ upload: await addUpload(file), q: [], not: [] }, { scroll: true });
  }
}

// ---- Input

function listenForFiles() {
  $("pick").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) searchFile($("file").files[0]);
    $("file").value = "";
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (!file) return;
    event.preventDefault();
    searchFile(file);
  });
  let entered = 0; // dragenter and dragleave also come from elements inside the page
  addEventListener("dragenter", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    entered++;
    $("dropping").hidden = false;
  });
  addEventListener("dragleave", () => {
    entered = Math.max(0, entered - 1);
    $("dropping").hidden = !entered;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    entered = 0;
    $("dropping").hidden = true;
    const file = event.dataTransfer.files[0];
    if (file) searchFile(file);
  });
}

function addClass() {
  const wanted = $("class").value.trim();
  if (!wanted) return;
  const same = (text) => text.toLowerCase() === wanted.toLowerCase();
  const { classes } = gallery;
  const found =
    classes.find((one) => one.name === wanted || one.label === wanted) || classes.find((one) => same(one.name));
  if (!found) {
    $("class").setCustomValidity("There is no such class.");
    $("class").reportValidity();
    return;
  }
  $("class").value = "";
  const state = readState();
  if (!state.classes.includes(found.label)) go({ classes: [...state.classes, found.label] });
}

function setPlace() {
  const at = $("at").value.trim();
  if (at && !parsePlace(at)) {
    $("at").setCustomValidity("Enter latitude and longitude in degrees, such as 48.137, 11.575.");
    $("at").reportValidity();
    return;
  }
  go({ at });
}

function listenForFilters() {
  const distance = () => (Number($("near").value) >= MAX_DISTANCE ? null : $("near").value);
  $("class").addEventListener("change", addClass);
  $("class").addEventListener("input", () => $("class").setCustomValidity(""));
  $("near").addEventListener("input", () => view.showDistance(distance()));
  $("near").addEventListener("change", () => go({ d: distance() }));
  $("near-auto").addEventListener("click", () => go({ d: "auto" }));
  $("k").addEventListener("input", () => {
    $("k-value").textContent = COUNTS[$("k").value];
  });
  $("k").addEventListener("change", () => go({ k: COUNTS[$("k").value] }));
  $("distinct").addEventListener("change", () => go({ distinct: $("distinct").checked }));
  $("whole").addEventListener("change", () => go({ whole: $("whole").checked }));
  $("variety").addEventListener("input", () => view.showVariety(Number($("variety").value)));
  $("variety").addEventListener("change", () => go({ variety: Number($("variety").value) }));
  $("where").addEventListener("change", () => go({ where: $("where").value.trim() }));
  $("none-near").addEventListener("click", () => go({ d: null }));
  for (const name of ["from", "to", "camera"]) {
    $(name).addEventListener("change", () => go({ [name]: $(name).value }));
  }
  $("at").addEventListener("change", setPlace);
  $("at").addEventListener("input", () => $("at").setCustomValidity(""));
  $("km").addEventListener("input", () => view.showKilometers(KILOMETERS[$("km").value]));
  $("km").addEventListener("change", () => go({ km: KILOMETERS[$("km").value] }));
  $("at-query").addEventListener("click", () => go({ at: view.placeOfQuery(readState()) }));
  $("none-filters").addEventListener("click", () => go({ d: null, ...NO_FILTERS }));
}

function listenForSearches() {
  $("by-name").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    if (name) searchWith(name);
  });
  $("part").addEventListener("click", crop);
  $("clear").addEventListener("click", () => go({ q: [], not: [], upload: null }));
  $("marked-search").addEventListener("click", () => go(withMarks(readState()), { scroll: true }));
  $("marked-clear").addEventListener("click", clearMarks);
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => go({ view: button.dataset.view }));
  }
  addEventListener("popstate", render);
}

function pressOnCard(event, here) {
  if (event.key === "+" || event.key === "=") mark(here.dataset.id, "more");
  else if (event.key === "-") mark(here.dataset.id, "less");
  else if (event.key.startsWith("Arrow")) {
    const next = view.nextCard(here, event.key);
    if (!next) return;
    event.preventDefault();
    next.querySelector(".find").focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

function listenForKeys() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("why").open || $("crop").open) return;
    const typing = event.target.matches?.("input, canvas");
    const here = event.target.closest?.(".card");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("name").focus();
    } else if (event.key === "Escape" && marks.size) clearMarks();
    else if (!typing && here) pressOnCard(event, here);
  });
}

async function loadGallery() {
  try {
    gallery.stats = await client.getStats();
    view.showGallery();
    view.showFilters(readState());
    gallery.classes = (await client.getClasses()).filter((one) => one.label !== NO_CLASS);
    view.showGallery();
    view.showFilters(readState());
    gallery.photos = await client.getPhotos();
    view.showFilters(readState());
  } catch (error) {
    console.error(error); // the search itself reports the error
  }
}

listenForFiles();
listenForFilters();
listenForSearches();
listenForKeys();
$("filters").open = matchMedia("(min-width: 48rem)").matches;
render();
loadGallery();
