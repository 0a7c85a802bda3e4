// Tables sort by their heads, and a cell of the confusion matrix shows its pictures. Without this script all is there.
document.querySelectorAll("table.sortable").forEach((table) => {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("n"));
      table.querySelectorAll("thead th").forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const [p, q] = [parseFloat(x), parseFloat(y)];
        if (head.classList.contains("n")) return (isNaN(p) ? -Infinity : p) - (isNaN(q) ? -Infinity : q);
        return x.localeCompare(y, undefined, { numeric: true });
      };
      [...body.rows].sort((a, b) => (down ? order(a, b) : order(b, a))).forEach((row) => body.append(row));
    });
  });
});
document.querySelectorAll("[data-shows]").forEach((button) => {
  const panel = document.getElementById(button.dataset.panel);
  const show = () => panel.replaceChildren(document.getElementById(button.dataset.shows).content.cloneNode(true));
  button.addEventListener("click", show);
  button.addEventListener("focus", show);
  button.addEventListener("mouseenter", show);
});
