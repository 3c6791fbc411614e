"use strict";
// Draws the charts of a page into the places that have their names, and selects one layer in all charts and tables.
// specs: by name of the place, the chart's specification; more may be added and drawn later.
// settings: of vegaEmbed, beside those that all pages share.
window.drawing = (specs, settings = {}) => {
  const views = {};
  let picked = "";
  const state = { views, errors: [], layer: () => picked, ready: null };

  async function embed(name) {
    if (views[name]) views[name].finalize();
    views[name] = await fitting.embed(document.getElementById(name), specs[name], settings);
    const view = views[name];
    view.addEventListener("click", (event, item) => {
      const datum = item && item.datum && (item.datum.datum || item.datum);
      if (datum && datum.parameter) pick(datum.parameter === picked ? "" : datum.parameter);
    });
    if (picked) await show(name);
  }

  function hasPicked(view) {
    return Object.prototype.hasOwnProperty.call(view.getState({ signals: (name) => name === "picked" }).signals, "picked");
  }

  // A heat map of many layers has rows of several; other charts may show only some layers.
  const groups = {};
  const within = (name) => groups[name] || [name];

  function same(a, b) {
    return a === b || a.startsWith(b + ".") || b.startsWith(a + ".");
  }

  // What stands for the selected layer besides its own name: the rows that it is in, or the layers of a row.
  function standIns(name) {
    if (name === "") return [];
    const members = within(name);
    const modules = members.flatMap((m) => m.split(".").map((_, i, parts) => parts.slice(0, i + 1).join(".")));
    const rows = Object.keys(groups).filter((g) => groups[g].some((m) => members.some((other) => same(m, other))));
    return [...modules, ...rows];
  }

  async function show(name) {
    const view = views[name];
    if (!hasPicked(view)) return;
    const only = (specs[name].usermeta || {}).only;
    const told = !only || only.some((layer) => within(picked).some((other) => same(layer, other)));
    await view.signal("picked", told ? picked : "").signal("chosen", told ? standIns(picked) : []).runAsync();
  }

  // Rows that came after the layer was selected are marked, too.
  function mark() {
    for (const row of document.querySelectorAll("tr[data-layer]")) {
      row.classList.toggle("picked", picked !== "" && within(picked).some((other) => same(row.dataset.layer, other)));
    }
  }
  state.mark = mark;

  async function pick(name) {
    picked = name;
    const select = document.getElementById("layer");
    if (select) select.value = [...select.options].some((o) => o.value === name) ? name : "";
    mark();
    await Promise.all(Object.keys(views).map(show));
  }
  state.pick = pick;

  async function draw(names) {
    for (const name of names) Object.assign(groups, ((specs[name] || {}).usermeta || {}).groups);
    for (const name of names) {
      if (!specs[name]) continue; // forgotten meanwhile
      try {
        await embed(name);
      } catch (error) {
        state.errors.push(`${name}: ${error}`);
        const place = document.getElementById(name);
        if (place) place.textContent = `This chart could not be drawn: ${error}`;
      }
    }
  }

  // One drawing after another: two at a time would fit charts into the room that the other leaves.
  state.draw = (names) => (state.ready = (state.ready || Promise.resolve()).then(() => draw(names)));

  // Charts whose places are gone.
  state.forget = (names) => {
    for (const name of names) {
      if (views[name]) views[name].finalize();
      delete views[name];
      delete specs[name];
    }
  };

  document.addEventListener("change", (event) => {
    if (event.target.id === "layer") pick(event.target.value);
  });
  document.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-layer]");
    if (row) pick(row.dataset.layer === picked ? "" : row.dataset.layer);
  });
  let room = document.documentElement.clientWidth;
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (document.documentElement.clientWidth === room) return;
      room = document.documentElement.clientWidth;
      state.draw(Object.keys(specs));
    }, 200);
  });
  return state;
};
