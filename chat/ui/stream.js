// The reply that is being written: asked for while there is one, and written where it grows.
(() => {
  const AGAIN = 1000;
  const pause = (time) => new Promise((done) => { setTimeout(done, time); });

  // What is there stays there as far as it is the same: a selection, a place in a wide block of code, the keyboard.
  const merge = (old, fresh) => {
    const [now, next] = [[...old.childNodes], [...fresh.childNodes]];
    next.forEach((node, place) => {
      const there = now[place];
      if (!there) return void old.append(node);
      if (there.nodeName !== node.nodeName) return void there.replaceWith(node);
      if (node.nodeType !== Node.ELEMENT_NODE) {
        if (node.data.startsWith(there.data)) there.appendData(node.data.slice(there.data.length));
        else there.data = node.data;
        return;
      }
      // A formula that was drawn is no longer the text that it was written in.
      if (there.dataset.tex) return void (there.dataset.tex === node.textContent || there.replaceWith(node));
      for (const { name, value } of node.attributes) if (there.getAttribute(name) !== value) there.setAttribute(name, value);
      for (const { name } of [...there.attributes]) if (!node.hasAttribute(name) && name !== "open") there.removeAttribute(name);
      merge(there, node);
    });
    for (const node of now.slice(next.length)) node.remove();
  };
  const write = (place, html) => {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    merge(place, fresh.content);
  };

  const show = (stage, told) => {
    const [lead, settled, rest] = stage.children;
    if (told.lead !== stage.lead) write(lead, stage.lead = told.lead);
    if (!told.keep) settled.replaceChildren();
    // HTML of ours, in which everything is escaped.
    if (told.settled) settled.insertAdjacentHTML("beforeend", told.settled);
    settled.classList.toggle("prose", !!settled.firstChild);
    write(rest, told.rest);
  };

  let asking = "";
  const follow = async (element, server) => {
    const stage = () => element.querySelector("[data-reply]");
    const reply = stage()?.dataset.reply;
    if (!reply || reply === asking) return;
    asking = reply;
    for (let mark = 0; stage()?.dataset.reply === reply && asking === reply;) {
      // Nothing comes back while the program is gone; where it is started again, this reply is in the history.
      const told = await server.growing({ reply, mark }).catch(() => null);
      if (told?.over) {
        window.hsdLook();
        break;
      }
      if (!told) {
        await pause(AGAIN);
        continue;
      }
      mark = told.mark;
      if (stage()?.dataset.reply === reply) show(stage(), told);
      await pause(1000 * told.between);
    }
    if (asking === reply) asking = "";
    if (stage() && stage().dataset.reply !== reply) follow(element, server);
  };
  window.hsdStream = (element, server) => {
    new MutationObserver(() => follow(element, server)).observe(element, { childList: true, subtree: true, attributes: true,
      attributeFilter: ["data-reply"] });
    follow(element, server);
  };
})();
