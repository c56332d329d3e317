// Text that was not sent yet, kept by this browser for each conversation; nothing of a temporary one.
(() => {
  const KEY = "hsd-unsent:";
  let shown = null;
  // What was sent and not yet confirmed, since when, and whether it begins a conversation.
  let sent = null;
  let since = 0;
  let begun = false;
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
    if (before === "new" && begun) {
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
    begun = false;
  };

  // Called when a message was stored, or refused: it leaves the box, what was typed since then stays.
  window.hsdSent = (mark) => {
    if (window.hsdComposing) {
      addEventListener("compositionend", () => setTimeout(() => window.hsdSent(mark)), { once: true });
      return;
    }
    const [area, text] = [box(), sent];
    sent = null;
    if (!mark.startsWith("stored")) begun = false;
    else if (area && text && area.value.startsWith(text)) put(area, area.value.slice(text.length));
  };
  const sending = () => {
    const text = box()?.value;
    if (!text || (sent !== null && Date.now() - since < 10_000)) return;
    [sent, since, begun] = [text, Date.now(), shown === "new"];
  };

  // Enter twice means one message: the text is in the box until it is known that it was stored. Where nothing comes
  // back, it can be sent again soon.
  const onItsWay = () => sent !== null && Date.now() - since < 2000 && box()?.value === sent;

  addEventListener("input", (event) => { if (event.target === box()) keep(); });
  addEventListener("click", (event) => {
    if (event.target.closest?.("#message .submit-button")) {
      if (onItsWay()) {
        event.preventDefault();
        return void event.stopImmediatePropagation();
      }
      sending();
    }
    // The buttons go when they have been used, and a new chat is begun to write; the keyboard goes to the box.
    if (matchMedia("(hover: hover)").matches && event.target.closest?.("#message button, #new")) box()?.focus();
  }, true);
  addEventListener("pagehide", keep);
  // Examples and sent messages change the box without anybody typing.
  setInterval(keep, 500);
})();
