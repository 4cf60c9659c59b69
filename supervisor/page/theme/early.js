// Sets the theme that the user has chosen before the page is drawn, so that the other one does not flash up. It is no module, since
// those run later.

(() => {
  try {
    const theme = localStorage.getItem('fastvideo.theme');
    if (['light', 'dark'].includes(theme)) document.documentElement.dataset.theme = theme;
  } catch {
    // Storage is forbidden: the system's theme holds.
  }
})();
