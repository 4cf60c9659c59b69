//! An LRU cache of enhanced prompts. The key is the tenant and the whole prompt of the client.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::generated::GeneratedPrompt;
use crate::tenant::Tenant;

#[derive(Debug)]
pub(super) struct PromptCache {
    /// The entries; `None` when the capacity is 0, which disables the cache.
    entries: Option<LruCache<(Tenant, String), GeneratedPrompt>>,
    /// The number of lookups that found an entry, since the start.
    hits: u64,
}

impl PromptCache {
    /// Creates a cache that holds at most `capacity` prompts.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: NonZeroUsize::new(capacity).map(LruCache::new),
            hits: 0,
        }
    }

    /// Returns an empty cache that goes on counting.
    pub(super) fn renewed(&self, capacity: usize) -> Self {
        Self {
            hits: self.hits,
            ..Self::new(capacity)
        }
    }

    /// Looks up what a tenant's prompt became, and marks that entry as the most recently used one.
    pub(super) fn get(&mut self, tenant: &Tenant, prompt: &str) -> Option<GeneratedPrompt> {
        let key = (tenant.clone(), prompt.to_owned());
        let found = self.entries.as_mut()?.get(&key)?.clone();
        self.hits += 1;
        Some(found)
    }

    /// Adds an entry or replaces it. A full cache drops its least recently used entry.
    pub(super) fn put(&mut self, tenant: &Tenant, prompt: &str, generated: &GeneratedPrompt) {
        if let Some(entries) = &mut self.entries {
            entries.put((tenant.clone(), prompt.to_owned()), generated.clone());
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, LruCache::len)
    }

    pub(super) fn hits(&self) -> u64 {
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn generated(content: &str) -> GeneratedPrompt {
        GeneratedPrompt {
            content: content.to_owned(),
            provider: "p".to_owned(),
            model: "m".to_owned(),
            latency: Duration::ZERO,
            fallback_used: false,
        }
    }

    #[test]
    fn the_least_recently_used_entry_leaves() {
        let (mut cache, tenant) = (PromptCache::new(2), Tenant::default());
        cache.put(&tenant, "a", &generated("A"));
        cache.put(&tenant, "b", &generated("B"));
        assert_eq!(cache.get(&tenant, "a").unwrap().content, "A");
        cache.put(&tenant, "c", &generated("C"));
        assert!(cache.get(&tenant, "b").is_none());
        assert_eq!(cache.get(&tenant, "a").unwrap().content, "A");
        assert_eq!((cache.len(), cache.hits()), (2, 2));
        let mut cache = cache.renewed(2);
        assert!(cache.get(&tenant, "a").is_none());
        assert_eq!((cache.len(), cache.hits()), (0, 2));
    }

    #[test]
    fn a_tenant_does_not_see_what_another_has_asked_for() {
        let mut cache = PromptCache::new(2);
        let [acme, beta] = ["acme", "beta"].map(Tenant::new);
        cache.put(&acme, "a", &generated("A"));
        assert!(cache.get(&beta, "a").is_none());
        assert_eq!(cache.get(&acme, "a").unwrap().content, "A");
    }

    #[test]
    fn a_capacity_of_zero_keeps_nothing() {
        let (mut cache, tenant) = (PromptCache::new(0), Tenant::default());
        cache.put(&tenant, "a", &generated("A"));
        assert!(cache.get(&tenant, "a").is_none());
        assert_eq!(cache.len(), 0);
    }
}
