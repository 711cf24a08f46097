// SPDX-License-Identifier: Apache-2.0
// Panel of one question or example: its answers with and without memory, where the right one is, and what the
// tokens of an answer read.

// all answers, with their log-probabilities and the choice of each way
function offeredTable(found, run) {
  const head = element("tr", {}, element("th", { scope: "col" }, found.measure || "Log-probability, nats"), ...run.ways.map((way) => element("th", { scope: "col" }, way)));
  const rows = found.answers.map((each) => {
    const cells = each.logprobs.map((value, at) => element("td", each.chosen[at] ? { class: "most" } : {}, (each.chosen[at] ? "→ " : "") + value.toFixed(1).replace("-", "−")));
    const name = element("th", { scope: "row", class: "offered" }, each.right ? `${nameOf(each)} ✓` : nameOf(each));
    return element("tr", each.right ? { class: "gold" } : {}, name, ...cells);
  });
  return element("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "Answers" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function nameOf(each) {
  const text = inOneLine(each.text).trim();
  return text.length > 60 ? `${each.number + 1} “${text.slice(0, 60)}…”` : text;
}

function greedyTable(greedy, run) {
  const rows = greedy.map((each, at) => {
    const text = each.right ? each.text : `${each.text || "␣"}…`;
    return element("tr", {}, element("th", { scope: "row" }, `greedy ${run.ways[at]}`), element("td", {}, labelOf(text, each.right), " ", signOf(each.right)));
  });
  return element("table", {}, element("tbody", {}, ...rows));
}

// where the right answer is in the memory, and for which of its tokens that place was retrieved
function standing(found) {
  const { place } = found;
  const missed = found.found.filter((each) => !each).length;
  const all = found.found.length;
  const whole = all === 1 ? "the only token" : `all ${counted(all, "token")}`;
  let said = `The right place was retrieved for ${missed ? "no token" : whole} of the answer.`;
  if (missed && missed < all) said = `The right place was not retrieved for ${number(missed)} of ${counted(all, "token")} of the answer.`;
  const inBlocks = found.blocks.length ? ` Every layer read ${found.blocks.some((each) => each.right) ? "a passage that holds the answer" : "other passages, without the answer"}.` : "";
  return [
    element("h2", {}, `The answer is at position ${number(place.position)} of the memory, ${counted(place.distance, "token")} back`),
    element("span", { class: "quote", dir: "auto" }, `…${inOneLine(place.before)}`, element("mark", {}, inOneLine(place.text)), `${inOneLine(place.after)}…`),
    element("p", { class: "verdict standing" }, signOf(!missed), ` ${said}${inBlocks}`),
  ];
}

// the tokens of one answer as a heat map; a click, or the arrow keys, show what a token read
function heatOf(each, found, run, askToken, chosen) {
  const box = element("p", { class: "heat", tabindex: 0, role: "group", dir: "auto", "aria-label": "Tokens of the answer. Left and right arrow keys move from token to token." });
  const shown = element("div", { class: "reading", "aria-live": "polite" });
  const map = new Heatmap(box);
  map.show(each.heat);
  let at = null;
  const choose = async (next) => {
    if (!map.has(next)) return;
    at = next;
    map.choose(next, [], false);
    const token = await askToken({ answer: each.number, token: next });
    if (at !== next) return; // the user has gone on
    shown.replaceChildren(...readingParts(token, run, `token ${number(next + 1)} of ${number(map.end)}`, () => null));
  };
  const tried = (next) => choose(next).catch(tell);
  box.addEventListener("click", (event) => {
    const token = event.target.closest("[data-at]");
    if (token) tried(Number(token.dataset.at));
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    tried(at === null ? 0 : at + step);
    event.preventDefault();
  });
  if (chosen !== null) tried(chosen);
  return [box, shown];
}

function answersPanel(found, run, askToken) {
  const parts = [
    element("p", { class: "passage prompt", dir: "auto" }, inOneLine(found.prompt)),
    element("p", { class: "where" }, `${run.unit} ${number(found.item + 1)} · ${shownText(found.name)} · right: `, element("b", {}, shownText(found.label))),
  ];
  if (found.held) parts.push(element("p", { class: "hint" }, found.held));
  parts.push(offeredTable(found, run));
  if (found.greedy.length) parts.push(greedyTable(found.greedy, run));
  if (found.place) parts.push(...standing(found));
  const heated = found.answers.filter((each) => each.heat);
  parts.push(element("h2", {}, "Tokens that are more likely with memory are blue, less likely ones orange. Choose one to see what it read."));
  for (const each of heated) {
    if (heated.length === 1) {
      parts.push(...heatOf(each, found, run, askToken, found.worst));
      continue;
    }
    const opened = each.right || each.chosen[0];
    const [ours, theirs] = each.logprobs;
    const gain = `${(ours - theirs).toFixed(1).replace("-", "−")} nats of memory`;
    const summary = element("summary", {}, `${nameOf(each)} · ${gain}${each.right ? " · right" : ""}${each.chosen[0] ? " · LongMem's answer" : ""}`);
    parts.push(element("details", opened ? { open: "" } : {}, summary, ...heatOf(each, found, run, askToken, null)));
  }
  if (found.blocks.length) {
    parts.push(element("h2", {}, `Read by every layer: ${counted(found.blocks.length, "passage")}`));
    parts.push(element("ol", {}, ...found.blocks.map((block) => blockItem(block, () => null))));
  }
  return parts;
}
