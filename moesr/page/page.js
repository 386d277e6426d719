// What page and tab do by themselves: results in sight, pictures by paste, names of examples.
if (!window.moesrPage) {
  window.moesrPage = true;

  // On a narrow screen the results lie below the controls: whoever starts a run is taken there, once there is room.
  let starting = false;
  document.addEventListener("click", (event) => {
    starting ||= Boolean(event.target.closest("#moesr-run, #moesr-examples button"));
  });
  const showRun = () => {
    if (!starting || !document.querySelector("#moesr-cancel:not([disabled])")) return;
    starting = false;
    const results = document.querySelector("#moesr-right");
    if (results.getBoundingClientRect().top < innerHeight * 0.6) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    results.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  };

  // Every file is taken, and said to be none of ours if it is not; the dialog offers pictures.
  document.addEventListener("click", () => {
    const field = document.querySelector("#moesr-files input[type=file]");
    if (field) field.accept = "image/*,.avif,.heic,.heif";
  }, true);

  // Examples are called by their captions, not "Thumbnail 1 of 6"; Gradio 6.31 has no words for its upload button.
  const nameButtons = () => {
    document.querySelectorAll("#moesr-examples button[aria-label]").forEach((button) => {
      const name = button.textContent.trim();
      if (name && button.ariaLabel !== name) button.ariaLabel = name;
      const picture = button.querySelector("img");
      if (picture?.alt) picture.alt = ""; // the name is said once
    });
    document.querySelectorAll("#moesr-files [title='common.upload']").forEach((button) => {
      button.title = button.ariaLabel = "Add pictures";
      // Gradio puts a second button into it: one is enough, and it answers keys too.
      const inner = button.querySelector("button"), field = button.querySelector("input");
      if (!inner || !field) return;
      inner.inert = true;
      button.onclick = (event) => { if (event.target !== field) field.click(); };
    });
    const zone = document.querySelector("#moesr-files .upload-container");
    if (zone?.textContent.trim()) zone.removeAttribute("aria-label"); // its text is its name
  };
  new MutationObserver(() => { showRun(); nameButtons(); }).observe(document.documentElement, { childList: true, subtree: true });

  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    if (!files.length || !document.querySelector("#moesr-files")?.offsetParent) return; // another tab of a host
    event.preventDefault();
    document.querySelector("#moesr-files button[aria-label=Clear], #moesr-files button[title=Clear]")?.click();
    setTimeout(() => {
      const field = document.querySelector("#moesr-files input[type=file]");
      if (!field) return;
      const data = new DataTransfer();
      files.forEach((file) => data.items.add(file));
      field.files = data.files;
      field.dispatchEvent(new Event("change", { bubbles: true }));
    }, 100);
  });
}
