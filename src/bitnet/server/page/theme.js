// Loaded before anything is drawn, so that no page flashes in the wrong colours.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("bitnet.theme");
    } catch {
      return null;
    }
  };
  const show = () => {
    const theme = stored() || root.dataset.chosen || (dark.matches ? "dark" : "light");
    root.dataset.theme = theme;
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.setAttribute("aria-label", theme === "dark" ? "Use light colours" : "Use dark colours");
      button.title = button.getAttribute("aria-label");
    }
  };
  show();
  dark.addEventListener("change", show);
  addEventListener("storage", show);
  addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-theme-switch]"))
      button.addEventListener("click", () => {
        root.dataset.chosen = root.dataset.theme === "dark" ? "light" : "dark";
        try {
          localStorage.setItem("bitnet.theme", root.dataset.chosen);
        } catch {}
        show();
      });
    show();
  });
})();
