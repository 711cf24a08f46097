// SPDX-License-Identifier: Apache-2.0
// Panels next to the text: one token with what it read, and lists of the tokens that gained or lost most.

const address = (doc, position) => `#d=${doc}&t=${position}`;

function row(name, logprob) {
  const value = element("td", {}, probability(logprob), element("small", {}, `${logprob.toFixed(2).replace("-", "−")} nats`));
  return element("tr", {}, element("th", { scope: "row" }, name), value);
}

// how far the copies were trusted, and whether that was right
function verdict(token, run) {
  if (!token.places.length) return "It read nothing: there was no memory before its segment, or memory was off.";
  const held = percent(token.copied);
  if (!run.copies) return `${held} of the attention went to places that hold this token.`;
  const share = percent(token.share);
  if (token.share < 0.05) return `Copies were hardly trusted, with ${share} of the prediction; ${held} of what they offered was this token.`;
  const right = token.copied >= 0.5 ? "That was right" : token.copied >= 0.05 ? "That was partly right" : "That was wrong";
  return `Copies from memory had ${share} of the prediction. ${right}: ${held} of what they offered was this token.`;
}

function placeItem(doc, token, place, at) {
  const same = place.text === token.text;
  const distance = `${counted(token.position - place.position, "token")} back`;
  const run = place.run ? `${place.run === 16 ? "16 or more" : place.run} equal before it` : "";
  const quote = element(
    "span", { class: "quote", dir: "auto" },
    `…${inOneLine(place.before)}`, element("mark", same ? {} : { class: "other" }, withBreaks(place.text).trimEnd() || "␣"), `${inOneLine(place.after)}…`,
  );
  const about = element(
    "span", { class: "about" },
    element("b", {}, `${at + 1}. ${percent(place.weight)}`), element("span", {}, same ? "✓ this token" : "✗ another token"), element("span", {}, run), element("span", {}, distance),
  );
  if (!source.has(doc, place.position)) return element("li", { class: "place" }, about, bar(place.weight), quote);
  const link = element("a", { href: address(doc, place.position), "data-place": at + 1 }, about, bar(place.weight), quote);
  return element("li", { class: "place" }, link);
}

function blockItem(doc, block) {
  const about = element("span", { class: "about" }, element("b", {}, `positions ${number(block.first)} to ${number(block.end - 1)}`), element("span", {}, counted(block.end - block.first, "token")));
  const quote = element("span", { class: "quote", dir: "auto" }, `${inOneLine(block.text)}…`);
  // position 0 is the start token, which is not predicted
  const first = Math.max(block.first, 1);
  if (!source.has(doc, first)) return element("li", {}, about, quote);
  return element("li", {}, element("a", { href: address(doc, first) }, about, quote));
}

function tokenPanel(doc, token, run, blocks) {
  const gain = token.with - token.without;
  const rows = [row("with memory", token.with), row("without memory", token.without)];
  if (run.copies && token.places.length) rows.splice(1, 0, row("before copies", token.uncopied));
  if (token.window !== null) rows.push(row("backbone in windows", token.window));
  const characters = token.length === 1 ? `character ${number(token.start)}` : `characters ${number(token.start)} to ${number(token.start + token.length - 1)}`;
  const parts = [
    element("p", { class: "token", dir: "auto" }, token.text === "" ? "part of a character" : `“${withBreaks(token.text).trimEnd() || "␣"}”`),
    element("p", { class: "where" }, `position ${number(token.position)} · ${characters} · segment ${number(token.segment)}`),
    element("table", {}, element("tbody", {}, ...rows)),
    element("p", { class: "verdict" }, element("b", {}, `${factor(gain)}.`), ` ${verdict(token, run)}`),
  ];
  if (run.copies && token.places.length) parts.push(bar(token.share));
  if (token.places.length) {
    const all = token.places.reduce((sum, place) => sum + place.weight, 0);
    const kind = run.copies ? "Copied from" : "Attended to";
    const rest = all < 0.995 ? `; other places have ${percent(1 - all)}` : "";
    parts.push(element("h2", {}, `${kind}, by weight${rest}`));
    parts.push(element("ol", {}, ...token.places.map((place, at) => placeItem(doc, token, place, at))));
  }
  if (blocks.length) {
    parts.push(element("h2", {}, `Read by every layer, for the whole segment: ${counted(blocks.length, "passage")}`));
    parts.push(element("ol", {}, ...blocks.map((block) => blockItem(doc, block))));
  }
  return parts;
}

function listPanel(doc, list, sign) {
  if (!list.length) return [element("p", { class: "hint" }, `No token ${sign > 0 ? "gained" : "lost"} anything.`)];
  const items = list.map((each) => {
    const about = element("span", { class: "about" }, element("b", {}, factor(each.gain).replace(" with memory", "")), element("span", {}, `position ${number(each.position)}`));
    const quote = element("span", { class: "quote", dir: "auto" }, `…${inOneLine(each.before)}`, element("mark", sign > 0 ? {} : { class: "other" }, withBreaks(each.text).trimEnd() || "␣"));
    return element("li", {}, element("a", { href: address(doc, each.position), "data-position": each.position }, about, quote));
  });
  return [element("p", { class: "hint" }, `The ${counted(list.length, "token")} that ${sign > 0 ? "gained" : "lost"} most ${source.whole ? "in this document" : "in this passage"}.`), element("ol", {}, ...items)];
}
