//! The prompts that were enhanced lately, with what became of them.

use std::collections::VecDeque;

use super::enhancer::Answer;

/// What is used most recently stays.
#[derive(Debug)]
pub(super) struct Cache {
    /// The least recently used one first.
    entries: VecDeque<(String, Answer)>,
    capacity: usize,
    hits: u64,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            capacity,
            hits: 0,
        }
    }

    pub(super) fn get(&mut self, prompt: &str) -> Option<Answer> {
        let found = self.entries.iter().position(|(key, _)| key == prompt)?;
        let entry = self.entries.remove(found)?;
        let answer = entry.1.clone();
        self.entries.push_back(entry);
        self.hits += 1;
        Some(answer)
    }

    pub(super) fn put(&mut self, prompt: &str, answer: &Answer) {
        self.entries.retain(|(key, _)| key != prompt);
        self.entries.push_back((prompt.to_owned(), answer.clone()));
        while self.entries.len() > self.capacity {
            self.entries.pop_front();
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn hits(&self) -> u64 {
        self.hits
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_least_recently_used_entry_leaves() {
        let answer = |content: &str| Answer {
            content: content.to_owned(),
            provider: "p".to_owned(),
            model: "m".to_owned(),
            latency: Duration::ZERO,
            fallback_used: false,
        };
        let mut cache = Cache::new(2);
        cache.put("a", &answer("A"));
        cache.put("b", &answer("B"));
        assert_eq!(cache.get("a").unwrap().content, "A");
        cache.put("c", &answer("C"));
        assert!(cache.get("b").is_none());
        assert_eq!(cache.get("a").unwrap().content, "A");
        assert_eq!((cache.len(), cache.hits()), (2, 2));
        let mut none = Cache::new(0);
        none.put("a", &answer("A"));
        assert!(none.get("a").is_none());
    }
}
