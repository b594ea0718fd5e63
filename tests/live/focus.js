// What the keyboard has come to: its name, and whether one sees that it is there; null at the end of the page.
() => {
  const found = document.activeElement;
  if (found === document.body) return null;
  const ring = getComputedStyle(found).outlineStyle !== "none";
  const field = getComputedStyle(found.closest("#composer") ?? found);
  const named = found.id || found.getAttribute("aria-label") || found.textContent.trim();
  return [named, ring || field.borderColor !== getComputedStyle(document.body).color];
};
