//! Chunks on their way to other hosts: a store of its own in the directory `in-flight` of the chunk store.
//!
//! Whatever is in it was made here by a run that is not done, and waits until enough holders have it. It is served like all else, but no promise rests on
//! it: a promise covers what is in the chunk store itself. So what is confirmed may go at once, and what a run left that was cut off is worth nothing.
//! Design: `docs/streaming.md`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::Store;
use crate::durable::{self, Lock};
use crate::error::Result;

/// What of a chunk store is on its way to other hosts.
pub struct InFlight {
    dir: PathBuf,
    lock: PathBuf,
    is_read_only: bool,
    store: OnceLock<Store>,
}

impl InFlight {
    /// Returns that of the chunk store in `store`, which need not be there yet.
    pub fn of(store: &Path, is_read_only: bool) -> Self {
        Self { dir: store.join("in-flight"), lock: store.join("in-flight-lock"), is_read_only, store: OnceLock::new() }
    }

    /// Returns its chunks; `None` if nothing is on its way.
    pub fn store(&self) -> Option<&Store> {
        if self.store.get().is_none() {
            let opened = match self.is_read_only {
                true => Store::open_to_read(&self.dir),
                false => Store::open(&self.dir),
            };
            let _ = self.store.set(opened.ok()?);
        }
        self.store.get()
    }

    /// Removes what a run left, and begins anew; nobody else does while the lock is held, and fails with [`Kind::Locked`](crate::error::Kind::Locked).
    pub fn begin(&self) -> Result<(Store, Lock)> {
        let lock = Lock::exclusive(&self.lock)?;
        self.empty(&lock)?;
        Ok((Store::create(&self.dir)?, lock))
    }

    /// Removes what a run left that was cut off; fails with [`Kind::Locked`](crate::error::Kind::Locked) while one is at work.
    pub fn clear(&self) -> Result<()> {
        if !durable::is_there(&self.dir) {
            return Ok(());
        }
        self.empty(&Lock::exclusive(&self.lock)?)
    }

    /// Removes everything, for whoever has the lock.
    pub fn empty(&self, _held: &Lock) -> Result<()> {
        match durable::is_there(&self.dir) {
            true => durable::remove_dir_all(&self.dir),
            false => Ok(()),
        }
    }
}
