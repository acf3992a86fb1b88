// Asks which of two images is more like a third, and sends the answers.
import { getQuestion, imageURL, sendJudgment } from "./client.js";

const $ = (id) => document.getElementById(id);
const choices = { first: $("first"), second: $("second") };
let question = null; // the one that is shown; null while an answer is sent or the next one is loaded

async function attempt(work) {
  $("problem").hidden = true;
  try {
    await work();
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

async function ask() {
  const next = await getQuestion();
  const images = [$("query"), choices.first.firstElementChild, choices.second.firstElementChild];
  for (const [place, name] of ["query", "first", "second"].entries()) images[place].src = imageURL(next[name].id);
  await Promise.all(images.map((image) => image.decode().catch(() => {}))); // a broken one can still be skipped
  question = next;
  for (const button of Object.values(choices)) button.disabled = false;
}

function answer(chosen) {
  if (!question) return;
  const asked = question;
  question = null;
  for (const button of Object.values(choices)) button.disabled = true;
  attempt(async () => {
    if (chosen) {
      const other = chosen === "first" ? "second" : "first";
      const judgment = { query: asked.query.id, positive: asked[chosen].id, negative: asked[other].id };
      const { judgments } = await sendJudgment(judgment);
      $("count").textContent = `${judgments.toLocaleString("en")} ${judgments === 1 ? "answer" : "answers"} so far`;
    }
    await ask();
  });
}

choices.first.addEventListener("click", () => answer("first"));
choices.second.addEventListener("click", () => answer("second"));
$("skip").addEventListener("click", () => (question ? answer(null) : attempt(ask)));
addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.repeat) return;
  if (event.key === "ArrowLeft") answer("first");
  else if (event.key === "ArrowRight") answer("second");
  else if (event.key === " " && event.target === document.body) answer(null);
  else return;
  event.preventDefault();
});
attempt(ask);
