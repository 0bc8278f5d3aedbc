"use strict";
// Sorts tables by a click on a column; a table of class "search" gets a text box, and a list for each th[data-filter].

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
}

// Numbers by size, texts as a reader counts (layer2 before layer10); cells without a value stay last.
function order(a, b, direction) {
  const isNumber = [typeof a === "number", typeof b === "number"];
  if (isNumber[0] && isNumber[1]) return direction * (a - b);
  if (isNumber[0] !== isNumber[1]) return isNumber[0] ? -1 : 1;
  return direction * a.localeCompare(b, "en", { numeric: true });
}

function sortBy(table, column) {
  const heads = table.tHead.rows[0].cells;
  const head = heads[column];
  const was = head.getAttribute("aria-sort");
  const descending = was ? was === "ascending" : head.classList.contains("number");
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  rows.sort((a, b) => order(a[0], b[0], descending ? -1 : 1));
  table.tBodies[0].append(...rows.map((pair) => pair[1]));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
}

function makeSearchable(table) {
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const tools = document.createElement("div");
  tools.className = "tools";
  const box = document.createElement("input");
  box.type = "search";
  box.placeholder = "words that a row must have";
  box.setAttribute("aria-label", box.placeholder);
  tools.append(box);
  const lists = [...table.tHead.rows[0].cells].flatMap((head, column) => {
    if (head.dataset.filter === undefined) return [];
    const list = document.createElement("select");
    list.setAttribute("aria-label", head.textContent);
    const found = [...new Set(rows.map((row) => row.cells[column].textContent.trim()))].sort();
    list.append(new Option(`${head.textContent.trim()}: all`, ""), ...found.map((text) => new Option(text, text)));
    tools.append(list);
    return [[list, column]];
  });
  const count = document.createElement("output");
  tools.append(count);
  const update = () => {
    const words = box.value.toLowerCase().split(/\s+/);
    let shown = 0;
    rows.forEach((row, i) => {
      const right = words.every((word) => texts[i].includes(word)) &&
        lists.every(([list, column]) => !list.value || row.cells[column].textContent.trim() === list.value);
      row.hidden = !right;
      shown += right;
    });
    count.textContent = `${shown} of ${rows.length}`;
  };
  tools.addEventListener("input", update);
  table.closest(".sheet").before(tools);
  update();
}

for (const table of document.querySelectorAll("table.search")) makeSearchable(table);
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
