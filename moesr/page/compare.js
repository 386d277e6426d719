// <moesr-compare job="..." pairs='[{name, source, before, after, file, width, height, from, to}, ...]'>: before and after
// with a line to drag, and zoom; before is the input, or the result of an earlier run of the same picture. Keyboard: arrows move the line, + - 0 1 zoom, shift and arrows pan. Touch: drag, pinch, double tap.
if (!customElements.get("moesr-compare")) {
  const STYLE = `
    :host { display: block; color: var(--body-text-color, #333); font: 14px/1.4 system-ui, sans-serif; }
    * { box-sizing: border-box; }
    .stage {
      position: relative; width: 100%; overflow: hidden; border-radius: 10px; user-select: none; -webkit-user-select: none;
      cursor: ew-resize; touch-action: pan-y;
      background: repeating-conic-gradient(#8883 0 25%, #8881 0 50%) 0 0 / 24px 24px;
    }
    .stage.zoomed { cursor: grab; touch-action: none; }
    .layer { position: absolute; inset: 0; overflow: hidden; }
    img { position: absolute; left: 0; top: 0; transform-origin: 0 0; pointer-events: none; }
    .sharp img { image-rendering: pixelated; }
    .line {
      position: absolute; top: 0; bottom: 0; width: 44px; margin-left: -22px; border: 0; padding: 0; background: none;
      cursor: ew-resize; touch-action: none;
    }
    .line::before {
      content: ""; position: absolute; left: 21px; top: 0; bottom: 0; width: 2px; background: #fff;
      box-shadow: 0 0 0 1px #0006;
    }
    .line::after {
      content: "\\25C2\\2002\\25B8"; position: absolute; left: 2px; top: 50%; width: 40px; height: 40px; margin-top: -20px;
      border-radius: 50%; display: grid; place-items: center; font-size: 12px; color: #222; background: #fff;
      box-shadow: 0 1px 6px #0006;
    }
    .line:focus { outline: none; }
    .line:focus-visible::after { box-shadow: 0 0 0 3px var(--color-accent, #6366f1); }
    .tag {
      position: absolute; top: 10px; padding: 2px 8px; border-radius: 6px; font-size: 12px; color: #fff;
      background: #000a; pointer-events: none;
    }
    .tag.left { left: 10px; } .tag.right { right: 10px; }
    .bar { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; margin-top: 8px; }
    .bar button, .strip button {
      font: inherit; color: inherit; cursor: pointer; border-radius: 8px;
      border: 1px solid var(--border-color-primary, #ccc); background: var(--block-background-fill, #fff);
    }
    .bar button { min-width: 38px; height: 34px; padding: 0 10px; }
    .bar button:hover, .strip button:hover { border-color: var(--color-accent, #6366f1); }
    button:focus-visible { outline: 2px solid var(--color-accent, #6366f1); outline-offset: 2px; }
    .bar button[aria-pressed="true"] { border-color: var(--color-accent, #6366f1); border-width: 2px; }
    .bar output { flex: 1 1 15em; text-align: right; color: var(--moesr-quiet, #777);
      font-size: 13px; font-variant-numeric: tabular-nums; }
    .strip { display: flex; gap: 6px; margin-top: 8px; padding: 3px; overflow-x: auto; }
    .strip button { flex: none; width: 64px; height: 64px; padding: 0; overflow: hidden; }
    .strip img { position: static; width: 100%; height: 100%; object-fit: cover; }
    .strip button[aria-pressed="true"] { border-color: var(--color-accent, #6366f1); border-width: 2px; }
    :host(:fullscreen) { background: var(--body-background-fill, #fff); padding: 12px; overflow: auto; }
    [hidden] { display: none !important; }
  `;
  const MOST = 16;
  const RUNS = new Map(); // the last two results of each picture: elements come and go with the runs
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  customElements.define("moesr-compare", class extends HTMLElement {
    static get observedAttributes() { return ["pairs"]; }

    connectedCallback() {
      this.read();
      this.observer = new ResizeObserver(() => this.pair && this.draw());
      this.observer.observe(this);
    }

    disconnectedCallback() { this.observer?.disconnect(); }

    // Gradio 6 changes an element that is there already: more pictures are ready, or another job has begun.
    attributeChangedCallback(name, old, value) { if (this.isConnected && old !== value) this.read(); }

    read() {
      const text = this.getAttribute("pairs");
      if (text === this.text) return;
      this.text = text;
      const last = this.pair;
      const job = this.getAttribute("job");
      try { localStorage.setItem("moesr-job", job); } catch { /* private windows have none */ }
      try { this.pairs = JSON.parse(text) || []; } catch { this.pairs = []; }
      this.shadowRoot?.replaceChildren();
      this.pair = null;
      if (!this.pairs.length) return;
      this.earlier = new Map();
      for (const pair of this.pairs) {
        const key = `${pair.source} ${pair.from}`, runs = RUNS.get(key) || [];
        this.earlier.set(pair, runs.filter((run) => run.job !== job).pop()?.pair);
        RUNS.set(key, [...runs.filter((run) => run.job !== job), { job, pair }].slice(-2));
      }
      const same = last ? this.pairs.findIndex((pair) => pair.after === last.after) : -1;
      if (same < 0) this.split = 0.5;
      this.zoom = 1; this.x = 0; this.y = 0;
      this.build();
      this.listen();
      this.choose(Math.max(same, 0));
    }

    build() {
      const root = this.shadowRoot || this.attachShadow({ mode: "open" });
      this.thumbs = null;
      this.after = element("img", { alt: "after", draggable: false });
      this.before = element("img", { alt: "before", draggable: false });
      this.clip = element("div", { className: "layer" }, this.before);
      this.line = element("button", { className: "line", type: "button" });
      for (const [name, value] of Object.entries({
        role: "slider", "aria-label": "Line between before and after; shift and arrows move a zoomed picture",
        "aria-valuemin": 0, "aria-valuemax": 100, "aria-orientation": "horizontal",
      })) this.line.setAttribute(name, value);
      this.stage = element("div", { className: "stage" },
        element("div", { className: "layer" }, this.after), this.clip,
        this.left = element("span", { className: "tag left" }),
        element("span", { className: "tag right", textContent: "after" }), this.line);
      const button = (text, title, act) => {
        const made = element("button", { type: "button", textContent: text, title, onclick: act });
        made.setAttribute("aria-label", title);
        return made;
      };
      this.caption = element("output");
      this.full = button("Full screen", "Full screen", () => {
        if (document.fullscreenElement) document.exitFullscreen(); else this.requestFullscreen?.();
      });
      this.other = button("Last result", "Compare with the last result of this picture", () => {
        this.useEarlier = !this.useEarlier;
        this.choose(this.pairs.indexOf(this.pair));
      });
      this.full.hidden = !document.fullscreenEnabled;
      this.bar = element("div", { className: "bar" },
        button("\u2212", "Zoom out", () => this.zoomBy(1 / 1.5)), button("+", "Zoom in", () => this.zoomBy(1.5)),
        button("Fit", "Fit the picture", () => this.zoomTo(1)),
        button("1:1", "1:1, a pixel of the result is a pixel of the screen", () => this.zoomTo(this.actual())),
        this.other, this.full, this.caption);
      this.strip = element("div", { className: "strip", hidden: this.pairs.length < 2 });
      if (this.pairs.length > 1) {
        this.thumbs = this.pairs.map((pair, i) => {
          const thumb = element("button", { type: "button", title: pair.name, onclick: () => this.choose(i) },
            element("img", { src: pair.before, alt: pair.name, loading: "lazy" }));
          this.strip.append(thumb);
          return thumb;
        });
      }
      root.append(element("style", { textContent: STYLE }), this.stage, this.bar, this.strip);
    }

    choose(index) {
      this.pair = this.pairs[index];
      const earlier = this.earlier.get(this.pair);
      const left = this.useEarlier && earlier ? earlier.after : this.pair.before;
      this.before.src = left;
      this.left.textContent = left === this.pair.before ? "before" : "last result";
      this.other.hidden = !earlier;
      this.other.setAttribute("aria-pressed", left !== this.pair.before);
      this.after.src = this.pair.after;
      this.after.alt = `after: ${this.pair.name}, ${this.pair.to}`;
      this.before.alt = `before, ${this.pair.from}`;
      this.thumbs?.forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === index));
      this.zoomTo(1);
    }

    // Sides of the picture at zoom 1: it fits, and a small one is not blown up. The stage grows with it up to `room`.
    get base() {
      const full = document.fullscreenElement === this;
      const room = { width: this.clientWidth || 1, height: full ? innerHeight - 90 : Math.max(260, innerHeight * 0.72) };
      const ratio = this.pair.width / this.pair.height;
      const width = Math.max(Math.min(room.width, room.height * ratio, this.pair.width / devicePixelRatio), 80);
      return { width, height: width / ratio, room };
    }

    // Zoom at which a pixel of the result is one of the screen.
    actual() { return clamp(this.pair.width / (this.base.width * devicePixelRatio), 1, MOST); }

    zoomBy(factor, x, y) { this.zoomTo(this.zoom * factor, x, y); }

    // Keeps the point (x, y) of the stage where it is; its middle by default.
    zoomTo(zoom, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
      const most = Math.max(MOST, 4 * this.actual());
      zoom = clamp(zoom, 1, most);
      this.x = x - (x - this.x) * zoom / this.zoom;
      this.y = y - (y - this.y) * zoom / this.zoom;
      this.zoom = zoom;
      this.draw();
    }

    draw() {
      const { width, height, room } = this.base;
      const stage = { width: Math.min(room.width, width * this.zoom), height: Math.min(room.height, height * this.zoom) };
      Object.assign(this.stage.style, {
        width: `${stage.width}px`, height: `${Math.max(stage.height, 60)}px`, margin: "0 auto",
      });
      for (const image of [this.before, this.after])
        Object.assign(image.style, { width: `${width}px`, height: `${height}px` });
      this.x = clamp(this.x, stage.width - width * this.zoom, 0);
      this.y = clamp(this.y, stage.height - height * this.zoom, 0);
      const place = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
      this.before.style.transform = this.after.style.transform = place;
      this.stage.classList.toggle("zoomed", this.zoom > 1.001);
      this.stage.classList.toggle("sharp", this.zoom * width * devicePixelRatio > 3 * this.pair.width);
      const percent = 100 * this.split;
      this.clip.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
      this.after.parentElement.style.clipPath = `inset(0 0 0 ${percent}%)`;
      this.line.style.left = `${percent}%`;
      this.line.setAttribute("aria-valuenow", Math.round(percent));
      this.line.setAttribute("aria-valuetext", `${Math.round(percent)} % before`);
      const size = this.zoom * width * devicePixelRatio / this.pair.width;
      this.caption.textContent = `${this.pair.from} \u2192 ${this.pair.to}, ${Math.round(100 * size)} %`;
      this.caption.title = this.pair.name;
    }

    move(clientX) {
      const box = this.stage.getBoundingClientRect();
      this.split = clamp((clientX - box.left) / box.width, 0, 1);
      this.draw();
    }

    listen() {
      const touches = new Map();
      let mode = "", last = null, spread = 0, tapped = 0;
      const point = (event) => ({ x: event.clientX, y: event.clientY });
      const pinch = () => {
        const [a, b] = [...touches.values()];
        return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, spread: Math.hypot(a.x - b.x, a.y - b.y) };
      };
      this.stage.addEventListener("pointerdown", (event) => {
        if (event.button) return;
        touches.set(event.pointerId, point(event));
        this.stage.setPointerCapture(event.pointerId);
        last = point(event);
        if (touches.size === 2) { mode = "pinch"; last = pinch(); spread = last.spread; return; }
        mode = event.target === this.line || this.zoom <= 1.001 ? "line" : "pan";
        if (mode === "line") { this.move(event.clientX); this.line.focus({ preventScroll: true }); }
        const now = Date.now();
        if (event.pointerType === "touch" && now - tapped < 300) this.toggle(event);
        tapped = now;
      });
      this.stage.addEventListener("pointermove", (event) => {
        if (!touches.has(event.pointerId)) return;
        touches.set(event.pointerId, point(event));
        if (mode === "line") this.move(event.clientX);
        if (mode === "pinch" && touches.size === 2) {
          const now = pinch(), box = this.stage.getBoundingClientRect();
          this.x += now.x - last.x; this.y += now.y - last.y;
          this.zoomBy(now.spread / Math.max(spread, 1), now.x - box.left, now.y - box.top);
          last = now; spread = now.spread;
        }
        if (mode === "pan") {
          this.x += event.clientX - last.x; this.y += event.clientY - last.y;
          last = point(event);
          this.draw();
        }
      });
      for (const end of ["pointerup", "pointercancel"]) this.stage.addEventListener(end, (event) => {
        touches.delete(event.pointerId);
        mode = "";
      });
      this.stage.addEventListener("dblclick", (event) => this.toggle(event));
      this.stage.addEventListener("wheel", (event) => {
        // A plain wheel scrolls the page until the picture is zoomed.
        if (!event.ctrlKey && !event.metaKey && this.zoom <= 1.001) return;
        event.preventDefault();
        const box = this.stage.getBoundingClientRect();
        this.zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
      }, { passive: false });
      this.line.addEventListener("keydown", (event) => this.key(event));
      this.onfullscreenchange = () => {
        this.full.textContent = document.fullscreenElement === this ? "Exit full screen" : "Full screen";
        this.full.setAttribute("aria-label", this.full.textContent);
        this.zoomTo(1);
      };
    }

    toggle(event) {
      const box = this.stage.getBoundingClientRect();
      const near = Math.max(this.actual(), 2);
      this.zoomTo(this.zoom > 1.001 ? 1 : near, event.clientX - box.left, event.clientY - box.top);
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const way = ways[event.key];
      const acts = {
        Home: () => { this.split = 0; }, End: () => { this.split = 1; },
        PageUp: () => { this.split += 0.1; }, PageDown: () => { this.split -= 0.1; },
        "+": () => this.zoomBy(1.5), "=": () => this.zoomBy(1.5), "-": () => this.zoomBy(1 / 1.5),
        0: () => this.zoomTo(1), 1: () => this.zoomTo(this.actual()),
      };
      if (way && event.shiftKey) { this.x -= 40 * way[0]; this.y -= 40 * way[1]; }
      else if (way) this.split += 0.02 * (way[0] || -way[1]);
      else if (acts[event.key]) acts[event.key]();
      else return;
      event.preventDefault();
      event.stopPropagation();
      this.split = clamp(this.split, 0, 1);
      this.draw();
    }
  });

  // The address of the result that is shown, for the server to find its file.
  window.moesrAddress = () => {
    const compare = document.querySelector("moesr-compare") ||
      document.querySelector("gradio-app")?.shadowRoot?.querySelector("moesr-compare");
    return compare?.pair?.file || "";
  };
}
