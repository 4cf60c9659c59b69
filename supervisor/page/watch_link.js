// The link with which others watch the film, and how many do.

import { $, say, set } from './dom.js';
import { spectatorWords } from './words.js';

export class WatchLink {
  /** @param {(event: import('./session.js').Event) => void} dispatch */
  constructor(dispatch) {
    this.link = null;
    this.note = null;
    $('watch-copy').onclick = () => this.copy();
    $('watch-renew').onclick = () => dispatch({ type: 'watch_link_renewed' });
    $('watch-link').onfocus = ({ target }) => target.select();
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.link);
      say($('watch-note'), 'The link is copied. Whoever has it can watch.');
    } catch {
      // The browser has no clipboard for pages without HTTPS.
      set($('watch-link'), { hidden: false });
      $('watch-link').focus();
      say($('watch-note'), 'Copy the link from the field. Whoever has it can watch.');
    }
  }

  /** @param {import('./state.js').SessionState} state */
  render({ sessionId, watchToken, spectators, phase, watchNote }) {
    set($('watch'), { hidden: !watchToken });
    set($('watch-renew'), { disabled: phase !== 'active' });
    say($('spectators'), spectatorWords(spectators ?? 0));
    if (watchNote !== this.note) say($('watch-note'), watchNote);
    this.note = watchNote;
    const link = watchToken && `${new URL('watch', document.baseURI)}#${new URLSearchParams({ session: sessionId, token: watchToken })}`;
    if (link === this.link) return;
    this.link = link;
    set($('watch-link'), { value: link ?? '' });
  }
}
