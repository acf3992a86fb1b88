// Groups of images that were found without labels: looks at them, names them, and corrects them.
import { getGroup, getGroups, getStats, imageURL, moveToGroup, renameGroup } from "./client.js";

const SHOWN = 500; // images of a group
const TOKEN = "token"; // the key in the tab's storage

const $ = (id) => document.getElementById(id);
const marked = new Set();
let name = null; // of the group that is shown; null for the list of all
let shown = null; // the group whose name is in the field
let writable = false;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const picture = (image) =>
  element("img", { src: imageURL(image.id), alt: image.name, loading: "lazy", decoding: "async", draggable: false });
const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const address = (group) => `groups?name=${encodeURIComponent(group)}`;
const token = () => sessionStorage.getItem(TOKEN);

function groupCard(group) {
  const link = element("a", { href: address(group.name), className: "find" }, picture(group.center));
  const title = element("span", { className: "class" }, group.name);
  const count = element("span", { className: "distance plain-distance" }, many(group.count, "image"));
  link.setAttribute("aria-label", `${group.name}, ${many(group.count, "image")}`);
  return element("li", { className: "card" }, link, title, element("div", { className: "line" }, count));
}

function imageCard(image) {
  const button = element("button", { type: "button", className: "find", title: image.id }, picture(image));
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `Mark ${image.name}`);
  button.disabled = !writable;
  button.addEventListener("click", () => {
    const on = !marked.delete(image.id);
    if (on) marked.add(image.id);
    button.setAttribute("aria-pressed", String(on));
    button.parentElement.classList.toggle("is-more", on);
    showStatus();
  });
  return element("li", { className: "card" }, button, element("span", { className: "class" }, image.name));
}

let count = 0; // of images that are shown

function showStatus() {
  const chosen = marked.size ? `, ${marked.size} marked` : writable ? "; mark those that belong elsewhere" : "";
  $("status").textContent = `${many(count, "image")}${chosen}`;
}

async function showGroups() {
  const groups = await getGroups();
  $("tools").hidden = true;
  $("grid").replaceChildren(...groups.map(groupCard));
  $("status").textContent = groups.length
    ? `${many(groups.length, "group")}; choose one to look at it`
    : "There are no groups yet; make them with index.py cluster.";
}

async function showGroup() {
  const [images, groups] = await Promise.all([getGroup(name, SHOWN), getGroups()]);
  marked.clear();
  count = images.length;
  document.title = `${name} \u2013 Groups`;
  $("title").textContent = name;
  if (shown !== name) $("name").value = name; // what is being typed stays
  shown = name;
  $("names").replaceChildren(...groups.map((group) => element("option", { value: group.name })));
  $("tools").hidden = false;
  for (const form of [$("rename"), $("move")]) form.hidden = !writable || !token();
  $("grid").replaceChildren(...images.map(imageCard));
  showStatus();
}

async function attempt(action) {
  $("problem").hidden = true;
  try {
    await action();
  } catch (error) {
    if (error.status === 401) {
      sessionStorage.removeItem(TOKEN);
      $("login").hidden = false;
    }
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

async function render() {
  name = new URLSearchParams(location.search).get("name");
  const stats = await getStats();
  $("about").textContent = `${many(stats.searched, "image")}, searched with ${stats.run}`;
  writable = stats.writable;
  $("login").hidden = !writable || Boolean(token());
  await (name === null ? showGroups() : showGroup());
}

async function move(group) {
  if (!marked.size) throw new Error("Mark the images first.");
  await moveToGroup({ ids: [...marked], group }, token());
  if (count === marked.size)
    location.assign("groups"); // the group is empty
  else await showGroup();
}

$("rename").addEventListener("submit", (event) => {
  event.preventDefault();
  const to = $("name").value.trim();
  attempt(async () => {
    await renameGroup({ name, to }, token());
    location.assign(address(to));
  });
});
$("move").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => move($("target").value.trim()));
});
$("out").addEventListener("click", () => attempt(() => move(null)));
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value);
  attempt(render);
});
attempt(render);
