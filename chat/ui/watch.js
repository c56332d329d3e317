// Keeps the page up to date: asks which groups of its parts have changed, often while something happens, and fetches
// those. A tab that nobody sees asks once a minute: a browser has six connections to one server for all its tabs.
(() => {
  const HIDDEN = 60_000;
  const SOON = 100;
  const AGAIN = 1000;
  const LIVELY = 2000;
  const LOST = 10_000;

  // Name to where its mark is, what asks for more, and since when that has been asked with which mark.
  const groups = new Map();
  let wake = () => {};
  let until = 0;
  const pause = (time) => new Promise((done) => {
    const timer = setTimeout(done, time);
    wake = () => { clearTimeout(timer); done(); };
  });
  // Something was done or is new: the next answers are wanted soon.
  window.hsdLook = () => {
    until = Date.now() + LIVELY;
    wake();
  };

  const mark = (group) => group.element.querySelector("[data-mark]")?.dataset.mark ?? "";
  const marks = () => {
    const held = {};
    // A list that is written anew would end the title that is being typed in it, and the word in an input method.
    const naming = document.querySelector("#listing .rename");
    for (const [name, group] of groups) {
      if (naming && name === "beside") continue;
      // One that is on its way is not asked for again, unless it was lost.
      if (group.asked !== mark(group) || Date.now() - group.since > LOST) held[name] = mark(group);
    }
    return held;
  };
  const open = () => document.querySelector("#history [data-conversation]")?.dataset.conversation ?? "";

  // What Gradio's own way of asking would send is dropped when the page goes.
  let session = "";
  let run = null;
  const leave = () => {
    const part = window.gradio_config?.components.find((one) => one.props.elem_id === "watch-chat");
    const body = JSON.stringify({ data: {}, component_id: part?.id, fn_name: "leave", session_hash: session });
    const headers = { "Content-Type": "application/json" };
    const address = new URL("gradio_api/component_server/", document.baseURI);
    if (part && session) fetch(address, { method: "POST", keepalive: true, headers, body }).catch(() => {});
  };

  // A session ends when it is logged out, in whatever tab, and when the program is started anew: the password is due.
  const loggedOut = () => fetch("./", { method: "HEAD", cache: "no-store" }).then((page) => page.status === 401, () => false);

  const follow = async (server) => {
    for (;;) {
      // Nothing comes back while the program is gone. One that was started anew may have other parts and events.
      const told = await server.watch({ marks: marks(), open: open() }).catch(() => null);
      if (!told && await loggedOut()) return void location.reload();
      run ??= told?.run;
      if (told && told.run !== run) return void location.reload();
      session = told?.session ?? session;
      for (const name of told?.changed ?? []) {
        const group = groups.get(name);
        [group.asked, group.since] = [mark(group), Date.now()];
        group.trigger("select", {});
      }
      if (told?.changed.length) until = Math.max(until, Date.now() + LIVELY / 4);
      const time = told ? 1000 * told.between : AGAIN;
      await pause(document.hidden ? HIDDEN : Date.now() < until ? Math.min(time, SOON) : time);
    }
  };

  window.hsdWatch = (name, element, trigger, server) => {
    groups.set(name, { element, trigger, asked: null, since: 0 });
    if (server?.watch) {
      follow(server);
      addEventListener("pagehide", leave);
    }
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) window.hsdLook(); });
  for (const kind of ["click", "popstate", "hashchange"]) addEventListener(kind, window.hsdLook, true);
  addEventListener("keydown", (event) => { if (["Enter", "Escape"].includes(event.key)) window.hsdLook(); }, true);
  addEventListener("input", (event) => { if (event.target.closest?.("#search")) window.hsdLook(); }, true);
})();
