// The status of a run on the nodes that sample and decode: a line of text, and the plan of time experts, a bar for every
// step, as high as its noise, in the colour of its expert, pale until it is reached. Made from "moesr.step", which
// nodes/comfyui.py sends; nothing is asked of the page that an older or newer page may lack.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { bringExample } from "./example.js";
import { migrate } from "./migrate.js";

const NAME = "moesr.timeline";
const LINE = 20; // pixels of the text
const BARS = 48;
const WORDS = {
  en: {
    expert: "expert", step: "step", tile: "tile", image: "image", encode: "reading the image", decode: "decoding",
    steady: "steadying", done: "done", stopped: "stopped", left: (seconds) => `${seconds} s left`,
  },
  zh: {
    expert: "专家", step: "步", tile: "分块", image: "图像", encode: "读取图像", decode: "解码",
    steady: "稳定画面", done: "完成", stopped: "已停止", left: (seconds) => `剩余 ${seconds} 秒`,
  },
  ja: {
    expert: "エキスパート", step: "ステップ", tile: "タイル", image: "画像", encode: "画像を読み込み中", decode: "デコード中",
    steady: "ちらつきを低減中", done: "完了", stopped: "中断", left: (seconds) => `残り ${seconds} 秒`,
  },
};
// As moesr/images/expert_timeline.py has them: pale blue for least noise, red for most.
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

function describe(run) {
  const say = words();
  if (run.phase === "done" || run.phase === "stopped") return say[run.phase];
  const parts = run.phase === "sample" ? [`${say.expert} ${run.expert}`] : [say[run.phase] ?? run.phase];
  for (const [name, all] of [["image", "images"], ["step", "steps"], ["tile", "tiles"]]) {
    if (run[all] > 1) parts.push(`${say[name]} ${run[name]}/${run[all]}`);
  }
  if (run.left > 0) parts.push(say.left(run.left));
  return parts.join(" · ");
}

function drawBars(canvas, run) {
  const width = canvas.clientWidth;
  if (!width) return;
  const sharp = 2 * (window.devicePixelRatio || 1); // also when the graph is enlarged
  canvas.width = width * sharp;
  canvas.height = BARS * sharp;
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  const floor = BARS - 4;
  const colours = palette(Math.max(...run.experts) + 1);
  const highest = Math.max(...run.noise, 1e-9);
  const reached = { encode: 0, sample: run.step, stopped: run.step }[run.phase] ?? run.experts.length;
  const pitch = width / run.experts.length;
  const gap = Math.min(2, pitch / 4);
  run.experts.forEach((expert, i) => {
    const tall = Math.max(2, ((floor - 2) * run.noise[i]) / highest);
    context.globalAlpha = i < reached ? 1 : 0.35;
    context.fillStyle = colours[expert];
    context.fillRect(i * pitch, floor - tall, pitch - gap, tall);
  });
  context.globalAlpha = 1;
  context.fillStyle = "rgb(140,144,152)"; // a grey that is read on light and on dark nodes
  if (run.phase === "sample") context.fillRect((run.step - 1) * pitch, floor + 1, Math.max(pitch - gap, 2), 3);
}

/** Text and canvas below the node's widgets, in the flow of the page's own layout; gives a function that paints. */
function addStatus(node, id) {
  const box = document.createElement("div");
  box.style.cssText = "width:100%;pointer-events:none;overflow:hidden";
  box.setAttribute("role", "status");
  const text = document.createElement("div");
  text.style.cssText =
    `font:12px/${LINE}px sans-serif;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;` +
    "color:var(--input-text,var(--fg-color,#888));padding:0 2px";
  const note = text.cloneNode();
  const canvas = document.createElement("canvas");
  canvas.style.cssText = `width:100%;height:${BARS}px;display:none`;
  box.append(text, note, canvas);
  // With the margin that the page leaves around elements.
  const room = () => LINE * (runs.get(id)?.note ? 2 : 1) + (runs.get(id)?.experts ? BARS : 0) + 20;
  const options = { serialize: false, hideOnZoom: false, getMinHeight: room, getMaxHeight: room };
  node.addDOMWidget("moesr_timeline", "moesr_timeline", box, options).serialize = false;
  let given = 0;
  const paint = () => {
    const run = runs.get(id);
    if (!run) return;
    text.textContent = text.title = describe(run);
    note.textContent = note.title = run.note ?? "";
    note.style.display = run.note ? "" : "none";
    canvas.style.display = run.experts ? "block" : "none";
    if (run.experts) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", text.textContent);
      drawBars(canvas, run);
    }
    if (given === room()) return;
    given = room();
    const needed = node.computeSize?.()[1] ?? 0;
    if (needed > node.size[1]) node.setSize([node.size[0], needed]);
    node.setDirtyCanvas?.(true, true); // until it is drawn the page has the element in its corner
  };
  if (window.ResizeObserver) new ResizeObserver(paint).observe(canvas);
  return paint;
}

function show(id) {
  const node = find(id);
  // Another tab may have another node of that id.
  if (!node?.addDOMWidget || node.type !== runs.get(id).type) return;
  node.moesrPaint ??= addStatus(node, id);
  node.moesrPaint();
}

function update(id, news) {
  const before = runs.get(id);
  // A line that the user should read stays until the next run of the node.
  const begins = before?.phase === "done" || before?.phase === "stopped";
  runs.set(id, { ...before, ...news, note: news.note || (begins ? "" : before?.note) });
  requestAnimationFrame(() => show(id));
}

/** After a cancel or an error: no status and no preview of what is not going on any more. */
function stop() {
  for (const [id, run] of runs) {
    if (run.phase === "done" || run.phase === "stopped") continue;
    update(id, { phase: "stopped" });
    const node = find(id);
    if (node?.type !== run.type) continue;
    app.extensionManager?._p?._s?.get?.("nodeOutput")?.revokePreviewsByExecutionId?.(id);
    delete app.nodePreviewImages?.[id];
    const at = node.widgets?.findIndex((widget) => widget.name === "$$canvas-image-preview") ?? -1;
    if (at >= 0) node.widgets.splice(at, 1)[0].onRemove?.();
    node.imgs = undefined;
    node.imageIndex = null;
    node.setDirtyCanvas?.(true, true);
  }
}

// The pack may be installed twice.
if (!app.extensions?.some((extension) => extension.name === NAME)) {
  app.registerExtension({
    name: NAME,
    async beforeConfigureGraph(graph) {
      migrate(graph);
      await bringExample(graph);
    },
    setup() {
      api.addEventListener("moesr.step", ({ detail }) => detail?.node && update(detail.node, detail));
      for (const end of ["execution_interrupted", "execution_error"]) api.addEventListener(end, stop);
    },
  });
}
