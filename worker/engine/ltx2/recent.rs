//! What was made for the latest keys.

use std::collections::VecDeque;

/// Values of the latest keys, the latest last.
#[derive(Debug)]
pub(crate) struct Recent<T> {
    capacity: usize,
    entries: VecDeque<(String, T)>,
}

impl<T> Recent<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            entries: VecDeque::new(),
        }
    }

    /// The value of a key; it is the latest now.
    pub(crate) fn touch(&mut self, key: &str) -> Option<&T> {
        let at = self.entries.iter().position(|(k, _)| k == key)?;
        let entry = self.entries.remove(at)?;
        self.entries.push_back(entry);
        self.get(key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&T> {
        let entry = self.entries.iter().find(|(k, _)| k == key)?;
        Some(&entry.1)
    }

    /// Makes room before there is a new value, whose making may need the memory.
    pub(crate) fn make_room(&mut self) {
        while self.entries.len() >= self.capacity.max(1) {
            self.entries.pop_front();
        }
    }

    /// Forgets the value whose key was not asked for longest where there are too many.
    pub(crate) fn put(&mut self, key: &str, value: T) {
        self.make_room();
        self.entries.push_back((key.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_that_was_not_asked_for_longest_is_forgotten() {
        let mut recent = Recent::new(2);
        recent.put("a", 1);
        recent.put("b", 2);
        assert_eq!(recent.touch("a"), Some(&1));
        recent.put("c", 3);
        assert_eq!(recent.get("b"), None);
        assert_eq!(recent.get("a"), Some(&1));
        assert_eq!(recent.get("c"), Some(&3));
    }
}
