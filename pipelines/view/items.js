// SPDX-License-Identifier: Apache-2.0
// State of the page. The address after # names the cell, the filters and the item, so that going back and links work.

const byId = (id) => document.getElementById(id);
const KINDS = { all: "all items", wrong: "LongMem wrong", right: "LongMem right", gained: "right only with LongMem", lost: "right only without" };
const NAMES = { normalised: "mean log-probability", greedy: "greedy first token", calibrated: "calibration", generated: "generation" };
// parts of the state that are numbers of an option, with the letter that names them in the address
const LETTERS = { task: "t", shots: "c", memory: "m", seed: "d", scoring: "s", show: "f", gold: "g", answer: "a", first: "p", item: "i" };
const state = { run: null, list: null, at: {}, turn: 0 };

const task = () => state.run.tasks[state.at.task];

function address(changed) {
  const at = { ...state.at, ...changed };
  return "#" + Object.entries(LETTERS).filter(([name]) => at[name] !== null).map(([name, letter]) => `${letter}=${at[name]}`).join("&");
}

// the cell with the most in memory, and the last scoring, which is calibrated where there is one
function initial(taskAt) {
  const { shots, memory_shots: memory, tasks } = state.run;
  const scorings = tasks[taskAt].scorings;
  const scoring = scorings.includes("calibrated") ? scorings.indexOf("calibrated") : 0;
  return { task: taskAt, shots: Math.min(...shots), memory: Math.max(...memory), seed: 0, scoring, show: 0, gold: -1, answer: -1, first: 0, item: null };
}

function addressed() {
  const given = new URLSearchParams(location.hash.slice(1));
  const whole = (name) => (/^-?\d+$/.test(given.get(LETTERS[name]) ?? "") ? Number(given.get(LETTERS[name])) : null);
  const taskAt = whole("task");
  const at = initial(state.run.tasks[taskAt] ? taskAt : 0);
  for (const name of Object.keys(LETTERS)) if (name !== "task" && whole(name) !== null) at[name] = whole(name);
  return at;
}

function tell(error) {
  byId("panel").replaceChildren(element("p", { class: "error", role: "alert" }, `${error.message}. Does longmem view still run?`));
}

function fill(id, options, value) {
  byId(id).replaceChildren(...options.map(([option, text]) => element("option", { value: option }, shownText(text))));
  byId(id).value = value;
  byId(id).disabled = options.length < 2;
}

function fillControls() {
  const { run, at } = state;
  fill("task", run.tasks.map((each, number) => [number, each.name]), at.task);
  fill("shots", run.shots.map((each) => [each, number(each)]), at.shots);
  fill("memory", run.memory_shots.map((each) => [each, number(each)]), at.memory);
  fill("seed", Array.from({ length: run.seeds }, (_, seed) => [seed, `seed ${seed}`]), at.seed);
  fill("scoring", task().scorings.map((each, number) => [number, NAMES[each]]), at.scoring);
  const labels = task().labels.map((each, number) => [number, each]);
  fill("gold", [[-1, "any"], ...labels], at.gold);
  fill("answer", [[-1, "any"], ...labels, ...(labels.length ? [[labels.length, "no label"]] : [])], at.answer);
}

function itemLink(each) {
  const about = element("span", { class: "about" }, element("span", {}, "right: ", element("b", {}, shownText(each.gold))));
  about.append(element("span", {}, "LongMem: ", labelOf(each.longmem, each.right ? each.longmem : each.gold)));
  if (each.backbone_right !== null) about.append(element("span", {}, "backbone: ", labelOf(each.backbone, each.gold)));
  const text = element("span", { class: "text", dir: "auto" }, inOneLine(each.text));
  return element("a", { href: address({ item: each.item }), "data-item": each.item, tabindex: -1 }, signOf(each.right), text, about);
}

