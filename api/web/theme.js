// Sets the theme before the first paint, so that a dark page never flashes white.
// A classic script on purpose: modules run only after the page has been drawn once.
(function () {
  "use strict";
  let theme = null;
  try {
    theme = localStorage.getItem("quayside.theme");
  } catch {
    // Storage may be forbidden; the system's theme is then the answer.
  }
  document.documentElement.dataset.theme = theme === "light" || theme === "dark" ? theme : "system";
})();
