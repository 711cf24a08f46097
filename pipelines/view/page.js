// SPDX-License-Identifier: Apache-2.0
// State of the page. The address after # names document and token, so that going back and links work.

const byId = (id) => document.getElementById(id);
const map = new Heatmap(byId("text"));
const state = { run: null, doc: 0, position: null, tab: "token", sign: 1, turn: 0 };

const named = () => state.run.documents[state.doc];

function addressed() {
  const given = new URLSearchParams(location.hash.slice(1));
  const doc = Number(given.get("d"));
  const position = given.get("t") === null ? null : Number(given.get("t"));
  return {
    doc: Number.isInteger(doc) && state.run.documents[doc] ? doc : 0,
    position: Number.isInteger(position) ? position : null,
  };
}

function tell(error) {
  byId("panel").replaceChildren(element("p", { class: "error", role: "alert" }, `${error.message}. Does longmem view still run?`));
}

async function showPage(position) {
  const { first, end } = named();
  const size = state.run.page_tokens;
  const at = Math.min(Math.max(position, first), Math.max(end - 1, first));
  const page = await source.page(state.doc, first + Math.floor((at - first) / size) * size, size);
  map.show(page);
  byId("text").scrollTop = 0;
  byId("shown").textContent = page.texts.length
    ? `${number(page.first)}–${number(map.end - 1)} of ${number(end - 1)}` : "no predicted token";
  byId("earlier").disabled = !source.whole || page.first <= first;
  byId("later").disabled = !source.whole || map.end >= end;
}

async function showDocument(doc) {
  state.doc = doc;
  map.page = null;
  byId("document").value = doc;
  const slider = byId("position");
  [slider.min, slider.max] = [named().first, Math.max(named().end - 1, named().first)];
  // an exported passage is shown as a whole
  byId("along").hidden = byId("earlier").hidden = byId("later").hidden = !source.whole;
  const along = await source.overview(doc);
  // means of gains over many tokens are much smaller than the gain of one
  const levels = state.run.baseline ? along.gains.map((gain) => level(8 * gain)) : along.logprobs.map(level);
  byId("overview").replaceChildren(...levels.map((kind) => element("i", { class: kind })));
}

async function showPanel() {
  const turn = ++state.turn;
  for (const name of ["token", "gained", "lost"]) {
    const chosen = name === state.tab;
    byId(`tab-${name}`).setAttribute("aria-selected", chosen);
    byId(`tab-${name}`).tabIndex = chosen ? 0 : -1;
  }
  let parts, read = [];
  if (state.tab === "token") {
    if (state.position === null) return;
    const token = await source.token(state.doc, state.position);
    const blocks = state.run.every_layer ? await source.blocks(state.doc, token.segment) : [];
    parts = tokenPanel(state.doc, token, state.run, blocks);
    read = token.places.map((place) => place.position);
  } else {
    parts = listPanel(state.doc, await source.extremes(state.doc, state.sign), state.sign);
  }
  if (turn !== state.turn) return; // the user has gone on
  byId("panel").replaceChildren(...parts);
  byId("panel").scrollTop = 0;
  if (state.position !== null) map.choose(state.position, read, false);
}

async function go(doc, position) {
  if (doc !== state.doc || map.page === null) await showDocument(doc);
  if (position === null) {
    if (!map.page) await showPage(named().first);
    return;
  }
  state.position = Math.min(Math.max(position, named().first), named().end - 1);
  if (!source.has(doc, state.position)) state.position = map.page ? map.page.first : null;
  if (!map.page || !map.has(state.position)) await showPage(state.position ?? named().first);
  byId("position").value = state.position;
  if (state.position !== null) map.choose(state.position, [], true);
  await showPanel();
}

// steps of the keyboard replace the entry of the history, jumps add one
function moveTo(position, jumps = false) {
  const { first, end } = named();
  if (position < first || position >= end || !source.has(state.doc, position)) return;
  if (jumps) location.hash = address(state.doc, position).slice(1);
  else {
    history.replaceState(null, "", address(state.doc, position));
    go(state.doc, position).catch(tell);
  }
}

async function alongList(step) {
  if (!state.run.baseline) return;
  const list = await source.extremes(state.doc, state.sign);
  if (!list.length) return;
  const at = list.findIndex((each) => each.position === state.position);
  const next = at < 0 ? (step > 0 ? 0 : list.length - 1) : (at + step + list.length) % list.length;
  state.tab = "token";
  moveTo(list[next].position, true);
}

