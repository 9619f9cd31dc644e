"use strict";
// Replays the insertions into the archives up to the chosen generation. Text is inserted as text only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const $ = (id) => document.getElementById(id);
  const panels = data.panels.map((panel, index) => {
    const svg = document.querySelector(`svg[data-panel="${index}"]`);
    const cells = new Map([...svg.querySelectorAll("[data-cell]")].map((rect) => [rect.dataset.cell, rect]));
    svg.querySelectorAll("title").forEach((title) => title.remove()); // the tooltip below shows more
    return { ...panel, svg, cells };
  });
  const percent = (score) => (100 * score).toFixed(1);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  let chosen = null;

  function make(parent, name, attributes = {}, text = null) {
    const node = name[0] === ":" ? document.createElementNS(SVG, name.slice(1)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.append(node);
    return node;
  }

  function archivesAt(generation) {
    const archives = data.tasks.map(() => new Map());
    for (const [time, task, cell, id] of data.events) if (time <= generation) archives[task].set(cell.join(), [cell, id]);
    return archives;
  }

  function project(archive, task, pair) {
    const best = new Map();
    const flat = pair[0] === pair[1];
    for (const [cell, id] of archive.values()) {
      const spot = `${flat ? 0 : cell[pair[1]]},${cell[pair[0]]}`;
      const score = data.individuals[id].scores[task];
      const now = best.get(spot);
      if (!now || score > now.score || (score === now.score && id < now.id)) best.set(spot, { id, score });
    }
    return best;
  }

  function show(generation) {
    const archives = archivesAt(generation);
    for (const panel of panels) {
      const best = project(archives[panel.archive], panel.archive, panel.pair);
      for (const [spot, rect] of panel.cells) {
        const elite = best.get(spot);
        if (elite) {
          const share = panel.high > panel.low ? (elite.score - panel.low) / (panel.high - panel.low) : 1;
          rect.setAttribute("fill", data.ramp[Math.round(share * (data.ramp.length - 1))]);
          rect.dataset.id = elite.id;
        } else {
          rect.removeAttribute("fill");
          delete rect.dataset.id;
        }
        rect.classList.toggle("chosen", elite !== undefined && elite.id === chosen);
      }
    }
    document.querySelectorAll(".count").forEach((count) => {
      count.textContent = `${archives[count.dataset.archive].size} of ${data.capacity} cells`;
    });
    const average = data.average[generation + 1];
    $("when").textContent =
      (generation < 0 ? "experts only" : `generation ${generation} of ${data.last}`) +
      (average === null ? "" : ` · best average ${percent(average)}%`);
    const champions = $("champions");
    champions.replaceChildren();
    archives.forEach((archive, task) => {
      let top = null;
      for (const [, id] of archive.values()) if (top === null || data.individuals[id].scores[task] > data.individuals[top].scores[task]) top = id;
      if (top === null) return;
      const text = `Best ${data.tasks[task]}: ${title(top)} (${percent(data.individuals[top].scores[task])}%)`;
      make(champions, "button", { type: "button" }, text).addEventListener("click", () => pick(top));
    });
  }

  const title = (id) => (data.individuals[id].expert !== null ? `${data.individuals[id].expert} expert` : `#${id}`);

  function origin(id) {
    const one = data.individuals[id];
    if (one.expert !== null) return "initial expert";
    const parts = [`generation ${one.generation}`];
    if (one.active !== null) parts.push(`${one.active} active`);
    if (one.parents.length) parts.push(`parents ${one.parents.map((parent) => "#" + parent).join(" and ")}`);
    return parts.join(", ");
  }

  function meters(parent, values, text, names = data.tasks) {
    const most = Math.max(1, ...values.map(Math.abs));
    values.forEach((value, task) => {
      const row = make(parent, "div", { class: "meter" });
      make(row, "span", {}, names[task]);
      const bar = make(make(row, "span", { class: "track" }), "i");
      bar.style.width = `${(100 * Math.abs(value)) / most}%`;
      bar.style.background = data.colors[task];
      if (value < 0) bar.style.opacity = 0.4;
      make(row, "span", {}, text(value));
    });
  }

  function pick(id) {
    choose(id);
    // A page of the same server that shows this one in a frame may ask the individual.
    if (window.parent !== window && location.protocol.startsWith("http")) window.parent.postMessage({ individual: id }, location.origin);
  }

  function choose(id) {
    chosen = id;
    const one = data.individuals[id];
    const facts = $("facts");
    facts.replaceChildren();
    make(facts, "h3", {}, one.expert !== null ? `${title(id)} (#${id})` : `Individual #${id}`);
    make(facts, "p", {}, origin(id));
    meters(facts, one.scores, (score) => percent(score));
    make(facts, "p", {}, `average ${percent(mean(one.scores))}%`);
    if (one.mix !== null && one.expert === null) {
      make(facts, "p", {}, "Weights of the experts, from the crossovers of its lineage:");
      meters(facts, one.mix, (share) => share.toFixed(2).replace("-", "−"), data.experts);
    }
    drawTree(id);
    for (const panel of panels) for (const rect of panel.cells.values()) rect.classList.toggle("chosen", rect.dataset.id === String(id));
  }

  // Draws the root at the left and four generations of ancestors to the right; clicking a node makes it the root.
  function drawTree(root) {
    const [across, down, width, height, depth] = [148, 44, 122, 36, 4];
    const svg = $("tree");
    svg.replaceChildren();
    const links = make(svg, ":g");
    let leaves = 0;
    let widest = 0;
    function place(id, level) {
      const one = data.individuals[id];
      const parents = level < depth ? one.parents.filter((parent) => data.individuals[parent]) : [];
      const spots = parents.map((parent) => place(parent, level + 1));
      const y = spots.length ? mean(spots) : down * leaves++ + down / 2;
      const x = level * across;
      widest = Math.max(widest, level);
      for (const spot of spots) {
        const [from, to] = [x + width, x + across];
        make(links, ":path", { d: `M${from} ${y}C${(from + to) / 2} ${y} ${(from + to) / 2} ${spot} ${to} ${spot}` });
      }
      if (level === depth && one.parents.length) make(links, ":path", { d: `M${x + width} ${y}h14`, "stroke-dasharray": "3 3" });
      const kind = one.expert !== null ? "node expert-node" : "node";
      const node = make(svg, ":g", { class: kind, transform: `translate(${x + 1} ${y - height / 2})`, tabindex: 0, role: "button" });
      make(node, ":rect", { width, height, rx: 8 });
      make(node, ":text", { x: 9, y: 15 }, one.expert !== null ? one.expert.slice(0, 17) : `#${id} · gen ${one.generation}`);
      make(node, ":text", { x: 9, y: 29, class: "sub" }, one.scores.map((score) => Math.round(100 * score)).join(" / "));
      make(node, ":title", {}, describe(id));
      node.addEventListener("click", () => pick(id));
      node.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), pick(id)));
      return y;
    }
    place(root, 0);
    const size = [widest * across + width + 18, leaves * down + 2];
    svg.setAttribute("width", size[0]);
    svg.setAttribute("height", size[1]);
    svg.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  }

  const describe = (id) =>
    [title(id), ...data.tasks.map((task, k) => `${task} ${percent(data.individuals[id].scores[k])}%`), origin(id)].join("\n");

  const tip = $("tip");
  for (const { svg } of panels) {
    svg.addEventListener("pointermove", (event) => {
      const id = event.target.dataset.id;
      tip.hidden = id === undefined;
      if (id === undefined) return;
      tip.textContent = describe(id);
      const [x, y] = [event.clientX + 16, event.clientY + 16];
      tip.style.left = `${Math.max(4, Math.min(x, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${y + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : y}px`;
    });
    svg.addEventListener("pointerleave", () => (tip.hidden = true));
    svg.addEventListener("click", (event) => event.target.dataset.id !== undefined && pick(Number(event.target.dataset.id)));
  }

  const slider = $("generation");
  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    $("play").textContent = "▶";
  };
  slider.addEventListener("input", () => {
    pause();
    show(Number(slider.value));
  });
  $("play").addEventListener("click", () => {
    if (timer !== null) return pause();
    if (Number(slider.value) >= data.last) slider.value = -1;
    $("play").textContent = "❚❚";
    const step = Math.max(1, Math.round(data.last / 120));
    timer = setInterval(() => {
      slider.value = Math.min(Number(slider.value) + step, data.last);
      show(Number(slider.value));
      if (Number(slider.value) >= data.last) pause();
    }, 70);
  });

  document.querySelectorAll(".js").forEach((element) => (element.hidden = false));
  let best = null;
  for (const [, , , id] of data.events) if (best === null || mean(data.individuals[id].scores) > mean(data.individuals[best].scores)) best = id;
  if (best !== null) choose(best);
  show(data.last);
})();
