// Files that are dropped anywhere on the page. While one is dragged over it, words say what may be dropped.

/** @typedef {{isOpen: () => boolean, words: string, take: (files: FileList) => void}} Target */

/** Takes dropped files for as long as the target is open. @param {Target} target */
export function takeDrops({ isOpen, words, take }) {
  const isMeant = (event) => event.dataTransfer?.types.includes('Files') && isOpen();
  document.addEventListener('dragover', (event) => {
    if (!isMeant(event)) return;
    event.preventDefault();
    document.body.dataset.drop = words;
  });
  document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) delete document.body.dataset.drop; });
  document.addEventListener('drop', (event) => {
    delete document.body.dataset.drop;
    if (!isMeant(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}
