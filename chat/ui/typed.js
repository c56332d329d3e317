// What a person types into the settings stays: values that were asked for before, and come back later, do not replace it.
(() => {
  const WATCHED = 10_000;
  // Field to what was typed into it and when, until the person does something that sets the fields.
  const typed = new Map();
  const REPLACES = "#listing [data-action], #new, #head [data-action], #preset [role=option], #pin button, [data-action=pin]";
  const field = (event) => event.target.closest?.("#settings input:not([role=listbox]), #settings textarea");
  const note = (input) => {
    if (input.closest("#preset")) return;
    typed.set(input.type === "radio" ? input.name : input, { input, value: input.value, at: Date.now() });
    if (typed.size === 1) watch();
  };

  const keep = () => {
    for (const [key, { input, value, at }] of typed) {
      if (Date.now() - at > WATCHED || !input.isConnected) typed.delete(key);
      else if (input.type === "radio") { if (!input.checked) input.click(); }
      else if (input.value !== value) {
        input.value = value;
        input.dispatchEvent(new Event("input", { bubbles: true }));
      }
    }
  };
  let timer = 0;
  const watch = () => {
    clearInterval(timer);
    timer = setInterval(() => { keep(); if (!typed.size) clearInterval(timer); }, 50);
  };

  addEventListener("input", (event) => { if (field(event)) note(field(event)); }, true);
  // A field that is left puts right what cannot be, and that is then what was meant.
  addEventListener("focusout", (event) => {
    const input = field(event);
    if (input && typed.has(input)) setTimeout(() => { if (typed.has(input)) typed.get(input).value = input.value; });
  }, true);
  for (const kind of ["pointerdown", "click"]) {
    addEventListener(kind, (event) => { if (event.target.closest?.(REPLACES)) typed.clear(); }, true);
  }
  addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    if (event.target.closest?.("#preset")) typed.clear();
    else keep();
  }, true);
})();
