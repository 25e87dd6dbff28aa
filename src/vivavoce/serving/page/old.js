// A plain script, for browsers that do not get as far as the modules: it says so once everything else has loaded.
window.addEventListener("load", function () {
  if (document.body.getAttribute("data-ready")) return;
  document.getElementById("status").textContent =
    "This page did not start. Load it again; if that does not help, this browser is too old to talk: " +
    "Chrome, Edge, Firefox and Safari of the last years can.";
  document.getElementById("talk").disabled = true;
});
