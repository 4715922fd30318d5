// The page of `foreword serve`. What comes from people or prompts is put in as text, never as markup.

import { answer } from "/page/answers.js";
import { $, call, element } from "/page/shared.js";

const MOST = 6; // at once: a browser opens six connections to a server, and a seventh would wait for one of them
const chosen = new Map(); // name -> what /v1/prompts/NAME says of it; null for the model alone
const typed = new Map(); // field -> text, kept while its box is not shown
let learning = Promise.resolve(); // what the chosen prompts read is being asked for
let run = null; // aborts what is under way
let listed = 0; // counts lists asked for, so that an old answer never replaces a newer one

const pathOf = (name) => `/v1/prompts/${encodeURIComponent(name)}`;
const mode = () => document.querySelector("input[name=what]:checked").value;

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// The list on the left.

async function list(after = "") {
  const own = ++listed;
  const search = $("search").value.trim();
  let page;
  try {
    page = await (await call(`/v1/prompts?${new URLSearchParams({ limit: "50", after, search })}`)).json();
  } catch (error) {
    if (own !== listed) return;
    if (!after) $("prompts").replaceChildren();
    say(error.message, true);
    return;
  }
  if (own !== listed) return;
  const lines = page.data.map(line);
  if (after) {
    $("prompts").append(...lines);
  } else {
    if (page.model && page.continues && page.model.includes(search)) {
      lines.unshift(line({ name: page.model, may_infer: true, alone: true }));
    }
    if (!lines.length) lines.push(element("li", search ? "No name has that in it." : "There are none yet.", "none"));
    $("prompts").replaceChildren(...lines);
  }
  $("more").hidden = !page.next;
  $("more").onclick = () => list(page.next);
  $("add").hidden = !page.may_add;
  $("about").textContent = `Many prompts over one frozen model${page.model ? `, ${page.model}` : ""}.`;
  access();
  $("modes").hidden = !page.continues;
  if (!page.continues) document.querySelector("input[value=classify]").checked = true;
  fields();
  if ($("status").classList.contains("wrong")) say("");
}

function line(one) {
  const item = element("li");
  const label = element("label");
  const box = element("input");
  box.type = "checkbox";
  box.checked = chosen.has(one.name);
  box.disabled = !one.may_infer;
  if (box.disabled) label.title = "This key may change it, and not use it.";
  box.addEventListener("change", () => choose(one, box));
  label.append(box, element("span", one.name), element("small", one.alone ? "no prompt" : `v${one.current}`));
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
  say("");
  if (!box.checked) {
    chosen.delete(one.name);
  } else if (chosen.size >= MOST) {
    box.checked = false;
    say(`${MOST} prompts at most stand side by side; take one away first.`, true);
  } else {
    chosen.set(one.name, null); // it counts from now on; what it reads is told in a moment
    if (!one.alone) {
      learning = Promise.all([learning, learn(one.name, box)]);
      await learning;
    }
  }
  fields();
}

async function learn(name, box) {
  try {
    const told = await (await call(pathOf(name))).json();
    if (chosen.has(name)) chosen.set(name, told);
  } catch (error) {
    chosen.delete(name);
    if (box) box.checked = false;
    say(error.message, true);
  }
}

// One box for each field that the chosen prompts read; what was typed stays.
function fields() {
  const names = [...new Set([...chosen.values()].flatMap((one) => (one ? one.fields : ["text"])))];
  if (!names.length) names.push("text");
  const shown = [...$("fields").querySelectorAll("textarea")].map((box) => box.name);
  if (shown.join("\0") !== names.join("\0")) {
    const made = names.flatMap((name, number) => {
      const label = element("label", name === "text" ? "Text" : name);
      const box = element("textarea");
      box.id = label.htmlFor = `field-${number}`;
      box.name = name;
      box.rows = 3;
      box.required = true;
      // Another name for the one box there was keeps its text.
      box.value = typed.get(name) ?? (number ? "" : (typed.get(shown[0]) ?? ""));
      typed.set(name, box.value);
      box.addEventListener("input", () => typed.set(name, box.value));
      return [label, box];
    });
    $("fields").replaceChildren(...made);
  }
  const bare = [...chosen.values()].some((one) => one && !one.labels.length);
  $("choices").hidden = mode() !== "classify" || !bare;
  for (const one of document.querySelectorAll(".only-text")) one.hidden = mode() === "classify";
  if (!$("answers").querySelector(".answer")) {
    const words = "Choose prompts, type a text, and see side by side what each makes of it.";
    $("answers").replaceChildren(element("p", words, "none"));
  }
}

async function remove(name) {
  if (!confirm(`Remove ${name} with all its versions?`)) return;
  try {
    await call(pathOf(name), { method: "DELETE" });
    chosen.delete(name);
    await list();
    say(`${name} is removed.`);
    $("search").focus();
  } catch (error) {
    say(error.message, true);
  }
}

async function upload(event) {
  event.preventDefault();
  const name = $("name").value.trim();
  const button = $("upload").querySelector("button");
  button.disabled = true;
  say(`Adding ${name} …`);
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const body = $("file").files[0];
    const added = await (await call(pathOf(name), { method: "PUT", headers, body })).json();
    $("upload").reset();
    $("add").open = false;
    if (chosen.has(name)) await learn(name);
    await list();
    say(`${added.id} is added.`);
  } catch (error) {
    say(error.message, true);
  }
  button.disabled = false;
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
  const own = (run = new AbortController());
  say("");
  $("run").textContent = "Stop";
  await learning;
  $("answers").replaceChildren();
  const how = mode();
  const done = await Promise.all([...chosen].map(([name, told]) => answer(name, told, how, own.signal)));
  run = null;
  $("run").textContent = "Run";
  const answered = done.filter(Boolean).length;
  say(answered === done.length ? "" : `${answered} of ${done.length} answered.`);
}

// Who asks.

function access(asked = false) {
  const key = sessionStorage.getItem("key");
  $("forget").hidden = !key;
  $("access").hidden = !key && !asked;
}

function use(key) {
  if (key) sessionStorage.setItem("key", key);
  else sessionStorage.removeItem("key");
  $("key").value = "";
  run?.abort();
  chosen.clear();
  $("prompts").replaceChildren();
  $("answers").replaceChildren();
  $("add").hidden = $("more").hidden = true;
  access(true);
  fields();
  list();
}

let typing = 0;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(list, 150);
});
$("file").addEventListener("change", () => {
  const name = $("file").files[0]?.name.replace(/\.(zip|tgz|tar|tar\.gz|gz)$/i, "") ?? "";
  if (!$("name").value) $("name").value = name.replace(/[^A-Za-z0-9._-]+/g, "-");
});
$("ask").addEventListener("submit", ask);
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
$("upload").addEventListener("submit", upload);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  use($("key").value.trim());
});
$("forget").addEventListener("click", () => use(""));
for (const one of document.querySelectorAll("input[name=what]")) one.addEventListener("change", fields);
fields();
list();
