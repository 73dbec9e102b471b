"use strict";
// Sorts, filters and shows the images of a page. All text goes in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const images = data.images.map((row, number) => {
    const image = { number };
    data.columns.forEach((name, column) => { image[name] = row[column]; });
    image.id = `${data.sources[image.source]}/${image.path}`;
    image.text = `${image.id}\n${image.caption}`.toLowerCase();
    return image;
  });
  for (const number of data.off || []) { images[number].off = true; }
  const AT_ONCE = 120;
  let chosen = images;
  let shown = 0;
  let only = null; // the images of a finding
  let opened = null;
  let also = () => true; // what else a server's page filters by

  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
  const visible = (text) => text.replace(UNSEEN,
    (unseen) => `[U+${unseen.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) { made.textContent = visible(String(text)); }
    if (className) { made.className = className; }
    return made;
  };

  // What is cropped away: the whole picture without the window, by the even-odd rule.
  const cropOf = ([left, top, width, height]) => {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(space, "path");
    path.setAttribute("fill-rule", "evenodd");
    path.setAttribute("d", `M0 0H1V1H0ZM${left} ${top}h${width}v${height}h${-width}Z`);
    svg.append(path);
    return svg;
  };

  // A file holds its pictures; a server is asked for them, by the images' ids.
  const pictureOf = (image, size) => (data.pictures ? data.pictures[image.number]
    : `picture?${new URLSearchParams({ id: image.id, size })}`);

  const drawInto = (frame, image, size = "small") => {
    frame.replaceChildren();
    const source = pictureOf(image, size);
    if (source === undefined) {
      frame.append(element("span", "picture not in this file", "none"));
      return;
    }
    const picture = element("img");
    picture.src = source;
    picture.alt = visible(image.caption || image.path);
    picture.loading = "lazy";
    frame.append(picture);
    if (image.crop[2] < 1 || image.crop[3] < 1) { frame.append(cropOf(image.crop)); }
  };

  const KEYS = {
    path: (image) => image.path, caption: (image) => image.caption, tokens: (image) => image.tokens,
    draws: (image) => image.draws, pixels: (image) => image.width * image.height,
    cropped: (image) => 1 - image.crop[2] * image.crop[3], warnings: (image) => image.warnings.length,
  };

  const fits = (image) => {
    const words = at("text").value.toLowerCase().trim();
    const warning = at("warning").value;
    return (!only || only.has(image.number)) && also(image)
      && (!words || image.text.includes(words))
      && (at("source").value === "" || image.source === Number(at("source").value))
      && (at("bucket").value === "" || image.bucket === Number(at("bucket").value))
      && (warning === "" || (warning === "any" ? image.warnings.length > 0
        : warning === "none" ? image.warnings.length === 0
          : image.warnings.some(([kind]) => kind === Number(warning))));
  };

  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

  const card = (image) => {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    button.dataset.image = image.number;
    button.classList.toggle("off", Boolean(image.off));
    const frame = element("span", undefined, "frame");
    const inner = element("span");
    drawInto(inner, image);
    frame.append(inner);
    button.append(frame, element("bdi", image.caption.slice(0, 90) || "(no caption)"), element("small", image.path));
    if (image.warnings.length) {
      const kinds = [...new Set(image.warnings.map(([kind]) => data.kinds[kind]))];
      button.append(element("small", kinds.join(", "), "warned"));
    }
    if (image.off) { button.append(element("small", "switched off", "state")); }
    item.append(button);
    return item;
  };

  const showMore = () => {
    const next = chosen.slice(shown, shown + AT_ONCE);
    at("grid").append(...next.map(card));
    shown += next.length;
    at("more").hidden = shown >= chosen.length;
  };

  const refresh = () => {
    const key = KEYS[at("sort").value];
    chosen = images.filter(fits);
    const inOrder = (a, b) => a.source - b.source || compare(a.path, b.path) || a.number - b.number;
    chosen.sort(key ? (a, b) => compare(key(a), key(b)) || inOrder(a, b) : inOrder);
    if (at("down").checked) { chosen.reverse(); }
    at("grid").replaceChildren();
    shown = 0;
    showMore();
    at("count").textContent = `${chosen.length} of ${images.length} images${only ? " of this finding" : ""}`;
  };

  const addFact = (name, value) => at("large-facts").append(element("dt", name), element("dd", value));

  const open = (number) => {
    const image = images[number];
    opened = number;
    at("large-path").textContent = visible(image.id);
    drawInto(at("large-picture"), image, "large");
    const picture = at("large-picture").querySelector("img");
    if (picture) {
      picture.style.width = `${Math.min(512, image.width, 0.6 * innerHeight * image.width / image.height)}px`;
    }
    const caption = at("large-caption");
    if (caption) { caption.textContent = visible(image.caption); }
    at("large-facts").replaceChildren();
    const [width, height] = data.buckets[image.bucket];
    addFact("size", `${image.width}x${image.height}`);
    addFact("bucket", `${width}x${height}`);
    addFact("cropped away", `${(100 * KEYS.cropped(image)).toFixed(1)} %`);
    addFact("draws an epoch", image.off ? "none: switched off" : image.held_out ? "none: held out" : image.draws);
    addFact("tokens", `${image.tokens} of ${data.most}`);
    at("large-warnings").replaceChildren(...image.warnings.map(([, text]) => element("li", text)));
    const alike = image.clusters.flatMap((cluster) => data.clusters[cluster]).filter((other) => other !== number);
    at("large-alike").replaceChildren(...alike.slice(0, 12).map((other) => {
      const button = element("button", undefined, "picture");
      button.type = "button";
      button.dataset.image = other;
      button.setAttribute("aria-label", visible(images[other].path));
      const frame = element("span", undefined, "frame");
      drawInto(frame, images[other]);
      button.append(frame);
      return button;
    }));
    if (!at("large").open) { at("large").showModal(); }
  };

  const turn = (by) => {
    const place = chosen.findIndex((image) => image.number === opened);
    const next = chosen[place + by];
    if (next) { open(next.number); }
  };

  for (const frame of document.querySelectorAll("[data-crop]")) {
    const image = images[Number(frame.dataset.crop)];
    drawInto(frame, image);
    frame.parentElement.setAttribute("aria-label", visible(image.path));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) { return; }
    if (button.dataset.image !== undefined) { open(Number(button.dataset.image)); }
    if (button.dataset.finding !== undefined) {
      at("filters").reset();
      only = new Set(data.findings[Number(button.dataset.finding)]);
      refresh();
      at("images").scrollIntoView();
    }
  });
  at("filters").addEventListener("input", refresh);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("reset", () => { only = null; setTimeout(refresh); });
  at("more").addEventListener("click", showMore);
  at("close").addEventListener("click", () => at("large").close());
  at("before").addEventListener("click", () => turn(-1));
  at("after").addEventListener("click", () => turn(1));
  // Of the document: what had the focus may have been replaced.
  document.addEventListener("keydown", (event) => {
    if (!at("large").open || event.target.closest("input, textarea, select")) { return; }
    if (event.key === "ArrowLeft") { turn(-1); }
    if (event.key === "ArrowRight") { turn(1); }
  });
  refresh();
  // For the script of a server's page, which comes after this one.
  window.everydream = {
    at, element, visible, data, images, card, open, refresh, showMore,
    chosen: () => chosen, opened: () => (at("large").open ? opened : null), filterBy: (wanted) => { also = wanted; },
  };
})();
