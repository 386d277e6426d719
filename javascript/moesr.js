// The MoESR tab in A1111 and Forge: the page's own scripts, and the way of pictures to and from other tabs.
(function() {
    const here = document.currentScript.src;
    for (const name of ["compare.js", "page.js"]) {
        const script = document.createElement("script");
        script.src = new URL("../moesr/page/" + name, here).href + new URL(here).search;
        document.head.appendChild(script);
    }
})();

// The host calls it after a picture was sent to the tab.
function switch_to_moesr() {
    const tabs = gradioApp().querySelectorAll("#tabs > .tab-nav > button, #tabs > div > .tab-nav > button, #tabs button[role=tab]");
    const ours = Array.from(tabs).find((button) => button.textContent.trim() === "MoESR");
    if (ours) ours.click();
    return Array.from(arguments);
}

// The result has come to where the host's own button takes it from.
function moesr_paste(tab) {
    const button = gradioApp().querySelector("#moesr-paste-" + tab);
    if (button) button.click();
    return [];
}
