// Runs before anything is painted, so that a chosen theme never flashes up in the other one.
(function () {
  "use strict";
  try {
    var chosen = localStorage.getItem("kestrel-web.theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch (error) { /* no storage: the system's theme it is */ }
  document.documentElement.classList.add("js");
})();
