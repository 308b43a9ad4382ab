"use strict";

// Sorting: a header's text becomes a button, which a keyboard reaches; rows without a number stay at the end.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const headers = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });
  const keyOf = (row, index) => row.cells[index].dataset.key;
  headers.forEach((header, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const ascending = now ? now === "descending" : header.dataset.first === "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const numbers = rows.some((row) => keyOf(row, index) !== undefined);
      const known = (row) => !numbers || keyOf(row, index) !== undefined;
      const compare = (one, other) =>
        numbers
          ? Number(keyOf(one, index)) - Number(keyOf(other, index))
          : words.compare(one.cells[index].textContent.trim(), other.cells[index].textContent.trim());
      const sorted = rows.filter(known).sort((one, other) => (ascending ? 1 : -1) * compare(one, other));
      body.append(...sorted, ...rows.filter((row) => !known(row)));
    });
  });
}

// Cards: a link to one opens it as a dialog. The address names it, so that it can be passed on, and going back closes it.
function openNamed() {
  const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (const dialog of document.querySelectorAll("dialog[open]")) if (dialog !== wanted) dialog.close();
  if (wanted instanceof HTMLDialogElement && !wanted.open) {
    wanted.showModal();
    wanted.scrollTop = 0;
  }
}
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    if (location.hash === `#${dialog.id}`) history.replaceState(null, "", location.pathname + location.search);
  });
}
addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#cell-']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault(); // following the link would take the focus from it, and closing the card could not give it back
  history.pushState(null, "", link.getAttribute("href"));
  openNamed();
});
addEventListener("hashchange", openNamed);
openNamed();
