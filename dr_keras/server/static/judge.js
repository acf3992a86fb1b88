// Asks which of two images is more like a third, and sends the answers.
import { getQuestion, imageURL, sendJudgment } from "./client.js";

const $ = (id) => document.getElementById(id);
const choices = { first: $("first"), second: $("second") };
const buttons = [choices.first, choices.second, $("skip")];
let question = null; // the one that is shown; null while the next one is loaded
let busy = false; // while an answer is sent or a question is loaded: one thing at a time

async function ask() {
  question = null;
  const next = await getQuestion();
  const images = [$("query"), choices.first.firstElementChild, choices.second.firstElementChild];
  for (const [place, name] of ["query", "first", "second"].entries()) images[place].src = imageURL(next[name].id);
  await Promise.all(images.map((image) => image.decode().catch(() => {}))); // a broken one can still be skipped
  question = next;
}

async function keep(chosen) {
  const other = chosen === "first" ? "second" : "first";
  const judgment = { query: question.query.id, positive: question[chosen].id, negative: question[other].id };
  const { judgments } = await sendJudgment(judgment);
  $("count").textContent = `${judgments.toLocaleString("en")} ${judgments === 1 ? "answer" : "answers"} so far`;
}

// Sends an answer, or none, and asks the next question. If the answer cannot be sent, the question stays.
async function answer(chosen) {
  if (busy || (chosen && !question)) return;
  busy = true;
  const focused = document.activeElement;
  for (const button of buttons) button.disabled = true;
  $("problem").hidden = true;
  try {
    if (chosen) await keep(chosen);
    await ask();
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
  busy = false;
  for (const button of buttons) button.disabled = false;
  if (!question) choices.first.disabled = choices.second.disabled = true;
  if (buttons.includes(focused)) focused.focus();
}

choices.first.addEventListener("click", () => answer("first"));
choices.second.addEventListener("click", () => answer("second"));
$("skip").addEventListener("click", () => answer(null));
addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
  if (event.key === "ArrowLeft") answer("first");
  else if (event.key === "ArrowRight") answer("second");
  else if (event.key === " " && event.target === document.body) answer(null);
  else return;
  event.preventDefault();
});
answer(null);
