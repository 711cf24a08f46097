// SPDX-License-Identifier: Apache-2.0
// Data of the run: from the page's own server, by pieces, or from the passage that an exported page holds.

const exported = document.getElementById("data");
const source = exported ? heldSource(JSON.parse(exported.textContent)) : servedSource();

function servedSource() {
  const lists = new Map();
  return {
    whole: true,
    run: () => ask("run"),
    overview: (doc) => ask("overview", { document: doc }),
    page: (doc, first, count) => ask("page", { document: doc, first, count }),
    token: (doc, position) => ask("token", { document: doc, position }),
    blocks: (doc, segment) => ask("blocks", { document: doc, segment }),
    extremes(doc, sign) {
      const key = `${doc} ${sign}`;
      if (!lists.has(key)) lists.set(key, ask("extremes", { document: doc, sign }));
      return lists.get(key);
    },
    has: () => true,
  };
}

function heldSource(data) {
  const { run, page } = data;
  const end = page.first + page.texts.length;
  const around = (at, from, to) => page.texts.slice(Math.max(at + from, 0), at + to).join("");
  return {
    whole: false,
    run: async () => run,
    overview: async () => ({ firsts: [], [run.baseline ? "gains" : "logprobs"]: [] }),
    page: async () => page,
    token: async (doc, position) => data.tokens[position],
    blocks: async (doc, segment) => data.blocks[segment],
    async extremes(doc, sign) {
      const gains = page.with.map((value, at) => sign * (value - page.without[at]));
      const order = [...gains.keys()].filter((at) => gains[at] > 0).sort((a, b) => gains[b] - gains[a]);
      return order.slice(0, 200).map((at) => ({
        position: page.first + at, gain: sign * gains[at], before: around(at, -6, 0), text: page.texts[at],
      }));
    },
    has: (doc, position) => doc === page.document && position >= page.first && position < end,
  };
}
