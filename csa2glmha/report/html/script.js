(() => {
  "use strict";

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };

  // --- light and dark: the system's choice until the reader makes one

  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const nameButton = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  // Browsers may refuse storage to files; the choice then holds for this visit.
  const remembered = () => { try { return localStorage.getItem("csa2glmha-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("csa2glmha-theme", theme); } catch { /* as above */ } };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    nameButton();
  });
  system.addEventListener("change", nameButton);
  button.hidden = false;
  nameButton();

  // --- two pictures under a slider

  const gallery = document.querySelector(".gallery");
  if (!gallery) return;
  const images = [...gallery.querySelectorAll(".image")];
  const viewsOf = (image) => [...image.querySelectorAll(".view")];
  const chosen = { image: 0, view: 0, left: "teacher", right: "student" };

  const left = make("img", { alt: "", draggable: "false" });
  const right = make("img", { alt: "", draggable: "false", class: "over" });
  const names = { left: make("span", { class: "side left" }), right: make("span", { class: "side right" }) };
  const facts = make("div");
  const pins = make("div", { "aria-hidden": "true" });
  const range = make("input", { type: "range", min: "0", max: "100", step: "1", value: "50" });
  const stage = make("div", { class: "stage" }, left, right, pins, range, make("span", { class: "divider" }), names.left, names.right);

  const move = () => {
    stage.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `${range.value} % ${names.left.textContent}, ${100 - range.value} % ${names.right.textContent}`);
  };
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    move();
  };
  range.addEventListener("input", move);
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true });
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });

  const choices = (title, key, options) => {
    const field = make("fieldset", {}, make("legend", {}, title));
    const row = make("div", { class: "choices" });
    for (const [value, text] of options) {
      const radio = make("input", { type: "radio", name: `show-${key}`, value: String(value) });
      radio.checked = chosen[key] === value;
      radio.addEventListener("change", () => {
        chosen[key] = value;
        if (key === "image") chosen.view = Math.min(chosen.view, viewsOf(images[value]).length - 1);
        show();
      });
      row.append(make("label", {}, radio, make("span", {}, text)));
    }
    field.append(row);
    return field;
  };

  const figures = () => [...viewsOf(images[chosen.image])[chosen.view].querySelectorAll("figure")];
  const show = () => {
    images.forEach((image, number) => {
      image.hidden = number !== chosen.image;
      viewsOf(image).forEach((view, index) => { view.hidden = index !== chosen.view; });
    });
    for (const [side, picture] of [["left", left], ["right", right]]) {
      const figure = figures().find((each) => each.dataset.role === chosen[side]) || figures()[0];
      const source = figure.querySelector("img");
      picture.src = source.src;
      picture.alt = source.alt;
      names[side].textContent = figure.dataset.title;
      stage.style.aspectRatio = `${source.getAttribute("width")} / ${source.getAttribute("height")}`;
    }
    facts.replaceChildren(images[chosen.image].querySelector(".facts").cloneNode(true));
    pins.replaceChildren(...[...images[chosen.image].querySelectorAll(".view:not([hidden]) .pin")].map((pin) => pin.cloneNode(true)));
    range.setAttribute("aria-label", `Divider: ${names.left.textContent} on the left, ${names.right.textContent} on the right`);
    move();
  };

  const roles = figures().map((each) => [each.dataset.role, each.dataset.title]);
  const controls = make("div", { class: "controls" });
  if (images.length > 1) controls.append(choices("Image", "image", images.map((image, number) => [number, image.dataset.name])));
  const views = viewsOf(images[0]);
  if (views.length > 1) controls.append(choices("Shown", "view", views.map((view, number) => [number, view.dataset.name])));
  controls.append(choices("Left", "left", roles), choices("Right", "right", roles));
  controls.append(facts);
  controls.append(make("p", { class: "hint" }, "Drag the divider, or focus it and use the arrow keys."));
  gallery.classList.add("live");
  gallery.prepend(make("div", { class: "viewer" }, stage, controls));
  show();
})();
