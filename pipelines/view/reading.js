// SPDX-License-Identifier: Apache-2.0
// What one token read: its probabilities, how far the copies were trusted, and the places with the text around them.

const NO_GAIN = "No gain: the backbone alone did not run in one pass.";

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

// `link` returns the address of a place, or null where the page cannot show it
function placeItem(token, place, at, link) {
  const same = place.same ?? place.text === token.text;
  const distance = `${counted(token.position - place.position, "token")} back`;
  const run = place.run ? `${place.run === 16 ? "16 or more" : place.run} equal before it` : "";
  const quote = element(
    "span", { class: "quote", dir: "auto" },
    `…${inOneLine(place.before)}`, element("mark", { class: same ? "same" : "other" }, withBreaks(place.text).trimEnd() || "␣"), `${inOneLine(place.after)}…`,
  );
  const about = element("span", { class: "about" }, element("b", {}, `${at + 1}. ${percent(place.weight)}`), element("span", {}, same ? "✓ this token" : "✗ another token"));
  if (place.right) about.append(element("b", { class: "right" }, "the right place"));
  about.append(element("span", {}, run), element("span", {}, distance));
  const href = link(place.position);
  const parts = [about, bar(place.weight), quote];
  return element("li", { class: "place" }, ...(href === null ? parts : [element("a", { href, "data-place": at + 1 }, ...parts)]));
}

function blockItem(block, link) {
  const about = element("span", { class: "about" }, element("b", {}, `positions ${number(block.first)} to ${number(block.end - 1)}`));
  if (block.right) about.append(element("b", { class: "right" }, "holds the answer"));
  about.append(element("span", {}, counted(block.end - block.first, "token")));
  const parts = block.text === undefined ? [about] : [about, element("span", { class: "quote", dir: "auto" }, `${inOneLine(block.text)}…`)];
  // position 0 is the start token, which is not predicted
  const href = link(Math.max(block.first, 1));
  return element("li", {}, ...(href === null ? parts : [element("a", { href }, ...parts)]));
}

// everything of a token but the blocks; `where` says where it is
function readingParts(token, run, where, link) {
  const rows = [row("with memory", token.with)];
  if (token.without !== null) rows.push(row("without memory", token.without));
  if (run.copies && token.places.length) rows.splice(1, 0, row("before copies", token.uncopied));
  if (token.window !== null) rows.push(row("backbone in windows", token.window));
  const gained = token.without === null ? [] : [element("b", {}, `${factor(token.with - token.without)}.`), " "];
  const parts = [
    element("p", { class: "token", dir: "auto" }, token.text === "" ? "part of a character" : `“${withBreaks(token.text).trimEnd() || "␣"}”`),
    element("p", { class: "where" }, where),
    element("table", {}, element("tbody", {}, ...rows)),
    element("p", { class: "verdict" }, ...gained, verdict(token, run)),
  ];
  if (token.without === null) parts.push(element("p", { class: "hint" }, NO_GAIN));
  if (run.copies && token.places.length) parts.push(bar(token.share));
  if (token.places.length) {
    const all = token.places.reduce((sum, place) => sum + place.weight, 0);
    const kind = run.copies ? "Copied from" : "Attended to";
    const rest = all < 0.995 ? `; other places have ${percent(1 - all)}` : "";
    parts.push(element("h2", {}, `${kind}, by weight${rest}`));
    parts.push(element("ol", {}, ...token.places.map((place, at) => placeItem(token, place, at, link))));
  }
  return parts;
}
