"use strict";
(() => {
  const data = (id) => JSON.parse(document.getElementById(id).textContent);

  // Figures: the inlined SVG is redrawn at the reader's width, with tooltips.
  const specifications = data("specifications");
  const narrow = 560;
  async function draw(host) {
    const specification = structuredClone(specifications[host.dataset.figure]);
    const width = host.clientWidth;
    if (host.dataset.width === String(width)) return;
    host.dataset.width = width;
    const square = host.dataset.figure.startsWith("pairs");
    const labels = Math.round(width * (width < narrow ? 0.3 : 0.42));
    const small = width < narrow;
    const config = { axisY: { labelLimit: labels } };
    for (const { encoding } of specification.layer) {
      if (small && encoding && encoding.color && encoding.color.legend) encoding.color.legend.columns = 2;
      const axis = encoding && encoding.y && encoding.y.axis;
      if (!axis || !axis.labelLimit) continue;
      delete axis.labelLimit;
      if (small && encoding.y.sort && !square) Object.assign(axis, { labelExpr: "split(datum.label, ' + ')", labelFontSize: 9 });
    }
    if (small && !square && host.dataset.figure.startsWith("memory")) specification.height *= 2;
    const natural = specification.width;
    if (!square) {
      specification.width = "container";
      specification.autosize = { type: "fit-x", contains: "padding" };
    }
    const still = host.firstElementChild;
    const stage = document.createElement("div");
    stage.style.width = "100%";
    host.append(stage);
    try {
      const view = await window.vegaEmbed(stage, specification, { actions: false, renderer: "svg", config, ast: false });
      if (square) view.view.container().querySelector("svg").style.minWidth = `${Math.min(natural, 520)}px`;
      still.remove();
    } catch (error) {
      stage.remove();
      throw error;
    }
  }
  const hosts = [...document.querySelectorAll(".drawing")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "800px" });
  hosts.forEach((host) => seen.observe(host));
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => hosts.filter((host) => host.dataset.width).forEach(draw), 200);
  });

  // The last table. Cells are text, which DataTables would otherwise read as HTML.
  const { columns, size } = data("row-data");
  const cell = (column, row) => (column.numbers ? column.numbers[row] : column.texts[column.codes[row]]);
  const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

  function shown(column) {
    return (value, kind) => {
      if (!column.numbers) return kind === "display" ? escaped(value) : value;
      if (kind === "display") return value === null ? "" : number.format(value);
      return value;
    };
  }
  function escaped(text) {
    const span = document.createElement("span");
    span.textContent = text;
    return span.innerHTML;
  }

  async function table() {
    const source = new Blob([atob(document.getElementById("datatables").textContent)], { type: "text/javascript" });
    const address = URL.createObjectURL(source);
    const { jQuery: $ } = await import(address);
    URL.revokeObjectURL(address);
    const DataTable = $.fn.dataTable;
    // In both sort orders, cells without a number come last.
    const last = (a, b) => (a === null) - (b === null);
    Object.assign(DataTable.ext.type.order, {
      "sized-asc": (a, b) => last(a, b) || a - b,
      "sized-desc": (a, b) => last(a, b) || b - a,
    });
    const rows = Array.from({ length: size }, (_, row) => columns.map((column) => cell(column, row)));
    const made = new DataTable("#every-row", {
      data: rows,
      columns: columns.map((column) => ({
        title: column.name,
        render: shown(column),
        type: column.numbers ? "sized" : "string",
        className: column.numbers ? "dt-right dt-head-right" : column.name === "reason" ? "reason" : "",
      })),
      deferRender: true,
      order: [],
      pageLength: 25,
      lengthMenu: [10, 25, 100, 500],
      language: { search: "Search:", info: "_START_ to _END_ of _TOTAL_ trials", infoFiltered: "(filtered from _MAX_)", infoEmpty: "no trial", zeroRecords: "No trial matches; clear a filter." },
    });
    filters(made, DataTable);
    document.querySelector(".still").remove();
  }

  function filters(made, DataTable) {
    const form = document.querySelector(".filters");
    const place = (name) => columns.findIndex((column) => column.name === name);
    const exact = (text) => (text ? `^${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}$` : "");
    for (const select of form.querySelectorAll("select")) {
      const at = place(select.dataset.filter);
      for (const text of [...columns[at].texts].sort()) select.add(new Option(text || "(none)", text));
      if (select.options.length < 3) select.closest("label").remove();
      else select.addEventListener("change", () => made.column(at).search(exact(select.value), true, false).draw());
    }
    const most = form.querySelector("input[data-most]");
    const peak = place(most.dataset.most);
    DataTable.ext.search.push((_, __, ___, row) => {
      if (most.value === "") return true;
      const held = row[peak];
      return held !== null && held <= Number(most.value);
    });
    most.addEventListener("input", () => made.draw());
    form.addEventListener("reset", () => setTimeout(() => { made.columns().search(""); made.search("").draw(); }));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
  }

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.classList.toggle("dark", dark.matches);
  dark.addEventListener("change", theme);
  theme();
  table();
})();
