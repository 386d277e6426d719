// On a narrow screen the results lie below the controls: whoever starts a run is taken there.
if (!window.moesrPage) {
  window.moesrPage = true;
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#moesr-run, #moesr-examples button")) return;
    const results = document.querySelector("#moesr-right");
    if (!results || results.getBoundingClientRect().top < innerHeight * 0.6) return;
    results.style.minHeight = "90vh"; // or the page ends too early to scroll there
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    results.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  });
}
