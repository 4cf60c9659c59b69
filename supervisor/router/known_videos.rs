//! Which server had a video when it was last asked for, so that the next request goes straight there.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use url::Url;

use super::registry::Replica;

/// Number of videos that are remembered.
const MOST: NonZeroUsize = NonZeroUsize::new(16_384).expect("it is not 0");

/// The addresses of the servers of videos. It is no more than a hint: a server that has lost the video says so. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct KnownVideos(Arc<Mutex<LruCache<String, Url>>>);

impl Default for KnownVideos {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(MOST))))
    }
}

impl KnownVideos {
    /// Takes note of a server that has a video.
    pub(super) fn remember(&self, id: &str, replica: &Replica) {
        let mut known = self.0.lock().expect("no holder of this lock panics");
        known.put(id.to_owned(), replica.endpoint.url.clone());
    }

    /// Puts the server that had a video before all others.
    pub(super) fn put_first(&self, id: &str, replicas: &mut [Arc<Replica>]) {
        let mut known = self.0.lock().expect("no holder of this lock panics");
        let Some(url) = known.get(id) else {
            return;
        };
        if let Some(place) = replicas.iter().position(|it| it.endpoint.url == *url) {
            replicas[..=place].rotate_right(1);
        }
    }
}