function turnPage(step) {
  if (!map.page || !source.whole) return;
  const position = step > 0 ? map.end : map.page.first - state.run.page_tokens;
  if (position >= named().first && position < named().end) moveTo(position, true);
}

// without a baseline no token has a gain: the colours show the probability itself, and there are no lists of gains
function showWithoutBaseline() {
  byId("facts").append(" · the backbone alone did not run in one pass, so there are no gains");
  byId("legend").replaceChildren(
    element("span", {}, "likely with memory"), ...["", "l1", "l2", "l3", "l4"].map((kind) => element("i", { class: kind })), element("span", {}, "unlikely"),
  );
  byId("tab-gained").hidden = byId("tab-lost").hidden = byId("list-keys").hidden = true;
  byId("text").setAttribute("aria-label", "Text. Arrow keys move from token to token, 1 to 4 go to what was read.");
}

function openTab(name) {
  state.tab = name;
  if (name !== "token") state.sign = name === "gained" ? 1 : -1;
  showPanel().catch(tell);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !map.page) return;
  const inside = event.target.closest("input, select, [role=tablist], aside");
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 };
  if (event.key in moves && !inside) {
    const step = moves[event.key];
    let next = state.position === null || !map.has(state.position) ? map.page.first : state.position + step;
    if (/Up|Down/.test(event.key) && state.position !== null && map.has(state.position)) next = map.beside(state.position, step);
    state.tab = "token";
    moveTo(next);
  } else if (event.key in moves && event.target.closest("[role=tablist]")) {
    const tabs = state.run.baseline ? ["token", "gained", "lost"] : ["token"];
    openTab(tabs[(tabs.indexOf(state.tab) + moves[event.key] + tabs.length) % tabs.length]);
    byId(`tab-${state.tab}`).focus();
  } else if (event.target.closest("select")) return;
  else if (event.key === "n" || event.key === "p") alongList(event.key === "n" ? 1 : -1).catch(tell);
  else if (event.key === "[" || event.key === "]") turnPage(event.key === "]" ? 1 : -1);
  else if (/^[1-9]$/.test(event.key)) {
    const link = byId("panel").querySelector(`[data-place="${event.key}"]`);
    if (link) location.hash = link.hash;
  } else return;
  event.preventDefault();
}

byId("text").addEventListener("click", (event) => {
  const token = event.target.closest("[data-at]");
  if (!token) return;
  state.tab = "token";
  moveTo(map.page.first + Number(token.dataset.at));
});
byId("panel").addEventListener("click", (event) => {
  // a token of a list is shown itself; one that is chosen already changes no address
  const link = event.target.closest("a");
  if (!link) return;
  state.tab = "token";
  if (link.hash === location.hash) showPanel().catch(tell);
});
byId("document").addEventListener("change", (event) => {
  location.hash = address(Number(event.target.value), state.run.documents[event.target.value].first).slice(1);
});
byId("position").addEventListener("change", (event) => moveTo(Number(event.target.value), true));
byId("earlier").addEventListener("click", () => turnPage(-1));
byId("later").addEventListener("click", () => turnPage(1));
for (const name of ["token", "gained", "lost"]) byId(`tab-${name}`).addEventListener("click", () => openTab(name));
addEventListener("keydown", onKey);
addEventListener("hashchange", () => {
  const { doc, position } = addressed();
  go(doc, position).catch(tell);
});

async function begin() {
  state.run = await source.run();
  const { model, change, documents } = state.run;
  const size = `${(100 * Math.abs(change)).toFixed(1)}% ${change < 0 ? "lower" : "higher"}`;
  const changed = change === null ? "" : ` · perplexity ${size} with memory`;
  byId("facts").textContent = shownText(`${model}${changed}`);
  if (!state.run.baseline) showWithoutBaseline();
  byId("document").replaceChildren(...documents.map((each, at) => element("option", { value: at }, shownText(each.name))));
  if (!source.whole) byId("document").disabled = true;
  if (!documents.length) throw new Error("no document was scored");
  const { doc, position } = addressed();
  await go(source.whole ? doc : (await source.page()).document, position);
}

begin().catch(tell);
