"use strict";
// Asks every few seconds what the run has come to, and replaces the sections that changed; the rest stays where it is.
(() => {
  const EVERY_MS = 2000;
  const at = (id) => document.getElementById(id);
  const shown = new Map(); // section -> its text as it came
  let stamp = "";

  const put = (html, whole) => {
    const sections = [...new DOMParser().parseFromString(html, "text/html").querySelectorAll("section")];
    const came = new Set(sections.map((section) => section.id));
    for (const id of [...shown.keys()]) {
      if (whole && id !== "progress" && !came.has(id)) {
        at(id).remove();
        shown.delete(id);
      }
    }
    for (const section of sections) {
      if (shown.get(section.id) === section.outerHTML) { continue; }
      shown.set(section.id, section.outerHTML);
      const old = at(section.id);
      const fresh = document.adoptNode(section);
      if (old) { old.replaceWith(fresh); } else { at("parts").append(fresh); }
    }
  };

  const ask = async () => {
    const answer = await fetch(`run/now?${new URLSearchParams({ have: stamp })}`);
    const now = await answer.json();
    if (!answer.ok) { throw new Error(now.error); }
    document.title = at("title").textContent = now.title;
    const { scrollX, scrollY } = window;
    put(now.progress, false);
    if (now.body !== null) { put(now.body, true); }
    window.scrollTo(scrollX, scrollY);
    stamp = now.stamp;
  };

  const again = async () => {
    try {
      if (!document.hidden || !stamp) { await ask(); }
      at("trouble").hidden = true;
    } catch (error) {
      at("trouble").textContent = error instanceof TypeError
        ? "The studio does not answer: it was stopped, or this page lost it. What is shown is the last that was seen."
        : error.message;
      at("trouble").hidden = false;
    }
    setTimeout(again, EVERY_MS);
  };
  again();
})();
