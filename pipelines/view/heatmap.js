// SPDX-License-Identifier: Apache-2.0
// Text as a heat map of what memory gained or cost; without a baseline, of how unlikely each token was with memory.

const LEVELS = [0.25, 1, 2, 4]; // nats from which a gain has the next colour: factors of 1.3, 2.7, 7 and 55

function level(gain) {
  const size = Math.abs(gain);
  const reached = LEVELS.filter((least) => size >= least).length;
  return reached ? (gain > 0 ? "g" : "l") + reached : "";
}

function probability(logprob) {
  const value = Math.exp(logprob);
  if (value >= 0.1) return `${(100 * value).toFixed(0)}%`;
  if (value >= 0.001) return `${(100 * value).toPrecision(2)}%`;
  return `1 in ${number(Number(Math.exp(-logprob).toPrecision(2)))}`;
}

function factor(gain) {
  const times = Math.exp(Math.abs(gain));
  if (times < 1.005) return "as likely as without memory";
  const shown = times < 10 ? times.toFixed(times < 2 ? 2 : 1) : number(Number(times.toPrecision(2)));
  return `${shown} times ${gain > 0 ? "more" : "less"} likely with memory`;
}

// The tokens of one page, as elements in their order.
class Heatmap {
  constructor(box) {
    this.box = box;
    this.tokens = [];
    this.page = null;
  }

  show(page) {
    this.page = page;
    this.tokens = page.texts.map((text, at) => {
      // a log-probability is never positive: an unlikely token has the colours of a loss
      const kind = level(page.without === null ? page.with[at] : page.with[at] - page.without[at]);
      const made = element("span", { "data-at": at, ...(kind && { class: kind }) });
      if (text === "") {
        // one of several tokens that are bytes of one character
        made.className = `${kind} part`;
        made.textContent = "·";
      } else if (text.includes("\n")) {
        for (const part of shownText(text).split(/(\n)/)) {
          made.append(part === "\n" ? element("i", { class: "mark" }, "↵") : "", part);
        }
      } else {
        made.textContent = shownText(text);
      }
      return made;
    });
    const parts = [];
    page.gaps.forEach((gap, at) => {
      if (gap) parts.push(shownText(gap));
      parts.push(this.tokens[at]);
    });
    this.box.replaceChildren(...parts, shownText(page.rest));
  }

  has(position) {
    return this.page !== null && position >= this.page.first && position < this.end;
  }

  get end() {
    return this.page.first + this.page.texts.length;
  }

  at(position) {
    return this.tokens[position - this.page.first];
  }

  choose(position, read, scrolls) {
    for (const old of this.box.querySelectorAll(".chosen, .read")) old.classList.remove("chosen", "read");
    for (const place of read) if (this.has(place)) this.at(place).classList.add("read");
    if (!this.has(position)) return;
    const chosen = this.at(position);
    chosen.classList.add("chosen");
    if (scrolls) {
      const [box, place] = [this.box.getBoundingClientRect(), chosen.getBoundingClientRect()];
      if (place.top < box.top + 24 || place.bottom > box.bottom - 24) {
        this.box.scrollTop += place.top - box.top - box.height / 3;
      }
    }
  }

  // position of the token above (-1) or below (1) another one, nearest to it from side to side
  beside(position, step) {
    const here = this.at(position).getBoundingClientRect();
    let [best, distance, line] = [position, Infinity, null];
    for (let other = position + step; this.has(other); other += step) {
      const there = this.at(other).getBoundingClientRect();
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > here.height / 2) break;
      if (Math.abs(there.left - here.left) < distance) [best, distance] = [other, Math.abs(there.left - here.left)];
    }
    return best;
  }
}
