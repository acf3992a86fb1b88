// The state of the page. The search is in the URL; images that were sent, marked or seen stay in this tab.

export const COUNTS = [10, 20, 30, 50, 100, 200, 500, 1000];
export const MAX_DISTANCE = 2; // between unit vectors; the right end of the slider means any distance
export const NO_CLASS = "-"; // the label of images without a class
const DEFAULT_COUNT = 30;
export const NO_FILTERS = { classes: [], where: "", from: "", to: "", camera: "", at: "" };
export const KILOMETERS = [1, 5, 20, 100, 500];
const DEFAULT_KM = 20; // around a place

export const uploads = new Map(); // key in the URL -> {file, url}
export const marks = new Map(); // id -> "more" or "less": marked for the next search
export const known = new Map(); // id -> what the server said about the image
export const gallery = { stats: null, classes: [], photos: null };

export function readState() {
  const from = new URLSearchParams(location.search);
  return {
    q: from.getAll("q"),
    not: from.getAll("not"),
    upload: from.get("upload"),
    k: Number(from.get("k")) || DEFAULT_COUNT,
    d: from.has("d") ? from.get("d") : null,
    classes: from.getAll("class"),
    where: from.get("where") || "",
    crop: from.get("crop"),
    distinct: from.has("distinct"),
    whole: from.has("whole"),
    from: from.get("from") || "",
    to: from.get("to") || "",
    camera: from.get("camera") || "",
    at: from.get("at") || "",
    km: KILOMETERS.includes(Number(from.get("km"))) ? Number(from.get("km")) : DEFAULT_KM,
    variety: Number(from.get("variety")) || 0,
    view: from.get("view") === "map" ? "map" : "grid",
  };
}

export function stateURL(state) {
  const to = new URLSearchParams();
  if (state.upload) to.append("upload", state.upload);
  for (const id of state.q) to.append("q", id);
  for (const id of state.not) to.append("not", id);
  if (state.k !== DEFAULT_COUNT) to.set("k", state.k);
  if (state.d !== null) to.set("d", state.d);
  for (const label of state.classes) to.append("class", label);
  if (state.where) to.set("where", state.where);
  if (state.crop) to.set("crop", state.crop);
  if (state.distinct) to.set("distinct", "");
  if (state.whole) to.set("whole", "");
  for (const name of ["from", "to", "camera", "at"]) if (state[name]) to.set(name, state[name]);
  if (state.at && state.km !== DEFAULT_KM) to.set("km", state.km);
  if (state.variety) to.set("variety", state.variety);
  if (state.view === "map") to.set("view", "map");
  const text = to.toString();
  return text ? `?${text}` : "./"; // relative, like all URLs here: a proxy may serve the page below a path
}

// Whether the query is a single image, of which a part can be searched for.
export const isSingle = (state) => state.q.length + state.not.length + Number(Boolean(state.upload)) === 1;

export const hasQuery = (state) => Boolean(state.upload || state.q.length);

// Whether the calibrated distance, which is one of whole images, suits the search.
export const isCalibrated = (state) =>
  (gallery.stats?.calibrated ?? null) !== null && (state.whole || !gallery.stats.parts);

// The greatest distance of a result: a number, "auto", or null for any.
export function limit(state) {
  if (state.d === "auto") return gallery.stats?.parts && !state.whole ? null : "auto";
  return state.d === null ? null : Number(state.d);
}

// Latitude and longitude in degrees, from text such as 48.1, 11.6; null if it is none.
export function parsePlace(text) {
  const numbers = text
    .split(/[,;\s]+/)
    .filter(Boolean)
    .map(Number);
  const good = numbers.length === 2 && Math.abs(numbers[0]) <= 90 && Math.abs(numbers[1]) <= 180;
  return good ? numbers : null;
}

// Combines the filters and the user's condition into one condition.
export function condition(state) {
  const quote = (text) => `'${text.replaceAll("'", "''")}'`;
  const parts = [];
  if (state.classes.length) parts.push(`label IN (${state.classes.map(quote).join(", ")})`);
  if (state.from) parts.push(`taken >= ${quote(state.from)}`);
  if (state.to) parts.push(`taken <= ${quote(state.to)}`);
  if (state.camera) parts.push(`camera.model = ${quote(state.camera)}`);
  const place = parsePlace(state.at);
  if (place) parts.push(`near(${place[0]}, ${place[1]}, ${state.km}km)`);
  if (state.where) parts.push(parts.length ? `(${state.where})` : state.where);
  return parts.join(" AND ");
}

// The state after a search with the marked images.
export function withMarks(state) {
  const chosen = (kind) => [...marks].filter(([, one]) => one === kind).map(([id]) => id);
  const more = chosen("more");
  const less = chosen("less");
  const kept = (ids) => ids.filter((id) => !marks.has(id));
  return { ...state, q: [...kept(state.q), ...more], not: [...kept(state.not), ...less] };
}

// The state without one image of the query.
export function without(state, id) {
  const left = (ids) => ids.filter((other) => other !== id);
  const rest = { ...state, q: left(state.q), not: left(state.not) };
  return hasQuery(rest) ? rest : { ...rest, not: [] };
}

export async function addUpload(file) {
  let key = String(uploads.size + 1);
  if (crypto.subtle) {
    // Browsers offer it only for HTTPS and localhost. Elsewhere a number is enough, as the image stays in this tab.
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
    key = [...digest.slice(0, 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }
  if (!uploads.has(key)) uploads.set(key, { file, url: URL.createObjectURL(file) });
  return key;
}
