// The page of `foreword serve`. What comes from people or prompts is put in as text, never as markup.

const $ = (id) => document.getElementById(id);
const chosen = new Map(); // name -> what /v1/prompts/NAME says of it; null for the model alone
let model = null;
let next = "";
let run = null; // aborts what is under way
let listed = 0; // counts lists asked for, so that an old answer never replaces a newer one

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) $("access").hidden = false;
  let message = `The server answered ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch {}
  throw new Error(message);
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function list(more = false) {
  const own = ++listed;
  try {
    const search = $("search").value.trim();
    if (!more) {
      next = "";
      const models = await (await call("/v1/models")).json();
      model = models.data.find((one) => one.created === 0)?.id ?? null;
      $("access").hidden = !sessionStorage.getItem("key");
      $("about").textContent = model ? `Many prompts over one frozen model, ${model}.` : "Many prompts over one frozen model.";
    }
    const query = new URLSearchParams({ limit: "50", after: more ? next : "", search });
    const page = await (await call(`/v1/prompts?${query}`)).json();
    if (own !== listed) return;
    const lines = page.data.filter((one) => one.may_infer || one.may_administer).map(line);
    if (!more && model && model.includes(search)) lines.unshift(line({ name: model, may_infer: true, alone: true }));
    more ? $("prompts").append(...lines) : $("prompts").replaceChildren(...lines);
    if (!more && !lines.length) $("prompts").append(element("li", "None of that name."));
    next = page.next ?? "";
    $("more").hidden = !next;
    if ($("status").classList.contains("wrong")) say("");
  } catch (error) {
    if (own === listed) say(error.message, true);
  }
}

function line(one) {
  const item = element("li");
  const label = element("label");
  const box = element("input");
  box.type = "checkbox";
  box.checked = chosen.has(one.name);
  box.disabled = !one.may_infer;
  box.addEventListener("change", () => choose(one, box));
  label.append(box, element("span", one.name), element("small", one.alone ? "the model alone" : `v${one.current}`));
  item.append(label);
  if (one.may_administer) {
    const button = element("button", "×");
    button.type = "button";
    button.title = `Remove ${one.name}`;
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", () => remove(one.name));
    item.append(button);
  }
  return item;
}

async function choose(one, box) {
  if (!box.checked) {
    chosen.delete(one.name);
  } else {
    try {
      chosen.set(one.name, one.alone ? null : await (await call(`/v1/prompts/${encodeURIComponent(one.name)}`)).json());
    } catch (error) {
      box.checked = false;
      say(error.message, true);
      return;
    }
  }
  fields();
}

// One box for each field that the chosen prompts read; what was typed stays.
function fields() {
  const names = [...new Set([...chosen.values()].flatMap((one) => (one ? one.fields : ["text"])))];
  if (!names.length) names.push("text");
  const kept = new Map([...$("fields").querySelectorAll("textarea")].map((box) => [box.name, box.value]));
  const first = kept.values().next().value ?? "";
  const made = names.flatMap((name, number) => {
    const label = element("label", names.length > 1 || name !== "text" ? name : "Text");
    const box = element("textarea");
    box.id = label.htmlFor = number ? `text-${number}` : "text";
    box.name = name;
    box.rows = 3;
    box.required = true;
    box.placeholder = "Type a text";
    box.value = kept.get(name) ?? (number ? "" : first);
    return [label, box];
  });
  $("fields").replaceChildren(...made);
}

async function remove(name) {
  if (!confirm(`Remove ${name} with all its versions?`)) return;
  try {
    await call(`/v1/prompts/${encodeURIComponent(name)}`, { method: "DELETE" });
    chosen.delete(name);
    await list();
    fields();
    say(`${name} is removed.`);
  } catch (error) {
    say(error.message, true);
  }
}

function card(name) {
  const made = element("article", "", "answer");
  const title = element("h3", "");
  const time = element("small", "…");
  title.append(element("span", name), time);
  const body = element("div");
  made.append(title, body);
  $("answers").append(made);
  return { made, time, body };
}

function given(about) {
  const texts = Object.fromEntries([...$("fields").querySelectorAll("textarea")].map((box) => [box.name, box.value]));
  if (!about) return Object.values(texts)[0];
  return about.fields.length === 1 ? texts[about.fields[0]] : Object.fromEntries(about.fields.map((f) => [f, texts[f]]));
}

async function classify(name, about, place, signal) {
  const body = JSON.stringify({ model: name, input: given(about) });
  const answer = await call("/v1/classify", { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
  const [found] = (await answer.json()).data;
  const bars = element("dl");
  const sorted = Object.entries(found.probabilities).sort((a, b) => b[1] - a[1]);
  for (const [label, probability] of sorted.slice(0, 12)) {
    const best = label === found.label ? "best" : "";
    const bar = element("progress", "", best);
    bar.max = 1;
    bar.value = probability;
    bar.setAttribute("aria-label", label);
    const cell = element("dd");
    cell.append(bar);
    bars.append(element("dt", label, best), cell, element("dd", `${(100 * probability).toFixed(1)}%`, "value"));
  }
  place.body.replaceChildren(bars);
  if (sorted.length > 12) place.body.append(element("p", `and ${sorted.length - 12} more`, "more"));
  if (found.cut) place.body.append(element("p", `${found.cut} pieces of the text did not fit.`, "more"));
}

async function complete(name, about, place, signal, began) {
  const input = given(about);
  const asked = {
    model: name, stream: true, max_tokens: Number($("tokens").value), temperature: Number($("temperature").value),
    ...(typeof input === "string" ? { prompt: input } : { fields: input }),
  };
  const text = element("p");
  if (!about) text.append(element("span", input, "given"));
  const added = element("span");
  text.append(added);
  place.body.replaceChildren(text);
  const headers = { "Content-Type": "application/json" };
  const answer = await call("/v1/completions", { method: "POST", headers, body: JSON.stringify(asked), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((one) => one.startsWith("data: "))?.slice(6);
      if (!data || data === "[DONE]") continue;
      const told = JSON.parse(data);
      if (told.error) throw new Error(told.error.message);
      added.textContent += told.choices[0]?.text ?? "";
      place.time.textContent = `${Math.round(performance.now() - began)} ms`;
    }
  }
}

async function ask(event) {
  event.preventDefault();
  if (run) {
    run.abort();
    return;
  }
  if (!chosen.size) {
    say("Choose at least one prompt.", true);
    return;
  }
  const what = document.querySelector("input[name=what]:checked").value;
  run = new AbortController();
  $("run").textContent = "Stop";
  $("answers").replaceChildren();
  say("");
  const all = [...chosen].map(async ([name, about]) => {
    const place = card(name);
    const began = performance.now();
    try {
      await (what === "classify" ? classify : complete)(name, about, place, run.signal, began);
      place.time.textContent = `${Math.round(performance.now() - began)} ms`;
    } catch (error) {
      const stopped = error.name === "AbortError";
      place.time.textContent = stopped ? "stopped" : "";
      if (!stopped) place.body.replaceChildren(element("p", error.message, "wrong"));
    }
  });
  await Promise.all(all);
  run = null;
  $("run").textContent = "Run";
}

async function upload(event) {
  event.preventDefault();
  const name = $("name").value.trim();
  try {
    const body = await $("file").files[0].arrayBuffer();
    const headers = { "Content-Type": "application/octet-stream" };
    const added = await (await call(`/v1/prompts/${encodeURIComponent(name)}`, { method: "PUT", headers, body })).json();
    $("upload").reset();
    $("add").open = false;
    await list();
    say(`${added.id} is added.`);
  } catch (error) {
    say(error.message, true);
  }
}

let typing = 0;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(list, 150);
});
$("more").addEventListener("click", () => list(true));
$("ask").addEventListener("submit", ask);
$("upload").addEventListener("submit", upload);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value.trim());
  chosen.clear();
  fields();
  list();
});
document.querySelectorAll("input[name=what]").forEach((one) =>
  one.addEventListener("change", () => {
    const label = document.querySelector("input[name=what]:checked").value === "classify";
    $("length").hidden = $("heat").hidden = label;
  }),
);
fields();
list();
