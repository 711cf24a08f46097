// SPDX-License-Identifier: Apache-2.0
// State of the page. The address after # names the cell, the filters and the item, so that going back and links work.

const byId = (id) => document.getElementById(id);
// parts of the state that every run has, with the letter that names them in the address; the controls of a task are more
const LETTERS = { task: "t", show: "f", gold: "g", answer: "a", first: "p", item: "i" };
const FILTERS = ["show", "gold", "answer"];
const state = { run: null, list: null, at: {}, turn: 0, controls: null };

const task = () => state.run.tasks[state.at.task];
const lettersOf = (taskAt) => ({ ...LETTERS, ...Object.fromEntries(state.run.tasks[taskAt].controls.map((each) => [each.name, each.letter])) });

function address(changed) {
  const at = { ...state.at, ...changed };
  return "#" + Object.entries(lettersOf(at.task)).filter(([name]) => at[name] !== null).map(([name, letter]) => `${letter}=${at[name]}`).join("&");
}

function initial(taskAt) {
  const chosen = Object.fromEntries(state.run.tasks[taskAt].controls.map((each) => [each.name, each.initial]));
  return { task: taskAt, ...chosen, show: 0, gold: -1, answer: -1, first: 0, item: null };
}

// the choices that name the cell of an item
function cell() {
  return { task: state.at.task, ...Object.fromEntries(task().controls.map(({ name }) => [name, state.at[name]])) };
}

function addressed() {
  const given = new URLSearchParams(location.hash.slice(1));
  const whole = (letter) => (/^-?\d+$/.test(given.get(letter) ?? "") ? Number(given.get(letter)) : null);
  const taskAt = whole(LETTERS.task);
  const at = initial(state.run.tasks[taskAt] ? taskAt : 0);
  for (const [name, letter] of Object.entries(lettersOf(at.task))) if (name !== "task" && whole(letter) !== null) at[name] = whole(letter);
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
  const labels = task().labels.map((each, number) => [number, each]);
  // made anew for another task only: a choice keeps the focus of the keyboard
  if (state.controls !== at.task) {
    const held = document.activeElement.id;
    const choices = task().controls.map((each) => element("label", {}, `${each.title} `, chooser(each.name)));
    byId("controls").replaceChildren(element("label", {}, "Task ", chooser("task")), ...choices);
    state.controls = at.task;
    byId(held)?.focus();
  }
  fill("task", run.tasks.map((each, number) => [number, each.name]), at.task);
  for (const each of task().controls) fill(each.name, each.options, at[each.name]);
  fill("gold", [[-1, "any"], ...labels], at.gold);
  fill("answer", [[-1, "any"], ...labels, [labels.length, run.none]], at.answer);
  // answers that differ from item to item cannot be chosen by name
  for (const name of ["gold", "answer"]) byId(name).parentElement.hidden = !labels.length;
}

function chooser(name) {
  const made = element("select", { id: name });
  made.addEventListener("change", () => {
    const value = Number(made.value);
    if (name === "task") location.hash = address(initial(value)).slice(1);
    else change({ [name]: value, first: 0 });
  });
  return made;
}

function itemLink(each) {
  const { none, other } = state.run;
  const about = element("span", { class: "about" }, element("span", {}, "right: ", element("b", {}, shownText(each.gold))));
  about.append(element("span", {}, "LongMem: ", labelOf(each.longmem, each.right, none)));
  if (each.backbone_right !== null) about.append(element("span", {}, `${other}: `, labelOf(each.backbone, each.backbone_right, none)));
  if (each.about) about.append(element("span", { class: "condition" }, shownText(each.about)));
  const text = element("span", { class: "text", dir: "auto" }, inOneLine(each.text));
  return element("a", { href: address({ item: each.item }), "data-item": each.item, tabindex: -1 }, signOf(each.right), text, about);
}

async function showList() {
  const { show, gold, answer, first } = state.at;
  const list = await ask("items", { ...cell(), show, gold, answer, first });
  state.list = list;
  const share = (count) => `${number(count)} of ${number(list.counts.all)}`;
  const theirs = list.compared ? ` · ${state.run.other} right ${share(list.backbone_right)}` : "";
  byId("facts").textContent = `${shownText(state.run.model)} · LongMem right ${share(list.counts.right)}${theirs}${list.note}`;
  fill("show", Object.entries(state.run.kinds).map(([kind, name], number) => [number, `${name} (${list.counts[kind]})`]), show);
  byId("items").replaceChildren(...list.items.map(itemLink));
  if (!list.items.length) byId("items").append(element("p", { class: "hint none" }, `No ${state.run.unit} of this kind.`));
  byId("items").scrollTop = 0;
  const end = list.first + list.items.length;
  byId("shown").textContent = list.total ? `${number(list.first + 1)}–${number(end)} of ${number(list.total)}` : "none";
  byId("earlier").disabled = list.first === 0;
  byId("later").disabled = end >= list.total;
}

async function showItem() {
  const turn = ++state.turn;
  const { item } = state.at;
  for (const old of byId("items").querySelectorAll(".chosen")) old.classList.remove("chosen");
  if (item === null) {
    byId("panel").replaceChildren(element("p", { class: "hint" }, `Choose ${withArticle(state.run.unit)}: click it, or move with the arrow keys.`));
    return;
  }
  const link = byId("items").querySelector(`[data-item="${item}"]`);
  if (link) {
    link.classList.add("chosen");
    link.scrollIntoView({ block: "nearest" });
  }
  const chosen = cell();
  const found = await ask("item", { ...chosen, item });
  if (turn !== state.turn) return; // the user has gone on
  const parts = state.run.panel === "answers" ? answersPanel(found, state.run, (values) => ask("token", { ...chosen, item, ...values })) : itemPanel(found, task(), state.run);
  byId("panel").replaceChildren(...parts);
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

for (const name of FILTERS) byId(name).addEventListener("change", () => change({ [name]: Number(byId(name).value), first: 0 }));
byId("earlier").addEventListener("click", () => turnPage(-1));
byId("later").addEventListener("click", () => turnPage(1));
addEventListener("keydown", onKey);
addEventListener("hashchange", () => go(addressed()).catch(tell));

async function begin() {
  state.run = await ask("run");
  byId("heading").textContent = `What did this ${state.run.unit} read?`;
  await go(addressed());
}

begin().catch(tell);
