// Draws the page.

drawOverview();
startCurves();
startPareto();
startRollouts();
for (const link of document.querySelectorAll(".top nav a")) link.hidden = document.querySelector(link.hash).hidden;
// Canvases do not follow the style sheet by themselves.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (TRAINED.length) drawCurves();
  if (RESULTS.length) drawPareto();
});
document.documentElement.dataset.ready = "true";
