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

  // It goes with the next thing that is typed; what a file adds is not typed.
  addEventListener("input", (event) => { if (event.isTrusted) document.getElementById("file-notice")?.remove(); });

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
      const picture = file.type.startsWith("image/");
      return say(`${name} is ${picture ? "a picture and " : ""}no text in UTF-8, so it was not added.`);
    }
    if (text.includes("\0")) return say(`${name} is no text, so it was not added.`);
    // A fence that is longer than any in the file.
    const longest = [...text.matchAll(/`{3,}/g)].reduce((most, found) => Math.max(most, found[0].length), 2);
    const fence = "`".repeat(longest + 1);
    const kind = (name.match(/\.(\w{1,10})$/) ?? ["", ""])[1];
    const block = `\`${name}\`:\n${fence}${kind}\n${text.replace(/\r\n?/g, "\n").replace(/\n$/, "")}\n${fence}\n`;
    area.value = area.value.trim() ? `${area.value.trimEnd()}\n\n${block}` : block;
    area.dispatchEvent(new Event("input", { bubbles: true }));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  };
  const insert = (text) => {
    const area = box();
    if (!area) return;
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input", { bubbles: true }));
    area.focus();
  };

  // Spreadsheets and word processors add a picture, or a file, of the text that was copied: then the text is meant.
  // File managers add the names of the files that were copied: then the files are meant.
  const written = (data) => {
    const plain = data.getData("text/plain").replace(/\r\n?/g, "\n");
    if (plain.trim()) return plain;
    // Parsed apart from the page: nothing in it is run or fetched.
    const body = new DOMParser().parseFromString(data.getData("text/html"), "text/html").body;
    for (const hidden of body.querySelectorAll("script, style, template")) hidden.remove();
    for (const cell of body.querySelectorAll("td + td, th + th, td + th, th + td")) cell.before("\t");
    for (const end of body.querySelectorAll("br, p, div, tr, li, h1, h2, h3, h4, h5, h6, pre")) end.after("\n");
    const text = body.textContent;
    return text.trim() ? text.replace(/\n{3,}/g, "\n\n").trim() : "";
  };
  const lastPart = (line) => {
    const part = line.trim().replace(/^"(.*)"$/, "$1").split(/[\\/]/).at(-1);
    try { return decodeURIComponent(part); } catch { return part; }
  };
  const namesOf = (text, files) => {
    // The desktops' own formats begin with what is to be done with the files.
    const lines = text.split("\n").filter((line) => line.trim() && !/^(x-special\/nautilus-clipboard|copy|cut)$/.test(line.trim()));
    const names = new Set(files.map((file) => file.name.normalize()));
    return lines.every((line) => names.has(lastPart(line).normalize()) || names.has(line.trim().normalize()));
  };
  const textMeant = (data, files) => {
    const text = written(data);
    return text && !(files.length && namesOf(text, files)) ? text : "";
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
    const files = [...event.dataTransfer.files];
    const text = textMeant(event.dataTransfer, files);
    if (text) insert(text);
    else addAll(files);
  }, true);
  addEventListener("paste", (event) => {
    const data = event.clipboardData;
    const files = [...(data?.files ?? [])];
    if (event.target !== box() || !files.length) return;
    const text = textMeant(data, files);
    // The browser pastes plain text by itself, and can undo that.
    if (text && data.getData("text/plain").trim()) return event.stopPropagation();
    event.preventDefault();
    event.stopPropagation();
    if (text) insert(text);
    else addAll(files);
  }, true);
})();