async function showList() {
  const { task: taskAt, seed, shots, memory, scoring, show, gold, answer, first } = state.at;
  const list = await ask("items", { task: taskAt, seed, shots, memory, scoring, show, gold, answer, first });
  state.list = list;
  const share = (count) => `${number(count)} of ${number(list.counts.all)}`;
  const theirs = task().labels.length ? ` · backbone right ${share(list.backbone_right)}` : "";
  const how = list.scoring === task().scorings[scoring] ? "" : ", by mean log-probability without memory";
  byId("facts").textContent = `${shownText(state.run.model)} · LongMem right ${share(list.counts.right)}${theirs}${how}`;
  fill("show", Object.entries(KINDS).map(([kind, name], number) => [number, `${name} (${list.counts[kind]})`]), show);
  byId("items").replaceChildren(...list.items.map(itemLink));
  if (!list.items.length) byId("items").append(element("p", { class: "hint none" }, "No item of this kind."));
  byId("items").scrollTop = 0;
  const end = list.first + list.items.length;
  byId("shown").textContent = list.total ? `${number(list.first + 1)}–${number(end)} of ${number(list.total)}` : "none";
  byId("earlier").disabled = list.first === 0;
  byId("later").disabled = end >= list.total;
}

async function showItem() {
  const turn = ++state.turn;
  const { task: taskAt, seed, shots, memory, item } = state.at;
  for (const old of byId("items").querySelectorAll(".chosen")) old.classList.remove("chosen");
  if (item === null) {
    byId("panel").replaceChildren(element("p", { class: "hint" }, "Choose an item: click it, or move with the arrow keys."));
    return;
  }
  const link = byId("items").querySelector(`[data-item="${item}"]`);
  if (link) {
    link.classList.add("chosen");
    link.scrollIntoView({ block: "nearest" });
  }
  const found = await ask("item", { task: taskAt, seed, shots, memory, item });
  if (turn !== state.turn) return; // the user has gone on
  byId("panel").replaceChildren(...itemPanel(found, task(), state.run));
  byId("panel").scrollTop = 0;
}

async function go(at) {
  const before = JSON.stringify({ ...state.at, item: null });
  state.at = at;
  if (JSON.stringify({ ...at, item: null }) !== before) {
    fillControls();
    await showList();
  }
  await showItem();
}

// steps of the keyboard replace the entry of the history, jumps add one
function change(changed, jumps = true) {
  if (jumps) location.hash = address(changed).slice(1);
  else {
    history.replaceState(null, "", address(changed));
    go(addressed()).catch(tell);
  }
}

// one item further in the list, of those that are wrong or of all; its page is turned with it
function step(by, wrong) {
  const { numbers, items, first } = state.list;
  const wrongs = wrong ? new Set(state.list.wrong) : null;
  let at = numbers.indexOf(state.at.item);
  if (at < 0) at = by > 0 ? first - 1 : first + items.length;
  do at += by; while (at >= 0 && at < numbers.length && wrongs && !wrongs.has(numbers[at]));
  if (at < 0 || at >= numbers.length) return;
  const page = Math.floor(at / state.run.page_items) * state.run.page_items;
  change({ item: numbers[at], first: page }, false);
}

function turnPage(by) {
  const first = state.list.first + by * state.run.page_items;
  if (first >= 0 && first < state.list.total) change({ first });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.list) return;
  if (event.target.closest("select, input")) return;
  const inPanel = event.target.closest("aside");
  if (event.key === "ArrowDown" && !inPanel) step(1, false);
  else if (event.key === "ArrowUp" && !inPanel) step(-1, false);
  else if (event.key === "n") step(1, true);
  else if (event.key === "p") step(-1, true);
  else if (event.key === "w") change({ show: state.at.show === 1 ? 0 : 1, first: 0 });
  else if (event.key === "[" || event.key === "]") turnPage(event.key === "]" ? 1 : -1);
  else return;
  event.preventDefault();
}

for (const name of ["task", "shots", "memory", "seed", "scoring", "show", "gold", "answer"]) {
  byId(name).addEventListener("change", (event) => {
    const value = Number(event.target.value);
    if (name === "task") location.hash = address(initial(value)).slice(1);
    else change({ [name]: value, first: 0 });
  });
}
byId("earlier").addEventListener("click", () => turnPage(-1));
byId("later").addEventListener("click", () => turnPage(1));
addEventListener("keydown", onKey);
addEventListener("hashchange", () => go(addressed()).catch(tell));

async function begin() {
  state.run = await ask("run");
  await go(addressed());
}

begin().catch(tell);
