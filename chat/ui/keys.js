// Keys, before any other handler: what an input method is given is no key of ours, and what Enter does in a box.
(() => {
  // While a word is being composed, the keys belong to the input method: Enter confirms the word, Escape drops it.
  // Safari sends the confirming Enter after the composition has ended, with the code 229 that all of them use.
  const composing = (event) => event.isComposing || event.keyCode === 229;
  for (const kind of ["keydown", "keypress", "keyup"]) {
    addEventListener(kind, (event) => { if (composing(event)) event.stopImmediatePropagation(); }, true);
  }

  // A box that is written into from outside loses the word that is being composed in it.
  window.hsdComposing = false;
  addEventListener("compositionstart", () => { window.hsdComposing = true; }, true);
  addEventListener("compositionend", () => { window.hsdComposing = false; }, true);

  // Whether this key sends what a box holds. A keyboard on the screen has no Shift+Enter: there Enter is a new line.
  const byTouch = () => matchMedia("(pointer: coarse)").matches;
  window.hsdSends = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.altKey) return false;
    return event.ctrlKey || event.metaKey || !byTouch();
  };
  window.hsdEnterHint = (area) => { area.enterKeyHint = byTouch() ? "enter" : "send"; };

  // The message box: Enter is a click on Send, so that whatever listens to that button hears of it.
  const box = (event) => event.target.matches?.("#message textarea, #message input");
  addEventListener("focusin", (event) => { if (box(event)) hsdEnterHint(event.target); });
  addEventListener("keydown", (event) => {
    if (!box(event) || !hsdSends(event)) return;
    event.preventDefault();
    if (!event.repeat) document.querySelector("#message .submit-button")?.click();
  }, true);
  // Gradio would send on every other Enter that is a new line.
  addEventListener("keypress", (event) => { if (box(event) && event.key === "Enter") event.stopImmediatePropagation(); }, true);
})();
