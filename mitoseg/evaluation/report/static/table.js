// The table: a heading sorts, a row picks; the file to download becomes an object of the browser's own.
(() => {
  const table = byId("table");
  if (!table) return;
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const valueOf = (row, at) => {
    const cell = row.cells[at];
    return cell.dataset.value === undefined ? cell.classList.contains("text") ? cell.textContent : null : Number(cell.dataset.value);
  };
  heads.forEach((head, at) => head.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [valueOf(row, at), row]);
    rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * (a < b ? -1 : a > b ? 1 : 0)));
    body.append(...rows.map(([, row]) => row));
  }));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && row.dataset.instance) page.pick(Number(row.dataset.instance));
  });
  page.on((what) => {
    if (what !== "picked") return;
    for (const row of body.rows) {
      const mine = page.picked !== 0 && Number(row.dataset.instance) === page.picked;
      row.classList.toggle("picked-row", mine);
      if (mine) { // scroll the frame, not the page
        const frame = table.parentElement;
        frame.scrollTop = row.offsetTop - frame.clientHeight / 2;
      }
    }
  });
  const link = byId("csv"), [, text] = link.href.split(",");
  link.href = URL.createObjectURL(new Blob([bytesOf(text)], { type: "text/csv" }));
})();
