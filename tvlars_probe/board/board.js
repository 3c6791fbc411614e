"use strict";
(() => {
  const place = (id) => document.getElementById(id);
  const kind = document.body.dataset.page;
  const AGAIN = 2000; // milliseconds between two questions for the list

  // What tests and the curious look at.
  const board = { charts: null, asked: 0 };
  window.board = board;

  function lost(is) {
    if (place("lost")) place("lost").hidden = !is;
  }

  async function ask(address) {
    board.asked += 1;
    const answer = await fetch(address, { headers: { accept: "application/json" } });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.status === 204 ? null : answer.json();
  }

  // Ages go on without the server.
  function showAges() {
    for (const time of document.querySelectorAll("time[data-since]")) {
      const seconds = Math.max(0, (Date.now() - Date.parse(time.dataset.since)) / 1000);
      const fits = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]].find(([, length]) => seconds >= length);
      const text = Number.isNaN(seconds) ? "" : fits ? `${Math.floor(seconds / fits[1])} ${fits[0]}` : "0 s";
      if (time.textContent !== text) time.textContent = text;
    }
  }
  setInterval(showAges, 1000);

  // ---- the list

  function list() {
    const ticked = new Set();
    let known = "";
    let leftOut = 0;
    let behind = false;

    function choose() {
      const words = place("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      const status = place("status").value;
      let shown = 0;
      const rows = [...place("rows").rows];
      for (const row of rows) {
        const fits = words.every((word) => row.dataset.words.includes(word));
        row.hidden = !(fits && (status === "" || row.dataset.status === status));
        if (!row.hidden) shown += 1;
      }
      const more = leftOut ? `; ${leftOut} older ones are left out` : "";
      const text = rows.length ? `${shown} of ${rows.length} runs${more}` : "No runs yet: new ones appear here.";
      if (place("count").textContent !== text) place("count").textContent = text;
    }

    function offer() {
      const button = place("compare");
      button.disabled = ticked.size < 2;
      button.textContent = ticked.size < 2 ? "Compare: tick two" : `Compare ${ticked.size} runs`;
    }

    function show(content) {
      const focused = document.activeElement;
      const inRow = place("rows").contains(focused) ? focused.closest("tr").dataset.key : null;
      known = content.known;
      leftOut = content.left_out;
      behind = content.is_behind;
      place("rows").innerHTML = content.html;
      const there = new Set();
      for (const tick of place("rows").querySelectorAll("input")) {
        there.add(tick.value);
        tick.checked = ticked.has(tick.value);
      }
      // Who goes through the rows by keyboard stays where they are.
      for (const row of place("rows").rows) {
        if (row.dataset.key === inRow) row.querySelector(focused.tagName).focus({ preventScroll: true });
      }
      for (const key of [...ticked]) if (!there.has(key)) ticked.delete(key);
      offer();
      showAges();
      choose();
    }

    async function renew() {
      if (document.visibilityState === "hidden") return;
      try {
        const content = await ask(`rows?known=${known}`);
        if (content) show(content);
        lost(false);
      } catch {
        lost(true);
      }
    }

    place("search").addEventListener("input", choose);
    place("status").addEventListener("change", choose);
    place("rows").addEventListener("change", (event) => {
      if (event.target.checked) ticked.add(event.target.value);
      else ticked.delete(event.target.value);
      offer();
    });
    place("compare").addEventListener("click", () => {
      location.assign(`compare?${[...ticked].map((key) => `run=${key}`).join("&")}`);
    });
    document.addEventListener("visibilitychange", renew);
    const again = () => renew().then(() => setTimeout(again, behind ? AGAIN / 10 : AGAIN));
    again();
  }

  // ---- a run, or several compared

  // Without new Function, which the page's policy forbids, and without styles of vega's own, which it forbids, too.
  const settings = { ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  const drawn = { charts: [], sections: [] };

  function replace(id, content) {
    const home = place(id);
    // Sections have tables of one title, and the number of rows in it grows.
    const title = (s) => `${s.closest("section").id} ${s.textContent.replace(/ \(\d+\)$/, "")}`;
    const open = new Set([...home.querySelectorAll("details[open] > summary")].map(title));
    const known = home.querySelector("details") !== null;
    const height = home.offsetHeight;
    board.charts.forget(drawn[id]);
    home.style.minHeight = `${height}px`; // what stands below stays where it is while charts are drawn
    home.innerHTML = content.html;
    if (known) for (const details of home.querySelectorAll("details")) {
      details.open = open.has(title(details.querySelector("summary")));
    }
    Object.assign(board.charts.specs, content.specs);
    drawn[id] = Object.keys(content.specs);
    board.charts.mark();
    return board.charts.draw(drawn[id]).then(() => {
      home.style.minHeight = "";
      home.dataset.drawn = String(Number(home.dataset.drawn || 0) + 1);
    });
  }

  async function renewPart(id, query) {
    try {
      const content = await ask(`${id}?${query}`);
      if (content.picker !== undefined) {
        const chosen = board.charts.layer();
        place("picker").innerHTML = content.picker;
        if (place("layer")) place("layer").value = chosen;
      }
      if (content.note && kind === "run") content.html += `<p class="quiet">${content.note}</p>`;
      await replace(id, content);
    } catch (error) {
      const note = document.createElement("p");
      note.className = "trouble";
      note.textContent = `This part can't be had: ${error.message}`;
      board.charts.forget(drawn[id]);
      drawn[id] = [];
      place(id).replaceChildren(note);
    }
  }

  function run() {
    const key = document.body.dataset.run;
    const seen = {};
    let source = null;
    let isNear = false;

    // What is slow is made for those who want to see it.
    function renewSections() {
      if (!isNear || seen.sections === undefined || seen.sections === drawn.number) return;
      drawn.number = seen.sections;
      place("sections").setAttribute("aria-busy", "true");
      renewPart("sections", `run=${key}`).then(() => place("sections").removeAttribute("aria-busy"));
    }
    new IntersectionObserver((entries) => {
      isNear = entries[entries.length - 1].isIntersecting;
      renewSections();
    }, { rootMargin: "100px" }).observe(place("sections"));

    function take(news) {
      for (const [name, value] of Object.entries(news)) {
        if (name === "said") place("said").textContent = value;
        else if (name === "sections") {
          seen[name] = value;
          renewSections();
        } else if (name === "charts") {
          if (seen[name] !== value) renewPart(name, `run=${key}`);
          seen[name] = value;
        } else place(`part-${name}`).innerHTML = value;
      }
      board.charts.mark();
      showAges();
    }

    // A page that nobody sees asks for nothing: browsers allow a server few connections.
    function follow() {
      if (document.visibilityState === "hidden") {
        if (source) source.close();
        source = null;
      } else if (!source) {
        const opened = (source = new EventSource(`events?run=${key}`));
        source.onmessage = (event) => take(JSON.parse(event.data));
        source.onopen = () => lost(false);
        source.onerror = () => {
          if (opened.readyState !== EventSource.CLOSED) lost(true);
          else if (opened === source) refused();
        };
      }
    }

    // The browser doesn't ask again of itself, nor tell why: the run is gone, or too many are followed.
    async function refused() {
      try {
        const answer = await fetch(`events?run=${key}`);
        if (answer.ok) answer.body.cancel();
        else place("part-state").textContent = await answer.text();
        lost(false);
      } catch {
        lost(true);
      }
      setTimeout(() => {
        source = null;
        follow();
      }, 3 * AGAIN);
    }
    document.addEventListener("visibilitychange", follow);
    follow();
  }

  if (kind === "list") list();
  if (kind === "run" || kind === "compare") {
    const specs = {};
    board.charts = drawing(specs, settings);
    board.charts.specs = specs;
    if (kind === "run") run();
    else renewPart("sections", location.search.slice(1));
  }
})();
