// SPDX-License-Identifier: Apache-2.0
// Panel of one item: its text, the answers, what each model and vote says of each label, and what it read.

const SCORINGS = { "": "mean log-probability", _greedy: "greedy first token", _calibrated: "calibrated" };
const MODELS = { longmem: "LongMem", backbone: "backbone", reading: "reading alone", votes: "votes alone", regression: "regression alone", idf_votes: "shared words alone" };
const VOTES = { idf: "shared words", values: "values", target: "label place", label: "places on labels" };


function quoteOf(example, same) {
  const target = element("mark", same ? { class: "same" } : {}, inOneLine(example.target));
  return element("span", { class: "quote", dir: "auto" }, inOneLine(example.before), target, inOneLine(example.after).trimEnd());
}

// answers as a table of models and ways to choose a label
function answersTable(item, run) {
  const rows = [];
  for (const [suffix, scoring] of Object.entries(SCORINGS)) {
    for (const [model, name] of Object.entries(MODELS)) {
      const key = model + suffix;
      // only the calibrated models have others beside LongMem and the backbone
      if (!(key in item.answers) || (suffix === "" && !["longmem", "backbone"].includes(model))) continue;
      const answer = item.answers[key];
      if (answer === null && suffix !== "_greedy") continue;
      rows.push(element("tr", {}, element("th", { scope: "row" }, `${name}, ${scoring}`), element("td", {}, labelOf(answer, answer === item.label, run.none), " ", signOf(answer === item.label))));
    }
  }
  return element("table", {}, element("tbody", {}, ...rows));
}

// what each model and vote gives each label
function labelsTable(item, labels) {
  const columns = Object.entries(item.logprobs).map(([side, values]) => ({ name: `${MODELS[side]}, nats`, values, shown: (value) => value.toFixed(2) }));
  for (const [by, values] of Object.entries(item.votes)) columns.push({ name: `votes: ${VOTES[by]}`, values, shown: percent });
  if (item.regression) columns.push({ name: "regression", values: item.regression, shown: percent });
  const head = element("tr", {}, element("th", { scope: "col" }, "Label"), ...columns.map((each) => element("th", { scope: "col" }, each.name)));
  const rows = labels.map((label, at) => {
    const cells = columns.map(({ values, shown }) => element("td", values[at] === Math.max(...values) && values[at] !== 0 ? { class: "most" } : {}, shown(values[at])));
    return element("tr", label === item.label ? { class: "gold" } : {}, element("th", { scope: "row" }, shownText(label) + (label === item.label ? " ✓" : "")), ...cells);
  });
  return element("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "Labels" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function demonstrationItem(each, item) {
  const same = each.label === item.label;
  const weights = Object.entries(VOTES).filter(([by]) => typeof each[by] === "number").map(([by, name]) => `${name} ${percent(each[by])}`);
  const about = element("span", { class: "about" });
  if (each.rank) about.append(element("b", {}, `${each.rank}.`));
  if (typeof each.places === "number") about.append(element("b", {}, percent(each.places)));
  about.append(labelOf(each.label, same), element("span", {}, same ? "the right label" : "another label"));
  if (weights.length) about.append(element("span", {}, `votes: ${weights.join(", ")}`));
  if (typeof each.labels === "number") about.append(element("span", {}, `${percent(each.labels)} on its label`));
  about.append(element("span", {}, shownText(each.name)));
  const parts = [about];
  if (typeof each.places === "number") parts.push(bar(each.places));
  return element("li", { class: "demonstration" }, ...parts, quoteOf(each, same));
}

function demonstrationLists(item, run) {
  const parts = [];
  const add = (title, list) => {
    if (list.length) parts.push(element("h2", {}, title), element("ol", {}, ...list.map((each) => demonstrationItem(each, item))));
  };
  if (run.whole) {
    const read = item.demonstrations.filter((each) => each.rank);
    add(`Read whole at every layer, the nearest first: ${read.length}`, read);
    add("Voted, and were not read", item.demonstrations.filter((each) => !each.rank));
  } else {
    add("Read where the label is predicted, by weight of all places", item.demonstrations);
  }
  if (!parts.length) parts.push(element("p", { class: "hint" }, "It read no demonstration from memory."));
  if (item.in_context.length) {
    const list = element("ol", {}, ...item.in_context.map((each) => demonstrationItem(each, item)));
    parts.push(element("details", {}, element("summary", {}, `In context: ${item.in_context.length}`), list));
  }
  return parts;
}

// how far the memory was trusted
function trust(item, run) {
  if (item.mixture) {
    const names = { reading: "reading", backbone: "backbone", regression: "regression", ...VOTES };
    const weights = Object.entries(item.mixture).map(([part, weight]) => `${names[part]} ${weight.toFixed(2)}`);
    return `Calibrated is a mixture with the weights ${weights.join(", ")}.`;
  }
  if (run.whole || item.votes.label === undefined) return "";
  const onLabels = item.votes.label.reduce((sum, each) => sum + each, 0);
  const places = `${percent(onLabels)} of what was read are places on labels of demonstrations.`;
  return run.copies ? `Copies from memory had ${percent(item.copy_share)} of the prediction; ${places}` : places;
}

function itemPanel(item, task, run) {
  const generated = typeof item.answers.answer === "string";
  const passage = element("p", { class: "passage", dir: "auto" }, withBreaks(item.before), element("mark", {}, withBreaks(item.target)));
  const parts = [passage, element("p", { class: "where" }, `item ${number(item.item + 1)} · ${shownText(item.name)} · right: `, element("b", {}, shownText(item.label)))];
  if (generated) {
    const { answer, exact_match: exact, f1 } = item.answers;
    const row = (name, value) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value));
    parts.push(element("table", {}, element("tbody", {}, row("LongMem's answer", element("b", {}, shownText(answer) || "nothing")), row("exact match", signOf(exact === 1)), row("F1", percent(f1)))));
    parts.push(element("p", { class: "hint" }, "What a generated answer read is not kept."));
  } else {
    parts.push(answersTable(item, run), element("h2", {}, "Each label: log-probability, and share of the votes"), labelsTable(item, task.labels));
    const said = trust(item, run);
    if (said) parts.push(element("p", { class: "verdict" }, said));
  }
  if (!generated) parts.push(...demonstrationLists(item, run));
  return parts;
}
