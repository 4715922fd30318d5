// One prompt's answer, in a card of its own: probabilities of labels, or text as it comes.

import { $, element, post } from "/page/shared.js";

const SHOWN = 12; // labels in a card
const since = (began) => `${Math.round(performance.now() - began).toLocaleString("en")} ms`;

/** Whether the prompt answered; what went wrong is told in its card. `told` is null for the model alone. */
export async function answer(name, told, how, signal) {
  const place = card(name);
  const began = performance.now();
  try {
    await (how === "classify" ? classify : complete)(name, told, place, signal, began);
    return true;
  } catch (error) {
    const stopped = error.name === "AbortError";
    place.time.textContent = stopped ? "stopped" : "failed";
    if (!stopped) place.body.append(element("p", error.message, "wrong"));
    return false;
  }
}

function card(name) {
  const made = element("article", "", "answer");
  const title = element("h3");
  const version = element("span", name);
  const time = element("small", "…");
  title.append(version, time);
  const body = element("div");
  made.append(title, body);
  $("answers").append(made);
  return { version, time, body };
}

function given(told) {
  const texts = Object.fromEntries([...$("fields").querySelectorAll("textarea")].map((box) => [box.name, box.value]));
  if (!told) return texts.text ?? Object.values(texts)[0];
  return told.fields.length === 1 ? texts[told.fields[0]] : Object.fromEntries(told.fields.map((f) => [f, texts[f]]));
}

async function classify(name, told, place, signal, began) {
  const options = $("options").value.split("\n").map((one) => one.trim()).filter(Boolean);
  const asked = { model: name, input: given(told), ...(told && !told.labels.length ? { options } : {}) };
  const answer = await (await post("/v1/classify", asked, signal)).json();
  place.time.textContent = since(began);
  place.version.textContent = answer.model;
  const [found] = answer.data;
  const bars = element("dl");
  const sorted = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [label, probability] of sorted.slice(0, SHOWN)) {
    const best = label === found.label ? "best" : "";
    const bar = element("progress", "", best);
    bar.max = 1;
    bar.value = probability;
    bar.setAttribute("aria-label", label);
    const cell = element("dd");
    cell.append(bar);
    bars.append(element("dt", label, best), cell, element("dd", `${(100 * probability).toFixed(1)}%`, `value ${best}`));
  }
  place.body.replaceChildren(bars);
  if (sorted.length > SHOWN) place.body.append(element("p", `and ${sorted.length - SHOWN} more`, "more"));
  if (found.cut) place.body.append(element("p", `${found.cut} tokens of the text did not fit.`, "more"));
}

async function complete(name, told, place, signal, began) {
  const input = given(told);
  const asked = {
    model: name, stream: true, max_tokens: Number($("tokens").value), temperature: Number($("temperature").value),
    ...(typeof input === "string" ? { prompt: input } : { fields: input }),
  };
  const text = element("p", "", "text");
  if (!told) text.append(element("span", input, "given"));
  const added = element("span");
  text.append(added);
  place.body.replaceChildren(text);
  const answer = await post("/v1/completions", asked, signal);
  let first = "";
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    first ||= since(began);
    place.version.textContent = event.model;
    const more = event.choices[0]?.text ?? "";
    added.textContent += text.textContent ? more : more.replace(/^ +/, ""); // a card begins with a word
    place.time.textContent = `first ${first}, all ${since(began)}`;
  }
  if (!added.textContent) place.body.append(element("p", "Nothing was added: the text had its end.", "more"));
}

// The data of server-sent events, each of which is one line of JSON here.
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let whole = false;
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) break;
    const parts = (waiting + value).split("\n\n");
    waiting = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((one) => one.startsWith("data: "))?.slice(6);
      whole ||= data === "[DONE]";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
  if (!whole) throw new Error("The server broke off.");
}
