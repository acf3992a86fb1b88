// The HTTP API.
import { condition, limit, uploads } from "./state.js";

export const MAX_UPLOAD_BYTES = 20 * 2 ** 20; // the server's default limit, checked before anything is sent
const THUMBNAIL_PIXELS = 256; // cards are at most 200 pixels wide, and screens may have two pixels for each
const ATTEMPTS = 4; // of a request, while the server is busy

export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError(0, "The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 503 && attempt < ATTEMPTS) {
      const seconds = Number(response.headers.get("Retry-After") || 1);
      await new Promise((wake) => setTimeout(wake, 1000 * seconds));
      continue;
    }
    const body = await response.json().catch(() => ({}));
    throw new RequestError(response.status, body.detail || `The server answered with status ${response.status}.`);
  }
}

const json = async (path, options) => (await request(path, options)).json();

// A file name need not be UTF-8. Each byte that is not arrives as a lone surrogate, and is sent back as that byte.
function encodeId(id) {
  let text = "";
  for (const character of id) {
    const code = character.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) text += `%${(code - 0xdc00).toString(16)}`;
    else text += character === "/" && text ? "/" : encodeURIComponent(character);
  }
  return text;
}

export const imageURL = (id, pixels = THUMBNAIL_PIXELS) => `v1/images/${encodeId(id)}?thumbnail=${pixels}`;

function searchOptions(state, signal) {
  const where = condition(state);
  if (!state.upload) {
    const body = { positives: state.q, negatives: state.not };
    if (where) body.where = where;
    if (limit(state) !== null) body.max_distance = limit(state);
    if (state.distinct) body.distinct = true;
    if (state.whole) body.whole = true;
    if (state.variety) body.diverse = 1 - state.variety;
    const headers = { "Content-Type": "application/json" };
    return { method: "POST", headers, body: JSON.stringify(body), signal };
  }
  const form = new FormData();
  form.append("image", uploads.get(state.upload).file, "image");
  for (const id of state.q) form.append("positives", id);
  for (const id of state.not) form.append("negatives", id);
  if (where) form.append("where", where);
  if (limit(state) !== null) form.append("max_distance", limit(state));
  if (state.distinct) form.append("distinct", "true");
  if (state.whole) form.append("whole", "true");
  if (state.variety) form.append("diverse", 1 - state.variety);
  return { method: "POST", body: form, signal };
}

const parameters = (state) => `k=${state.k}${state.crop ? `&crop=${encodeURIComponent(state.crop)}` : ""}`;
export const search = (state, signal) => json(`v1/search?${parameters(state)}`, searchOptions(state, signal));
export const placeQuery = (state, signal) => json(`v1/map/query?${parameters(state)}`, searchOptions(state, signal));
export const findImage = (name, signal) => json(`v1/find?name=${encodeId(name)}`, { signal });
export const sampleImages = (k, signal) => json(`v1/sample?k=${k}`, { signal });
export const getStats = () => json("v1/stats");
export const getPhotos = () => json("v1/photos");
export const getClasses = () => json("v1/classes");
export const explain = (query, neighbor, pairs) =>
  json(`v1/explain?query=${encodeId(query)}&neighbor=${encodeId(neighbor)}&pairs=${pairs}`);
export const getQuestion = () => json("v1/judgment");
export const sendJudgment = (body) =>
  json("v1/judgments", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
export const getGroups = () => json("v1/groups");
export const getGroup = (name, k) => json(`v1/group?name=${encodeURIComponent(name)}&k=${k}`);
const change = (path, body, token) =>
  json(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify(body),
  });
export const renameGroup = (body, token) => change("v1/groups/rename", body, token);
export const moveToGroup = (body, token) => change("v1/groups/move", body, token);
export const getMap = async () => (await request("v1/map")).arrayBuffer();
export const getPoint = (key, number) => json(`v1/map/${encodeURIComponent(key)}/${number}`);
