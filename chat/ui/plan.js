// Which view is on show, the address of it, and races shown again at recorded speed.
(() => {
  // The address says what a reload opens: a conversation, and a view unless that is the chat.
  const address = { c: "", v: "" };
  const read = () => {
    address.v = (location.hash.match(/[#&]v=([\w:-]+)/) || ["", ""])[1];
    address.c = (location.hash.match(/[#&]c=([\w-]+)/) || ["", ""])[1];
  };
  read();
  const show = () => { document.documentElement.dataset.view = address.v.split(":")[0] || "chat"; };
  show();
  let left = document.documentElement.scrollHeight;
  let held = "";
  const hold = () => {
    document.querySelector(held)?.focus({ preventScroll: true });
  };
  window.hsdAddress = (change) => {
    if (document.documentElement.dataset.view === "chat") left = scrollY;
    // A conversation that has its name since its first message is the one that it was; so is what Back has brought.
    const moved = address.c && address.c !== "new" && Object.keys(change).some((key) => address[key] !== change[key]);
    Object.assign(address, change);
    const text = `#c=${address.c}${address.v ? `&v=${address.v}` : ""}`;
    if (moved && text !== location.hash) history.pushState(null, "", text);
    else history.replaceState(null, "", text);
    const before = document.documentElement.dataset.view;
    show();
    const now = document.documentElement.dataset.view;
    if (before === now) return;
    scrollTo(0, now === "chat" ? left : 0);
    if (now !== "chat" && innerWidth < 800) {
      document.querySelector("#right.open .toggle-button, #left.open .toggle-button")?.click();
    }
    // Keyboards and screen readers go where the page went, as soon as that is there.
    held = now === "chat" ? "#message textarea" : `#${now} h1`;
    document.activeElement?.blur();
    hold();
  };

  // Back, forward, and an address that was typed: as a click on what they name.
  const pretend = (within, action, id) => {
    const place = document.createElement("span");
    const button = place.appendChild(document.createElement("button"));
    [place.dataset.id, button.dataset.action, place.hidden] = [id, action, true];
    document.querySelector(within)?.querySelector("nav, h2, .turn, .empty")?.after(place);
    button.click();
    place.remove();
  };
  addEventListener("popstate", () => {
    const before = { ...address };
    read();
    if (address.c !== before.c && address.c !== "new" && address.c) pretend("#listing", "open", address.c);
    else if (address.c !== before.c) document.getElementById("new")?.click();
    if (address.v === before.v) return;
    const [view, id] = address.v.split(":");
    pretend(view === "race" ? "#history" : "#engine", view || "chat", id || "");
  });

  const running = new WeakMap();
  const replay = (race) => {
    cancelAnimationFrame(running.get(race) ?? 0);
    const lanes = JSON.parse(race.dataset.steps).map((steps, place) => {
      const lane = race.querySelectorAll(".lane")[place];
      const box = lane.querySelector(".text");
      box.dataset.whole ??= box.textContent;
      const clock = lane.querySelector(".clock");
      clock.dataset.whole ??= clock.textContent;
      return { steps, box, clock, bar: lane.querySelector(".track i"), at: 0 };
    });
    const last = Math.max(...lanes.map((lane) => lane.steps.at(-1)?.[0] ?? 0));
    const draw = (now) => {
      let over = true;
      for (const lane of lanes) {
        while (lane.at < lane.steps.length && lane.steps[lane.at][0] <= now) lane.at += 1;
        const done = lane.at >= lane.steps.length;
        const length = lane.at ? lane.steps[lane.at - 1][1] : 0;
        lane.box.textContent = done ? lane.box.dataset.whole : lane.box.dataset.whole.slice(0, length);
        lane.clock.textContent = done ? lane.clock.dataset.whole : `${(now / 1000).toFixed(2)} s`;
        lane.bar.style.width = `${last ? 100 * Math.min(now, lane.steps.at(-1)?.[0] ?? 0) / last : 0}%`;
        over = over && done;
      }
      race.classList.toggle("over", over);
      return over;
    };
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return void draw(Infinity);
    const begin = performance.now();
    const step = () => { if (!draw(performance.now() - begin)) running.set(race, requestAnimationFrame(step)); };
    step();
  };
  addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-action=replay]")) return;
    const race = document.querySelector("#race .race");
    if (race) replay(race);
  });

  // What is rendered anew keeps what was unfolded, and the button that a keyboard was on.
  const unfolded = new Set();
  const name = (fold) => fold.querySelector("summary").textContent.replace(/\d+/g, "");
  // Gradio takes attributes away that its new text does not have, so only a click says what a person wants.
  addEventListener("click", (event) => {
    const fold = event.target.closest?.("#plan summary")?.parentElement;
    if (fold?.open) unfolded.delete(name(fold));
    else if (fold) unfolded.add(name(fold));
  }, true);
  addEventListener("toggle", (event) => { if (event.target.matches?.("#plan details")) keep(); }, true);
  addEventListener("pointerdown", () => { held = ""; }, true);
  addEventListener("focusin", (event) => {
    const button = event.target.closest?.("#plan [data-action], #race [data-action]");
    if (!button) return void (held = event.target.matches?.("#plan h1, #race h1") ? held : "");
    const { action, id } = button.dataset;
    const view = button.closest("#plan") ? "#plan" : "#race";
    held = `${view} [data-action="${action}"]${id ? `[data-id="${CSS.escape(id)}"]` : ""}`;
  });
  const keep = () => {
    for (const fold of document.querySelectorAll("#plan details:not([open])")) fold.open = unfolded.has(name(fold));
    if (held && document.activeElement === document.body) hold();
  };

  // A race that has just ended is shown at once; one that was there when the page was opened stands still.
  let waited = false;
  const look = () => {
    if (document.querySelector("#race .standing")) waited = true;
    const race = document.querySelector("#race .race:not([data-seen])");
    if (!race) return;
    race.dataset.seen = "";
    if (waited) replay(race);
    else race.classList.add("over");
    waited = false;
  };
  // Gradio may build the columns anew, so what is watched is above them; in the chat nothing is looked for.
  const begin = () => new MutationObserver(() => {
    if (document.documentElement.dataset.view === "chat") return;
    keep();
    look();
  }).observe(document.body, { childList: true, subtree: true });
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", begin);
  else begin();

  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || address.v === "" || event.target.closest?.("input, textarea")) return;
    document.querySelector(`#${document.documentElement.dataset.view} [data-action=chat]`)?.click();
  });
})();
