// Hover, focus or tap a tag: the equation and the line of code that belong together light up.
function light(tag) {
  for (const element of document.querySelectorAll(".lit")) element.classList.remove("lit");
  if (tag) for (const element of document.querySelectorAll(`[data-tag="${tag}"]`)) element.classList.add("lit");
}

document.addEventListener("DOMContentLoaded", () => {
  for (const comment of document.querySelectorAll(".pair .highlight .c1")) {
    const tag = /\(([A-Z]+-\d+)\)\s*$/.exec(comment.textContent);
    if (!tag) continue;
    comment.dataset.tag = tag[1];
    comment.tabIndex = 0;
    comment.setAttribute("role", "button");
    comment.setAttribute("aria-label", `${comment.textContent.trim()}: show its equation`);
  }
  if (document.querySelector(".pair")) document.body.classList.add("wide-page");
  // the first tap on a tag lights it up, the second one follows its link
  for (const link of document.querySelectorAll(".pair a.tag")) {
    link.addEventListener("click", (event) => {
      if (!link.parentElement.classList.contains("lit")) event.preventDefault();
    }, true);
  }
  for (const element of document.querySelectorAll("[data-tag]")) {
    const show = () => light(element.dataset.tag);
    for (const event of ["mouseenter", "focusin", "click"]) element.addEventListener(event, show);
    element.addEventListener("mouseleave", () => light(null));
  }
  // the theme's headings have no level, and two of its landmarks have no name
  for (const element of document.querySelectorAll("p.caption[role=heading]")) element.setAttribute("aria-level", "2");
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  // scrolling regions must be reachable with the keyboard
  for (const element of document.querySelectorAll(".table-wrapper, table.docutils, .equation, div.highlight pre")) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  }
});
