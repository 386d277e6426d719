// Workflows saved by older versions. Numbers became lists with "auto", which 0 stood for. The Sampler's `scale` moved to Frequency-Compensated Decode, which also took
// `wrap` from the Sampler when its own was off. MoESR Upscale got `steady` before `size`. Widget values are saved by position, so they are moved before loading.

const SCALE = 5; // after seed, control, steps, sampler, eta; a number where `batch_seed`, a word, is now
const WRAP = 7; // after `scale` is gone
const DECODE = { scale: 3, wrap: 4 };
const STEADY = 7; // of MoESR Upscale; `size`, a word, was there
// Widgets that were numbers, by position in this version; true where 0 was no automatic.
const LISTS = {
  MoESRSampler: { 2: false, 6: false },
  FrequencyCompensatedDecode: { 0: true, 2: false, 3: false },
  MoESRAsUpscaleModel: { 0: false, 3: true },
  MoESRExpertTimeline: { 0: false },
};

const target = (link) => (Array.isArray(link) ? { id: link[3], slot: link[4] } : { id: link.target_id, slot: link.target_slot });

function retarget(link, id, slot) {
  if (Array.isArray(link)) [link[3], link[4]] = [id, slot];
  else [link.target_id, link.target_slot] = [id, slot];
}

function makeLists(node) {
  for (const [i, isZero] of Object.entries(LISTS[node.type] ?? {})) {
    const value = node.widgets_values?.[i];
    if (typeof value === "number") node.widgets_values[i] = value === 0 && !isZero ? "auto" : String(value);
  }
}

/** Changes a saved graph, and its subgraphs, into what this version would have saved. */
export function migrate(graph) {
  for (const inner of graph?.definitions?.subgraphs ?? []) migrate(inner);
  const nodes = graph?.nodes ?? [];
  const links = graph?.links ?? [];
  const linkId = (link) => (Array.isArray(link) ? link[0] : link.id);
  for (const sampler of nodes) {
    const values = sampler.widgets_values;
    if (sampler.type !== "MoESRSampler" || typeof values?.[SCALE] !== "number") continue;
    const [scale] = values.splice(SCALE, 1);
    const fed = new Set(sampler.outputs?.[0]?.links ?? []);
    const decodes = links
      .filter((link) => fed.has(linkId(link)))
      .map((link) => nodes.find((node) => String(node.id) === String(target(link).id)))
      .filter((node) => node?.type === "FrequencyCompensatedDecode" && Array.isArray(node.widgets_values));
    for (const decode of decodes) {
      if (!Number(decode.widgets_values[DECODE.scale])) decode.widgets_values[DECODE.scale] = scale;
      if (values[WRAP] === true) decode.widgets_values[DECODE.wrap] = true;
    }
    const removed = (sampler.inputs ?? []).findIndex((input) => input.name === "scale");
    if (removed < 0) continue;
    const [{ link: driven }] = sampler.inputs.splice(removed, 1);
    for (const link of links) {
      const { id, slot } = target(link);
      if (String(id) !== String(sampler.id)) continue;
      if (slot > removed) retarget(link, id, slot - 1);
      if (slot !== removed || linkId(link) !== driven || !decodes.length) continue;
      // The scale came from another node: it goes to the Decode.
      const place = (decodes[0].inputs ?? []).findIndex((input) => input.name === "scale");
      if (place < 0) continue;
      decodes[0].inputs[place].link = driven;
      retarget(link, decodes[0].id, place);
    }
  }
  for (const { type, widgets_values: values } of nodes) {
    if (type === "MoESRUpscale" && typeof values?.[STEADY] === "string") values.splice(STEADY, 0, 0);
  }
  nodes.forEach(makeLists);
}
