// SPDX-License-Identifier: Apache-2.0
// Panels next to the text: one token with what it read, and lists of the tokens that gained or lost most.

const address = (doc, position) => `#d=${doc}&t=${position}`;

function tokenPanel(doc, token, run, blocks) {
  const link = (position) => (source.has(doc, position) ? address(doc, position) : null);
  const characters = token.length === 1 ? `character ${number(token.start)}` : `characters ${number(token.start)} to ${number(token.start + token.length - 1)}`;
  const parts = readingParts(token, run, `position ${number(token.position)} · ${characters} · segment ${number(token.segment)}`, link);
  if (blocks.length) {
    parts.push(element("h2", {}, `Read by every layer, for the whole segment: ${counted(blocks.length, "passage")}`));
    parts.push(element("ol", {}, ...blocks.map((block) => blockItem(block, link))));
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
