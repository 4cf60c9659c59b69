//! The configuration of the whole supervisor, composed of those of its modules.

use crate::settings::Reader;
use crate::{Config, http, pool, prompt, session, store, traces, video};

/// Builds the configuration; the reader collects what is wrong.
pub fn read(reader: &mut Reader<'_>) -> Config {
    // Values that contradict each other are told first.
    pool::config::check(reader);
    session::config::check(reader);
    let http = http::config::read(reader);
    let pool = pool::config::read(reader);
    Config {
        session: session::config::read(reader, pool.previews),
        video: video::config::read(reader, &pool),
        store: store::config::read(reader),
        prompt: prompt::config::read(reader),
        session_log: session::config::read_log(reader, &pool),
        traces: traces::config::read(reader),
        grace: reader.get(&http::config::GRACE),
        http,
        pool,
    }
}
