// Clicks in our own HTML, copying, renaming in place, and following the reply. No state of the chat lives here.
(() => {
  const say = (button, word) => {
    const before = button.textContent;
    button.textContent = word;
    setTimeout(() => { button.textContent = before; }, 1500);
  };

  const copy = async (button, text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages that are not served securely have no clipboard; the old way still works there.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    say(button, "Copied");
  };

  const rename = (item, trigger) => {
    const button = item.querySelector(".title");
    const input = document.createElement("input");
    input.className = "rename";
    input.value = button.textContent;
    input.setAttribute("aria-label", "New title");
    let over = false;
    const end = (keep) => {
      if (over) return;
      over = true;
      const title = input.value.trim();
      input.replaceWith(button);
      if (keep && title && title !== button.textContent) {
        trigger("select", { action: "rename", id: item.dataset.id, title });
      }
      button.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
      event.stopPropagation();
    });
    input.addEventListener("blur", () => end(true));
    button.replaceWith(input);
    input.select();
  };

  const showProvenance = async (button, id, server) => {
    const box = button.nextElementSibling;
    if (box.childElementCount) {
      box.replaceChildren();
      button.textContent = "Show where each token came from";
      return;
    }
    // The answer is HTML of ours in which every token is escaped.
    box.innerHTML = await server.where(id);
    button.textContent = "Hide where each token came from";
  };

  window.hsdClick = (event, trigger, server) => {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    const owner = button.closest("[data-id]");
    const id = owner ? owner.dataset.id : "";
    const action = button.dataset.action;
    if (action === "copy-code") copy(button, button.closest(".code").querySelector("code").textContent);
    else if (action === "copy") copy(button, owner.querySelector(".prose").innerText);
    else if (action === "rename") rename(button.closest("li"), trigger);
    else if (action === "provenance") showProvenance(button, id, server);
    else trigger("select", { action, id });
    if (action === "open" && innerWidth < 800) document.querySelector("#left .toggle-button")?.click();
  };

  // Follow the reply only while the reader is at the end; scrolling up stops it.
  let following = true;
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
  addEventListener("scroll", () => { following = atEnd(); }, { passive: true });
  let due = false;
  const toEnd = () => {
    if (!following || due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      if (following) scrollTo(0, document.documentElement.scrollHeight);
    });
  };

  // On a phone the side columns are drawers and start closed; until then a style in the head hides them.
  const closeDrawers = (tries) => {
    const columns = [...document.querySelectorAll(".sidebar")];
    const open = columns.filter((column) => column.classList.contains("open"));
    if ((columns.length < 2 || (innerWidth < 800 && open.length < 2)) && tries) {
      return void setTimeout(closeDrawers, 50, tries - 1);
    }
    for (const column of columns) {
      const what = column.id === "left" ? "conversations" : "engine and settings";
      column.querySelector(".toggle-button")?.setAttribute("aria-label", `Show or hide ${what}`);
    }
    if (innerWidth < 800) for (const column of open) column.querySelector(".toggle-button")?.click();
    document.documentElement.classList.add("drawers");
  };

  const begin = () => {
    const parts = ["history", "running"].map((id) => document.getElementById(id));
    if (parts.some((part) => !part)) return void setTimeout(begin, 100);
    const observer = new MutationObserver((changes) => {
      // A reply that is over is for a moment in both; only one of them is shown, and nothing jumps.
      const reply = parts[1].querySelector("[data-reply]")?.dataset.reply;
      parts[1].hidden = !!reply && !!parts[0].querySelector(`[data-id="${CSS.escape(reply)}"]`);
      // Opening the details of a reply is reading, not news.
      if (changes.some((change) => change.type !== "attributes" && !change.target.closest?.(".meta"))) toEnd();
    });
    for (const part of parts) observer.observe(part, { childList: true, subtree: true, characterData: true });
    const current = document.getElementById("current");
    if (current) new MutationObserver(() => { following = true; }).observe(current, { subtree: true, childList: true });
    document.getElementById("message")?.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) following = true;
    }, true);
  };
  const start = () => { begin(); closeDrawers(100); };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();

  addEventListener("keydown", (event) => {
    const box = document.querySelector("#message textarea");
    if (event.key === "Escape") document.querySelector("#message .stop-button")?.click();
    else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      document.getElementById("new")?.click();
      box?.focus();
    } else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      document.querySelector("#search input, #search textarea")?.focus();
    }
  });
})();
