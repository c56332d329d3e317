// Text that was not sent yet, kept by this browser for each conversation; nothing of a temporary one.
(() => {
  const KEY = "hsd-unsent:";
  let shown = null;
  let sent = false;
  const box = () => document.querySelector("#message textarea");
  const temporary = (id) =>
    id.startsWith("temporary-") || (id === "new" && !!document.querySelector("#history .empty.temporary"));

  const keep = () => {
    const area = box();
    if (!area || shown === null) return;
    try {
      if (area.value && !temporary(shown)) localStorage.setItem(KEY + shown, area.value);
      else localStorage.removeItem(KEY + shown);
    } catch {
      // No room, or storage is off: then it lasts as long as the page.
    }
  };

  const put = (area, text) => {
    area.value = text;
    area.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // Called with the id of the conversation on show, "new" for one that has none yet.
  window.hsdOpened = (id) => {
    const area = box();
    if (!area || id === shown) return;
    const before = shown;
    if (before === "new" && sent && !document.querySelector("#notice .problem")) {
      // The same conversation, which has a name since its first message was sent.
      try { localStorage.removeItem(KEY + before); } catch { /* storage is off */ }
      shown = id;
    } else {
      keep();
      shown = id;
      let text = "";
      try { text = localStorage.getItem(KEY + id) || ""; } catch { /* storage is off */ }
      if (before !== null || (text && !area.value)) put(area, text);
    }
    sent = false;
  };

  addEventListener("input", (event) => { if (event.target === box()) { sent = false; keep(); } });
  addEventListener("keydown", (event) => {
    if (event.target === box() && event.key === "Enter" && !event.shiftKey) sent = true;
  }, true);
  addEventListener("click", (event) => {
    if (event.target.closest?.("#message .submit-button")) sent = true;
  }, true);
  addEventListener("pagehide", keep);
  // Examples and sent messages change the box without anybody typing.
  setInterval(keep, 500);
})();
