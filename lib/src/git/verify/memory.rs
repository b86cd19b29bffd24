//! How much of the objects is in memory at a time.

use std::sync::{Mutex, MutexGuard};

use super::POISONED;

/// What all threads may have in memory: each its share, and one of them at a time an object that is larger.
pub(super) struct Memory {
    share: u64,
    large: Mutex<()>,
}

impl Memory {
    pub(super) fn for_threads(n_threads: usize) -> Self {
        Self { share: (ALL_SHARES / PER_OBJECT / n_threads as u64).min(MAX_SHARE), large: Mutex::new(()) }
    }

    /// Begins with an object, of which nothing is in memory yet.
    pub(super) fn hold(&self) -> Held<'_> {
        Held { memory: self, alone: None }
    }
}

/// Bytes that all threads may hold, larger objects excepted.
const ALL_SHARES: u64 = 256 << 20;

/// So many times its size a thread may hold of an object: it, its base, a delta, and what is decoded of it.
const PER_OBJECT: u64 = 8;

const MAX_SHARE: u64 = 8 << 20;

/// What a thread has in memory of one object. Dropped after that.
pub(super) struct Held<'a> {
    memory: &'a Memory,
    /// There if it is more than its share.
    alone: Option<MutexGuard<'a, ()>>,
}

impl Held<'_> {
    /// Waits until `n_bytes` may be in memory.
    pub(super) fn claim(&mut self, n_bytes: u64) {
        if n_bytes > self.memory.share && self.alone.is_none() {
            self.alone = Some(self.memory.large.lock().expect(POISONED));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_have_small_shares() {
        assert_eq!([1, 4, 16, 1024].map(|n| Memory::for_threads(n).share >> 10), [8192, 8192, 2048, 32]);
    }
}
