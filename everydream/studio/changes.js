"use strict";
// Changes of many captions: asked for, shown before they are made, then made as shown.
(() => {
  const { at, element, images, chosen } = window.everydream;
  const { tell, takeUp } = window.studio;
  const AT_ONCE = 100;
  let wanted = null; // what the preview is of
  let edits = [];
  let shown = 0;

  const say = (text, isTrouble = false) => {
    at("many-said").textContent = text;
    at("many-said").classList.toggle("trouble", isTrouble);
  };

  const forget = () => {
    wanted = null;
    edits = [];
    shown = 0;
    at("apply").disabled = true;
    at("edits").replaceChildren();
    at("refused").replaceChildren();
    at("more-edits").hidden = true;
    say("");
  };

  const showFields = () => {
    const kind = at("kind").value.split(" ")[0];
    for (const field of at("many-form").querySelectorAll("[data-for]")) {
      field.hidden = !field.dataset.for.split(" ").includes(kind);
    }
  };

  const showMore = () => {
    const next = edits.slice(shown, shown + AT_ONCE);
    at("edits").append(...next.map(([name, before, after]) => {
      const item = element("li");
      item.append(element("small", name));
      before.forEach((text, row) => {
        if (text !== after[row]) { item.append(element("del", text), element("ins", after[row])); }
      });
      return item;
    }));
    shown += next.length;
    at("more-edits").hidden = shown >= edits.length;
  };

  const request = () => ({
    kind: at("kind").value, find: at("find").value, with: at("with").value, tag: at("tag").value,
    ignore_case: at("ignore-case").checked,
    ids: chosen().length === images.length ? null : chosen().map((image) => image.id),
  });

  const preview = async () => {
    forget();
    const asked = request();
    say("Looking …");
    try {
      const found = await tell("preview", asked);
      wanted = { ...asked, digest: found.digest };
      edits = found.edits;
      say(`${edits.length} captions would change, ${found.same} stay as they are`
        + (found.refused.length ? `, ${found.refused.length} cannot be changed here:` : "."));
      at("refused").replaceChildren(...found.refused.slice(0, AT_ONCE).map(([name, why]) => element("li", `${name}: ${why}`)));
      at("apply").disabled = edits.length === 0;
      at("apply").textContent = edits.length ? `Apply to ${edits.length}` : "Apply";
      showMore();
    } catch (error) { say(error.message, true); }
  };

  const apply = async () => {
    if (!wanted) { return; }
    at("apply").disabled = true;
    try {
      takeUp(await tell("apply", wanted));
      at("many").close();
    } catch (error) { say(error.message, true); }
  };

  at("change").addEventListener("click", () => {
    forget();
    showFields();
    at("scope").textContent = `Of the ${chosen().length} images that are listed now (the filters above choose them).`;
    at("many").showModal();
    at("kind").focus();
  });
  at("many-form").addEventListener("input", () => {
    forget();
    showFields();
  });
  at("many-form").addEventListener("submit", (event) => {
    event.preventDefault();
    preview();
  });
  at("apply").addEventListener("click", apply);
  at("more-edits").addEventListener("click", showMore);
})();
