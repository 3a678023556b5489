// Draws the page.

drawOverview();
startCurves();
startPareto();
startRollouts();
// Canvases do not follow the style sheet by themselves.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (TRAINED.length) drawCurves();
  if (RESULTS.length) drawPareto();
});
document.documentElement.dataset.ready = "true";
