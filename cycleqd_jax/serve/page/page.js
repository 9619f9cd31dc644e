"use strict";
// Asks one model, or two side by side, and shows the report of the run. Text is inserted as text only, never as markup.
(() => {
  const LOOK_MS = 5000;
  const $ = (id) => document.getElementById(id);
  const say = (text) => ($("status").textContent = text);
  let asking = null;
  let shown = null;
  let looking = null;

  class Failure extends Error {}

  async function get(path, options = {}) {
    const answer = await fetch(path, { credentials: "same-origin", ...options });
    if (answer.status === 401) {
      $("login").hidden = false;
      $("key").focus();
    }
    if (!answer.ok) {
      const body = await answer.json().catch(() => ({}));
      throw new Failure(body.error ? body.error.message : `the server answered ${answer.status}`);
    }
    return answer;
  }

  const post = (path, body, signal) =>
    get(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

  function describe(model) {
    const facts = model.cycleqd;
    const average = facts.scores && typeof facts.scores.average === "number" ? `, average ${(100 * facts.scores.average).toFixed(1)}%` : "";
    return facts.individual === undefined ? facts.kind : `individual ${facts.individual}${average}`;
  }

  async function listModels() {
    const models = (await (await get("/v1/models")).json()).data;
    $("models").replaceChildren(
      ...models.map((model) => {
        const option = document.createElement("option");
        option.value = model.id;
        option.label = `${model.id} (${describe(model)})`;
        return option;
      }),
    );
    if (!$("first").value && models.length) $("first").value = models[0].id;
  }

  async function showReport(version) {
    const answer = await fetch("/report", { credentials: "same-origin" });
    if (!answer.ok) return; // there is none yet; the next look asks again
    shown = version;
    $("grown").hidden = true;
    $("report").src = `/report?version=${encodeURIComponent(version)}`;
    await listModels();
  }

  async function look() {
    const state = await (await get("/report/state")).json();
    $("name").textContent = state.name;
    $("run").hidden = $("cells").hidden = !state.run;
    if (!state.run) return;
    if (shown === null) await showReport(state.version);
    else if (shown !== state.version) $("grown").hidden = false;
    looking = state.version;
  }

  // Reads the events of a stream, and adds the text of each to a panel.
  async function ask(side, model, signal) {
    $(`title-${side}`).textContent = `Reply of ${model}`;
    const panel = $(`reply-${side}`);
    panel.textContent = "";
    const request = {
      model,
      messages: [{ role: "user", content: $("prompt").value }],
      max_tokens: Number($("tokens").value),
      temperature: 0,
      stream: true,
    };
    const reader = (await post("/v1/chat/completions", request, signal)).body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Failure("the server ended the stream early");
      const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.slice("data: ".length);
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Failure(chunk.error.message);
        for (const choice of chunk.choices) panel.append(choice.delta.content || "");
      }
    }
  }

  async function submit(event) {
    event.preventDefault();
    if (asking) return;
    asking = new AbortController();
    const models = { first: $("first").value.trim(), second: $("second").value.trim() };
    $("panel-second").hidden = !models.second;
    $("send").disabled = true;
    $("stop").disabled = false;
    say("Waiting for the reply.");
    const asked = Object.entries(models).filter(([, model]) => model);
    const results = await Promise.allSettled(asked.map(([side, model]) => ask(side, model, asking.signal)));
    const failed = results.map((result) => result.reason).filter(Boolean);
    const stopped = failed.some((reason) => reason.name === "AbortError");
    say(stopped ? "Stopped." : failed.length ? `Failed: ${failed.map((reason) => reason.message).join("; ")}` : "Complete.");
    asking = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }

  async function login(event) {
    event.preventDefault();
    try {
      await post("/session", { key: $("key").value });
      $("key").value = "";
      $("login").hidden = true;
      say("");
      await start();
    } catch (error) {
      say(`Failed: ${error.message}`);
    }
  }

  async function start() {
    await look();
    await listModels();
  }

  $("ask").addEventListener("submit", submit);
  $("login").addEventListener("submit", login);
  $("stop").addEventListener("click", () => asking && asking.abort());
  $("update").addEventListener("click", () => showReport(looking).catch((error) => say(`Failed: ${error.message}`)));
  // The report tells which individual was chosen in its archives.
  window.addEventListener("message", (event) => {
    if (event.origin !== location.origin || event.source !== $("report").contentWindow) return;
    const id = event.data && event.data.individual;
    if (!Number.isInteger(id)) return;
    const side = document.querySelector('input[name="side"]:checked').value;
    $(side).value = `child:${id}`;
    say(`The ${side} model is child:${id}.`);
  });
  setInterval(() => $("login").hidden && look().catch(() => {}), LOOK_MS);
  start().catch((error) => say(error.message));
})();
