"use strict";
// Draws one chart into a place of a page, as wide as that place.
window.fitting = (() => {
  const NARROW = 600;

  // The plots of a chart, and how many of them stand side by side.
  function plotsOf(spec, room) {
    const parts = spec.concat || spec.vconcat || spec.hconcat;
    if (!parts) return [[spec.spec || spec], 1];
    if (room < NARROW && spec.columns) spec.columns = Math.min(spec.columns, room < 420 ? 1 : 2);
    return [parts, spec.columns || 1];
  }

  // Legends of names stand in one column on a narrow screen: side by side they are wider than it.
  function stack(part) {
    if (part === null || typeof part !== "object") return;
    if (part.legend && part.legend.columns) part.legend.columns = 1;
    for (const inner of Object.values(part)) stack(inner);
  }

  // The specification with plots that are together ``width`` wide, for a place of width ``room``.
  function fitted(original, room, width, stacked) {
    const spec = structuredClone(original);
    const [plots, columns] = plotsOf(spec, room);
    for (const plot of plots) {
      if (typeof plot.width !== "number") continue;
      plot.width = Math.max(60, Math.min(width / columns, plot.square ? 420 : width));
    }
    if (room < NARROW) {
      spec.config.axisY = { titleLimit: 230 };
      spec.config.legend = { ...spec.config.legend, columns: 2, gradientLength: 160 };
      spec.config.axisX = { labelOverlap: true, tickCount: 5 };
    }
    if (stacked) {
      for (const plot of plots) {
        for (const part of [spec, plot, ...(plot.layer || [])]) stack(part.encoding);
      }
    }
    return spec;
  }

  // Draws, measures what axes and legends take, and draws again. Returns the view; ``drop`` ends one that is replaced.
  async function embed(place, spec, settings = {}) {
    const room = place.clientWidth;
    const options = { renderer: "svg", actions: false, ...settings };
    let width = room - 90;
    let stacked = room < NARROW;
    let before = Infinity;
    let view = null;
    for (let attempt = 0; attempt < 5; attempt++) {
      if (view) view.finalize();
      view = (await vegaEmbed(place, fitted(spec, room, width, stacked), options)).view;
      const svg = place.querySelector("svg");
      const over = Math.max(svg.getBoundingClientRect().width, Number(svg.getAttribute("width"))) - room;
      if (over <= 0 && over > -6) break;
      // Narrower plots that make nothing narrower: it is the legend that is too wide.
      if (!stacked && over > 0 && over > before - 6) {
        stacked = true;
        width = room - 90;
      } else {
        width = Math.floor(width - over - 2);
      }
      before = over;
    }
    return view;
  }

  return { embed };
})();
