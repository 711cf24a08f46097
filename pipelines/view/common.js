// SPDX-License-Identifier: Apache-2.0
// What all pages share. Texts are foreign: they become text nodes, and characters that steer a terminal or the direction
// of writing become visible names.
"use strict";

const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function shownText(text) {
  return text
    .replace(/\r\n/g, "\n")
    .replace(STEERING, (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

// shows line breaks, which would be invisible in a token of their own
const withBreaks = (text) => shownText(text).replace(/\n/g, "↵\n");
const inOneLine = (text) => shownText(text).replace(/\s*\n\s*/g, " ");

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const number = (value) => value.toLocaleString("en-US");
const counted = (value, unit) => `${number(value)} ${unit}${value === 1 ? "" : "s"}`;

const percent = (share) => (share > 0 && share < 0.01 ? "below 1%" : `${(100 * share).toFixed(0)}%`);

function bar(share) {
  const filled = element("i");
  filled.style.width = `${Math.min(100, 100 * share)}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, filled);
}

const signOf = (right) => element("span", { class: `sign ${right ? "right" : "wrong"}`, role: "img", "aria-label": right ? "right" : "wrong" }, right ? "✓" : "✗");
// an answer; `none` names a missing one
const labelOf = (label, right, none) => element("span", { class: `label ${right ? "right" : "wrong"}` }, label === null ? none : shownText(label));
const withArticle = (word) => `${/^[aeiou]/.test(word) ? "an" : "a"} ${word}`;

// asks the server of this page
async function ask(name, values = {}) {
  const reply = await fetch(`${name}?${new URLSearchParams(values)}`);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
}
