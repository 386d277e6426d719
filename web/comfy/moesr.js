// Draws the plan of time experts on the nodes that sample: a bar for every step, as high as its noise, in the colour of
// its expert, pale until it is reached. It hears "moesr.step" from nodes/comfyui.py, and asks nothing of the page that an
// older or newer page may lack.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { migrate } from "./migrate.js";

const NAME = "moesr.timeline";
const HEIGHT = 64;
const WORDS = {
  en: { expert: "expert", step: "step", tile: "tile", encode: "reading the image", decode: "decoding", done: "done" },
  zh: { expert: "专家", step: "步", tile: "分块", encode: "读取图像", decode: "解码", done: "完成" },
  ja: { expert: "エキスパート", step: "ステップ", tile: "タイル", encode: "画像を読み込み中", decode: "デコード中", done: "完了" },
};
// As moesr/images/timeline.py has them: pale blue for least noise, red for most.
const SCALE = [
  [146, 190, 224],
  [84, 132, 192],
  [118, 92, 168],
  [190, 84, 112],
];

/** Node id -> what is known of its run. */
const runs = new Map();

function palette(count) {
  return Array.from({ length: count }, (_, i) => {
    const place = ((SCALE.length - 1) * i) / Math.max(count - 1, 1);
    const low = Math.min(Math.floor(place), SCALE.length - 2);
    const mixed = SCALE[low].map((a, k) => Math.round(a + (SCALE[low + 1][k] - a) * (place - low)));
    return `rgb(${mixed.join(",")})`;
  });
}

function words() {
  let locale = navigator.language;
  try {
    locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? app.ui.settings.getSettingValue("Comfy.Locale");
  } catch {
    // A page without that setting: the browser's language will do.
  }
  return WORDS[String(locale).slice(0, 2)] ?? WORDS.en;
}

/** The node with an id as the host tells it: "7", or "12:7" for node 7 of the subgraph that is node 12. */
function find(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

function caption(run) {
  const say = words();
  const tiles = run.tiles > 1 ? ` · ${say.tile} ${run.tile}/${run.tiles}` : "";
  if (run.phase !== "sample") return `${say[run.phase] ?? run.phase}${run.phase === "done" ? "" : tiles}`;
  return `${say.expert} ${run.experts[run.step - 1]} · ${say.step} ${run.step}/${run.experts.length}${tiles}`;
}

function draw(context, run, width, height) {
  const floor = height - 3;
  const ceiling = 18;
  const colours = palette(Math.max(...run.experts) + 1);
  const highest = Math.max(...run.noise, 1e-9);
  const reached = { encode: 0, sample: run.step }[run.phase] ?? run.experts.length;
  const pitch = width / run.experts.length;
  const gap = Math.min(2, pitch / 4);
  run.experts.forEach((expert, i) => {
    const tall = Math.max(2, ((floor - ceiling) * run.noise[i]) / highest);
    context.globalAlpha = i < reached ? 1 : 0.35;
    context.fillStyle = colours[expert];
    context.fillRect(i * pitch, floor - tall, pitch - gap, tall);
  });
  context.globalAlpha = 1;
  // A grey that is read on light and on dark nodes.
  context.fillStyle = "rgb(140,144,152)";
  if (run.phase === "sample") context.fillRect((run.step - 1) * pitch, floor + 1, Math.max(pitch - gap, 2), 2);
  context.font = "11px sans-serif";
  context.textBaseline = "top";
  context.fillText(caption(run), 2, 2, width - 4);
}

/** A canvas below the node's widgets, in the flow of the page's own layout. */
function widget(node, id) {
  const canvas = document.createElement("canvas");
  canvas.style.cssText = `width:100%;height:${HEIGHT}px;pointer-events:none;display:block`;
  canvas.setAttribute("role", "img");
  const room = () => HEIGHT + 20; // with the margin that the page leaves around elements
  const options = { serialize: false, hideOnZoom: false, getMinHeight: room, getMaxHeight: room };
  const made = node.addDOMWidget("moesr_timeline", "moesr_timeline", canvas, options);
  made.serialize = false;
  const needed = node.computeSize?.()[1] ?? 0;
  if (needed > node.size[1]) node.setSize([node.size[0], needed]);
  const paint = () => {
    const run = runs.get(id);
    const width = canvas.clientWidth;
    if (!run || !width) return;
    const sharp = 2 * (window.devicePixelRatio || 1); // also when the graph is enlarged
    canvas.width = width * sharp;
    canvas.height = HEIGHT * sharp;
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    draw(context, run, width, HEIGHT);
    canvas.setAttribute("aria-label", caption(run));
  };
  if (window.ResizeObserver) new ResizeObserver(paint).observe(canvas);
  return paint;
}

/** Where nodes take no elements: drawn below the node's frame. */
function foreground(node, id) {
  const before = node.onDrawForeground;
  node.onDrawForeground = function (context, ...rest) {
    before?.call(this, context, ...rest);
    const run = runs.get(id);
    if (!run || this.flags?.collapsed) return;
    context.save();
    context.translate(0, this.size[1] + 4);
    draw(context, run, this.size[0], HEIGHT);
    context.restore();
  };
  return () => node.setDirtyCanvas?.(true, true);
}

function show(id) {
  const node = find(id);
  if (!node) return;
  node.moesrPaint ??= (node.addDOMWidget ? widget : foreground)(node, id);
  node.moesrPaint();
}

function hear({ detail }) {
  if (!detail?.node) return;
  const run = { ...runs.get(detail.node), ...detail };
  // Decoding has no plan of its own; on a node that also sampled, that plan stays.
  if (!detail.experts?.length) {
    run.experts = runs.get(detail.node)?.experts;
    run.noise = runs.get(detail.node)?.noise;
  }
  if (!run.experts?.length) return;
  runs.set(detail.node, run);
  requestAnimationFrame(() => show(detail.node));
}

// The pack may be installed twice.
if (!app.extensions?.some((extension) => extension.name === NAME)) {
  app.registerExtension({
    name: NAME,
    beforeConfigureGraph: migrate,
    setup() {
      api.addEventListener("moesr.step", hear);
    },
  });
}
