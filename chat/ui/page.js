// Clicks in our own HTML, copying, renaming in place, and following the reply. No state of the chat lives here.
(() => {
  const say = (button, word) => {
    const before = button.textContent;
    button.textContent = word;
    setTimeout(() => { button.textContent = before; }, 1500);
  };

  // `text` may still be on its way: some browsers copy only what was promised before the click was over.
  const copy = async (button, text) => {
    const failed = (await put(text).catch(() => false)) === false;
    say(button, failed ? "Not copied" : "Copied");
  };
  const put = async (text) => {
    if (navigator.clipboard && window.ClipboardItem) {
      const blob = Promise.resolve(text).then((known) => new Blob([known], { type: "text/plain" }));
      try {
        return await navigator.clipboard.write([new ClipboardItem({ "text/plain": blob })]);
      } catch {
        // Some browsers take no promise there.
      }
    }
    const known = await text;
    try {
      return await navigator.clipboard.writeText(known);
    } catch {
      // Pages that are not served securely have no clipboard; the old way still works there.
      const area = document.createElement("textarea");
      area.value = known;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };

  // A message as it is stored: what is on the page has lost its Markdown and holds the words of buttons.
  const written = async (id, server) => {
    const text = await server.written(id);
    if (typeof text !== "string") throw new Error("the message is gone");
    return text;
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
        trigger("select", { action: "rename", id: item.dataset.id, text: title });
      }
      button.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
      event.stopPropagation();
    });
    // A box that is taken away is left too, in the middle of what takes it.
    input.addEventListener("blur", () => setTimeout(() => end(input.isConnected)));
    button.replaceWith(input);
    input.select();
  };

  // An own message being rewritten in place: what is typed outlives a page that is rendered anew meanwhile.
  let draft = null;
  const rewrite = (turn, trigger, text) => {
    const said = turn.querySelector(".said");
    const box = document.createElement("div");
    box.className = "rewrite";
    box.innerHTML = '<textarea aria-label="Your message"></textarea><div><button type="button" class="plain">Cancel' +
      '</button><button type="button" class="send">Send</button></div>';
    const area = box.querySelector("textarea");
    const [cancel, send] = box.querySelectorAll("button");
    const fit = () => { area.style.height = "auto"; area.style.height = `${area.scrollHeight + 2}px`; };
    const end = () => { draft = null; turn.classList.remove("rewriting"); box.remove(); };
    const resend = () => {
      // The box goes with the branch that it leaves; where sending is refused, it stays with its text.
      if (area.value.trim()) trigger("select", { action: "resend", id: turn.dataset.id, text: area.value });
    };
    area.value = text;
    draft = { id: turn.dataset.id, text, trigger };
    area.addEventListener("input", () => { draft.text = area.value; fit(); });
    area.addEventListener("keydown", (event) => {
      if (hsdSends(event)) { event.preventDefault(); resend(); }
      if (event.key === "Escape") { event.stopPropagation(); end(); }
    });
    cancel.addEventListener("click", end);
    send.addEventListener("click", resend);
    hsdEnterHint(area);
    turn.classList.add("rewriting");
    said.after(box);
    fit();
    area.focus();
  };
  const rewriteAgain = () => {
    const turn = draft && document.querySelector(`#history .you[data-id="${CSS.escape(draft.id)}"]`);
    if (turn && !turn.querySelector(".rewrite")) rewrite(turn, draft.trigger, draft.text);
    else if (draft && !turn) draft = null;
  };

  const bring = (trigger) => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = ".json,application/json";
    input.addEventListener("change", async () => {
      // Larger ones are refused anyway; a byte more is enough to be told so.
      const file = input.files[0];
      if (file) trigger("select", { action: "import", text: await file.slice(0, 20_000_001).text() });
    });
    input.click();
  };

  const save = async (button, wanted, server) => {
    const { name, text, problem } = await server.exported(wanted);
    if (problem) return say(button, problem);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  };

  const showProvenance = async (button, id, server) => {
    if (button.nextElementSibling.childElementCount) {
      unfolded.set(id, "");
      button.nextElementSibling.replaceChildren();
      button.textContent = "Show where each token came from";
      return;
    }
    // The answer is HTML of ours in which every token is escaped.
    unfolded.set(id, await server.where(id));
    keepUnfolded();
  };

  // The details of a reply that were opened stay open when the conversation is rendered anew: reply's id to its tokens.
  const unfolded = new Map();
  addEventListener("click", (event) => {
    const details = event.target.closest?.("#history .meta > summary")?.parentElement;
    const id = details?.closest("[data-id]").dataset.id;
    if (details?.open) unfolded.delete(id);
    else if (details) unfolded.set(id, "");
  }, true);
  const keepUnfolded = () => {
    for (const [id, tokens] of unfolded) {
      const details = document.querySelector(`#history [data-id="${CSS.escape(id)}"] .meta`);
      if (details && !details.open) details.open = true;
      const button = tokens && details?.querySelector("[data-action=provenance]");
      if (!button || button.nextElementSibling.childElementCount) continue;
      button.nextElementSibling.innerHTML = tokens;
      button.textContent = "Hide where each token came from";
    }
  };

  window.hsdClick = (event, trigger, server) => {
    const button = event.target.closest("[data-action]");
    if (!button) return;
    const owner = button.closest("[data-id]");
    const id = owner ? owner.dataset.id : "";
    const action = button.dataset.action;
    if (action === "copy-code") copy(button, button.closest(".code").querySelector("code").textContent);
    else if (action === "copy" || action === "copy-own") copy(button, written(id, server));
    else if (action === "rename") rename(button.closest("li"), trigger);
    else if (action === "import") bring(trigger);
    else if (action === "attach") hsdAttach();
    else if (action.startsWith("export-")) save(button, { id, kind: action.slice(7) }, server);
    else if (action === "rewrite") rewrite(owner, trigger, owner.querySelector(".said").textContent);
    else if (action === "provenance") showProvenance(button, id, server);
    else trigger("select", { action, id });
    button.closest(".menu")?.removeAttribute("open");
    if (action === "resume") unfolded.delete(id);
    if (action === "open" && innerWidth < 800) document.querySelector("#left.open .toggle-button")?.click();
  };

  // Families are looked up when somebody wants to see them: what fits the memory changes.
  window.hsdFamilies = async (menu, server) => {
    const box = menu.querySelector(":scope > div");
    if (!menu.open || box.dataset.asked) return;
    box.dataset.asked = "";
    // HTML of ours, in which everything is escaped.
    box.innerHTML = await server.offered("");
    delete box.dataset.asked;
  };

  addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });

  // Follow the reply only while the reader is at the end; scrolling up stops it.
  let following = true;
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
  const offerEnd = () => {
    let button = document.getElementById("to-end");
    if (!button && !following) {
      button = document.createElement("button");
      [button.id, button.type, button.textContent] = ["to-end", "button", "↓"];
      button.title = "Go to the end";
      button.setAttribute("aria-label", button.title);
      button.addEventListener("click", () => { following = true; toEnd(); offerEnd(); });
      document.getElementById("composer")?.append(button);
    }
    if (button) button.hidden = following;
  };
  addEventListener("scroll", () => { following = atEnd(); offerEnd(); }, { passive: true });
  let due = false;
  const toEnd = () => {
    if (!following || due || document.documentElement.dataset.view !== "chat") return;
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

  const LONGEST_FORMULA = 5000;
  // Formulas come as TeX, drawn as MathML: that needs neither fonts nor styles, and screen readers can say it.
  let katex = null;
  const drawFormulas = () => {
    const waiting = document.querySelectorAll("#chat .math:not([data-drawn])");
    if (!waiting.length || !window.hsdKatex) return;
    katex ??= import(new URL(window.hsdKatex, document.baseURI)).then((module) => { katex = module.default; return katex; });
    if (katex instanceof Promise) return void katex.then(drawFormulas, () => {});
    for (const formula of waiting) {
      formula.dataset.drawn = "";
      const displayMode = formula.classList.contains("display");
      const tex = formula.textContent;
      // Longer than any that a person would read; drawing it would take seconds.
      if (tex.length > LONGEST_FORMULA) continue;
      try {
        formula.dataset.tex = tex;
        katex.render(tex, formula, { displayMode, output: "mathml", throwOnError: true, trust: false, maxExpand: 500, maxSize: 20 });
      } catch {
        formula.textContent = tex;
      }
      // What does not fit is scrolled; a box that can be scrolled stands on its line by its lower edge.
      const wide = !displayMode && formula.scrollWidth > formula.clientWidth;
      formula.classList.toggle("large", wide || formula.scrollHeight > 0.8 * innerHeight);
    }
  };

  // What is written anew all the time would fold itself again.
  let thinkingOpen = false;
  addEventListener("toggle", (event) => {
    if (event.target.matches?.("#running .think") && event.target.isConnected) thinkingOpen = event.target.open;
  }, true);
  const keepThinkingOpen = () => {
    const thinking = document.querySelector("#running .think");
    if (!thinking) thinkingOpen = false;
    else if (thinking.open !== thinkingOpen) thinking.open = thinkingOpen;
  };

  // A reply that this tab has asked for is said to those who do not see it, once, when it is over.
  let awaited = null;
  const lastReply = () => [...document.querySelectorAll("#history .reply")].at(-1);
  const expect = () => { awaited = lastReply()?.dataset.id ?? ""; };
  addEventListener("click", (event) => {
    if (event.target.closest?.("#message .submit-button, [data-action=again], .rewrite .send")) expect();
  }, true);
  // A click on Send is also made by people who read further up.
  addEventListener("keydown", (event) => {
    if (event.target.closest?.("#message") && hsdSends(event)) following = true;
  }, true);
  const speak = () => {
    const reply = lastReply();
    if (awaited === null || !reply || reply.dataset.id === awaited || document.querySelector("#running [data-reply]")) return;
    awaited = null;
    let place = document.getElementById("spoken");
    if (!place) {
      place = document.body.appendChild(document.createElement("p"));
      place.id = "spoken";
      place.setAttribute("role", "status");
    }
    const copy = (reply.querySelector(".prose") ?? reply.querySelector(".ending"))?.cloneNode(true);
    for (const head of copy?.querySelectorAll(".code-head") ?? []) head.remove();
    const said = copy?.textContent.trim() ?? "";
    place.textContent = `Reply: ${said.length > 400 ? `${said.slice(0, 400)}…` : said}`;
  };

  const begin = () => {
    // Gradio builds the page part by part: nothing is begun before all that is needed is there.
    const parts = ["history", "running"].map((id) => document.getElementById(id));
    const current = document.getElementById("current");
    const box = document.querySelector("#message textarea");
    if (!current || !box || parts.some((part) => !part)) return void setTimeout(begin, 100);
    let opened = "";
    const look = () => {
      // With the very change that shows it: whoever reloads now comes back to it.
      const open = parts[0].querySelector("[data-conversation]")?.dataset.conversation;
      if (open && open !== opened) {
        opened = open;
        // Another conversation is shown from its end, wherever the last one was read.
        following = true;
        window.hsdAddress({ c: open });
        window.hsdOpened(open);
      }
      // A reply that is over is for a moment in both; only one of them is shown, and nothing jumps.
      const reply = parts[1].querySelector("[data-reply]")?.dataset.reply;
      parts[1].hidden = !!reply && !!parts[0].querySelector(`[data-id="${CSS.escape(reply)}"]`);
      rewriteAgain();
      keepUnfolded();
      drawFormulas();
      keepThinkingOpen();
      speak();
    };
    const observer = new MutationObserver((changes) => {
      look();
      // Opening the details of a reply is reading, not news.
      if (changes.some((change) => change.type !== "attributes" && !change.target.closest?.(".meta, .you"))) toEnd();
    });
    for (const part of parts) observer.observe(part, { childList: true, subtree: true, characterData: true });
    // A conversation may have been here before anybody watched: it is not said again.
    look();
    toEnd();
    // Once, and not where that would bring up a keyboard on the screen. Gradio's own way takes the focus again and again.
    if (matchMedia("(hover: hover)").matches && document.activeElement === document.body) box.focus();
  };
  const start = () => { begin(); closeDrawers(100); };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start);
  else start();

  addEventListener("keydown", (event) => {
    const box = document.querySelector("#message textarea");
    const menu = document.querySelector(".menu[open]");
    if (event.key === "Escape" && menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    } else if (event.key === "Escape") document.querySelector("#message .stop-button")?.click();
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
