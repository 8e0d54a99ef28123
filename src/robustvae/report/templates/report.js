"use strict";
(function () {
  function filtered(table) {
    const field = document.createElement("input");
    const label = document.createElement("label");
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    field.type = "search";
    field.placeholder = "attack, label, status";
    label.className = "filter";
    label.append("Only rows with ", field, " ", count);
    const box = table.closest(".scroll");
    box.before(label);
    const rows = Array.from(table.tBodies[0].rows);
    field.addEventListener("input", function () {
      const words = field.value.toLowerCase().split(" ").filter(Boolean);
      let left = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? left + " of " + rows.length : "";
    });
  }
  function value(row, column) {
    const text = row.cells[column].textContent.trim().replace("\u2212", "-").replace("\u221e", "Infinity");
    const parsed = parseFloat(text);
    return Number.isNaN(parsed) ? text : parsed;
  }
  function order(a, b) {
    const numbers = [typeof a === "number", typeof b === "number"];
    if (numbers[0] && numbers[1]) return a === b ? 0 : a - b;
    return String(a).localeCompare(String(b));
  }
  function sortable(table) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", function () {
        const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = Array.from(body.rows);
        rows.sort(function (a, b) {
          const pair = [value(a, column), value(b, column)];
          const missing = pair.map((one) => one === "\u2013" || one === "");
          if (missing[0] || missing[1]) return missing[0] - missing[1];
          return sign * order(pair[0], pair[1]);
        });
        body.append(...rows);
      });
    });
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    sortable(table);
    if (table.classList.contains("filterable")) filtered(table);
  }
  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target && target.closest("details");
    if (folded && !folded.open) {
      folded.open = true;
      target.scrollIntoView();
    }
  }
  addEventListener("hashchange", reveal);
  reveal();
})();
