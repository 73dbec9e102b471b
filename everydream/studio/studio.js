"use strict";
// Edits captions and switches images off: asks the server, which writes the files, and shows what it answers.
(() => {
  const { at, element, visible, data, images, card, open, refresh, showMore, chosen, opened, filterBy } = window.everydream;
  const tools = at("tools").dataset;
  const byId = new Map(images.map((image) => [image.id, image]));
  let editing = null; // {image, stamp, text}: what the editor shows, as it came
  let last = null; // the image that had the focus last

  const LOST = "The studio does not answer: it was stopped. Start it again and load the page it prints.";
  const answered = async (asked) => {
    let answer;
    try { answer = await asked; } catch { throw new Error(LOST); }
    const found = await answer.json();
    if (!answer.ok) { throw Object.assign(new Error(found.error), { isConflict: answer.status === 409 }); }
    return found;
  };
  const ask = (what, values) => answered(fetch(`${what}?${new URLSearchParams(values)}`));
  const tell = (what, body) => answered(fetch(what, {
    method: "POST", body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", [tools.header]: tools.token },
  }));

  const say = (text, isTrouble = false) => {
    at("said").textContent = visible(text);
    at("said").classList.toggle("trouble", isTrouble);
  };

  const kindOf = (name) => {
    if (!data.kinds.includes(name)) {
      data.kinds.push(name);
      const option = element("option", name);
      option.value = data.kinds.length - 1;
      at("warning").append(option);
    }
    return data.kinds.indexOf(name);
  };

  const buttonOf = (image) => at("grid").querySelector(`button[data-image="${image.number}"]`);

  const redraw = (image) => {
    const button = buttonOf(image);
    if (!button) { return; }
    const had = document.activeElement === button;
    const fresh = card(image);
    button.parentElement.replaceWith(fresh);
    if (had) { fresh.firstElementChild.focus(); }
  };

  const showStatus = ({ undo, redo, changes }) => {
    for (const [id, label] of [["undo", undo], ["redo", redo]]) {
      at(id).disabled = !label;
      at(id).title = label ? visible(label) : "";
    }
    at("stale").hidden = !changes;
    at("stale").firstElementChild.textContent =
      `Numbers and findings on this page are from before ${changes} ${changes === 1 ? "change" : "changes"}.`;
  };

  // Takes up what the server says of images that changed.
  const takeUp = (answer) => {
    const rejected = [];
    for (const now of answer.images) {
      const image = byId.get(now.id);
      if (!image) { continue; }
      image.off = now.off;
      if (now.rejected) {
        rejected.push(`${now.id}: ${now.rejected}`);
      } else {
        image.caption = now.caption;
        image.tokens = now.tokens;
        image.text = `${image.id}\n${image.caption}`.toLowerCase();
        image.warnings = now.warnings.map(([kind, text]) => [kindOf(kind), text]);
      }
      redraw(image);
    }
    showStatus(answer);
    at("drop").hidden = true;
    say([answer.said, ...rejected.map((line) => `Not usable now: ${line}.`)].join(" "), rejected.length > 0);
  };

  const act = async (what, body) => {
    try { takeUp(await tell(what, body)); } catch (error) { say(error.message, true); }
  };

  // The editor, in the dialog of the opened image.

  const complain = (text) => {
    at("trouble").textContent = visible(text);
    at("trouble").hidden = !text;
  };

  const edit = async (number) => {
    const image = images[number];
    const area = at("text-of");
    if (editing && area.value !== editing.text) {
      if (editing.image === image) { return; }
      if (!window.confirm(`The caption of ${visible(editing.image.id)} is not saved. Leave it as it was?`)) {
        open(editing.image.number);
        return;
      }
    }
    last = image;
    editing = null;
    complain("");
    area.value = image.caption;
    area.readOnly = true;
    at("where").textContent = "";
    at("fixed").hidden = true;
    at("switch").textContent = image.off ? "Switch on" : "Switch off";
    try {
      const found = await ask("caption", { id: image.id });
      if (opened() !== number) { return; }
      at("fixed").hidden = !found.reason;
      at("fixed").textContent = visible(`Not to be edited here: ${found.reason}.`);
      at("save").disabled = at("save-next").disabled = Boolean(found.reason);
      if (found.reason) { return; }
      area.value = found.text;
      editing = { image, stamp: found.stamp, text: area.value };
      area.readOnly = false;
      const lines = found.lines === "choose" ? "each line is a variant, one a visit" : "";
      at("where").textContent = visible([found.note || `in ${found.file}`, lines].filter(Boolean).join("; "));
      area.focus();
    } catch (error) { complain(error.message); }
  };

  const save = async (toNext) => {
    if (!editing) { return; }
    const { image, stamp } = editing;
    try {
      takeUp(await tell("edit", { id: image.id, text: at("text-of").value, stamp }));
    } catch (error) {
      complain(error.message);
      return;
    }
    editing = null; // what is saved may be left
    const next = chosen()[chosen().indexOf(image) + 1];
    if (toNext && next) { open(next.number); } else { at("large").close(); }
  };

  const flip = (image) => act("switch", { ids: [image.id], off: !image.off });

  // What opens an image in page.js changes the dialog's path: then the editor follows.
  new MutationObserver(() => { if (opened() !== null) { edit(opened()); } })
    .observe(at("large-path"), { childList: true, characterData: true, subtree: true });
  at("large").addEventListener("close", () => {
    editing = null;
    at("large-path").textContent = ""; // so that the same image can be opened again
    if (last && buttonOf(last)) { buttonOf(last).focus(); }
  });
  at("editor").addEventListener("submit", (event) => {
    event.preventDefault();
    save(false);
  });
  at("save-next").addEventListener("click", () => save(true));
  at("switch").addEventListener("click", async () => {
    const image = images[opened()];
    await flip(image);
    at("switch").textContent = image.off ? "Switch on" : "Switch off";
  });
  at("text-of").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      save(event.shiftKey);
    }
  });

  // Tools and keys

  const focusOn = (image) => {
    while (image && !buttonOf(image) && !at("more").hidden) { showMore(); }
    if (image && buttonOf(image)) { buttonOf(image).focus(); }
  };

  const columns = () => getComputedStyle(at("grid")).gridTemplateColumns.split(" ").length;

  const step = (by) => {
    const shown = chosen();
    const place = last ? shown.indexOf(last) : -1;
    focusOn(shown[place < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, place + by))]);
  };

  at("grid").addEventListener("focusin", (event) => {
    const button = event.target.closest("button");
    if (button) { last = images[Number(button.dataset.image)]; }
  });

  // A change whose files others have written since is in the way of those before it until it is forgotten.
  const undo = async () => {
    try { takeUp(await tell("undo", {})); } catch (error) {
      say(error.message, true);
      at("drop").hidden = !error.isConflict;
    }
  };
  const redo = () => act("redo", {});
  const help = () => at("keys").showModal();
  const KEYS = {
    j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    ArrowDown: () => step(columns()), ArrowUp: () => step(-columns()),
    x: () => { if (last) { flip(last); } },
    u: undo, r: redo, "/": () => at("text").focus(), "?": help, c: () => at("change").click(),
  };
  const inGrid = () => at("grid").contains(document.activeElement);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) { return; }
    if (event.target.closest("input, textarea, select")) {
      if (event.key === "Escape") { event.target.blur(); }
      return;
    }
    // Up and down scroll the page until an image has the focus.
    if (event.key.startsWith("Arrow") && !inGrid()) { return; }
    const does = KEYS[event.key];
    if (does) {
      event.preventDefault();
      does();
    }
  });

  at("undo").addEventListener("click", undo);
  at("redo").addEventListener("click", redo);
  at("drop").firstElementChild.addEventListener("click", () => act("undo", { drop: true }));
  at("help").addEventListener("click", help);
  at("look").addEventListener("click", async () => {
    say("Looking again …");
    try {
      await tell("look", {});
      location.reload();
    } catch (error) { say(error.message, true); }
  });
  at("state").addEventListener("input", refresh);
  filterBy((image) => at("state").value === "" || Boolean(image.off) === (at("state").value === "off"));
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  showStatus({ undo: tools.undo, redo: tools.redo, changes: 0 });
  window.studio = { tell, takeUp };
})();
