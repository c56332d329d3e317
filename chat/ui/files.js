// A text file that is dropped on the page, pasted, or chosen becomes part of the message; nothing is uploaded apart.
(() => {
  const LARGEST = 1_000_000;
  const box = () => document.querySelector("#message textarea");

  const say = (text) => {
    const notice = document.getElementById("file-notice") ?? document.createElement("p");
    notice.id = "file-notice";
    notice.className = "problem";
    notice.setAttribute("role", "alert");
    notice.textContent = text;
    document.getElementById("message").before(notice);
    clearTimeout(say.timer);
    say.timer = setTimeout(() => notice.remove(), 8000);
  };

  const add = async (file) => {
    const area = box();
    if (!area) return;
    const name = file.name.replace(/[`\s]+/g, " ").trim() || "file";
    if (file.size > LARGEST) return say(`${name} is larger than 1 MB. Add a part of it.`);
    let text;
    try {
      // Anything that is no UTF-8 is no text to us: half a picture helps no model.
      text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    } catch {
      return say(`${name} is no text in UTF-8, so it was not added.`);
    }
    if (text.includes("\0")) return say(`${name} is no text, so it was not added.`);
    // A fence that is longer than any in the file.
    const longest = Math.max(2, ...[...text.matchAll(/`{3,}/g)].map((found) => found[0].length));
    const fence = "`".repeat(longest + 1);
    const kind = (name.match(/\.(\w{1,10})$/) ?? ["", ""])[1];
    const block = `\`${name}\`:\n${fence}${kind}\n${text.replace(/\r\n?/g, "\n").replace(/\n$/, "")}\n${fence}\n`;
    area.value = area.value.trim() ? `${area.value.trimEnd()}\n\n${block}` : block;
    area.dispatchEvent(new Event("input", { bubbles: true }));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  };
  const addAll = async (files) => { for (const file of files) await add(file); };

  window.hsdAttach = () => {
    const input = document.createElement("input");
    input.type = "file";
    input.multiple = true;
    input.addEventListener("change", () => addAll(input.files));
    input.click();
  };

  const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  const mark = (on) => document.documentElement.classList.toggle("dropping", on);
  addEventListener("dragenter", (event) => { if (holdsFiles(event)) { depth += 1; mark(true); } }, true);
  addEventListener("dragleave", (event) => { if (holdsFiles(event)) { depth = Math.max(0, depth - 1); mark(depth > 0); } }, true);
  addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); }, true);
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    depth = 0;
    mark(false);
    addAll([...event.dataTransfer.files]);
  }, true);
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (event.target !== box() || !files.length) return;
    event.preventDefault();
    addAll(files);
  }, true);
})();
