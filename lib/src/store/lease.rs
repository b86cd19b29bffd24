//! Who may use the store at the same time: any number of leases, or one garbage collection.
//!
//! All locks are the kernel's: they end with the process that holds them, however it ends.

use std::path::Path;
use std::time::Duration;

use super::Layout;
use super::index::read_list;
use super::rescue::rescue;
use super::segment;
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};

/// A promise that no chunk leaves the store: held from before the first lookup until a ref reaches what was stored.
///
/// Any number of them exist at a time, in any process. [`super::Store::gc`] removes nothing while one exists.
#[derive(Debug)]
pub struct Lease {
    _lock: Lock,
}

/// How often, and how long between, a lock is tried that others hold for moments only.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

impl Lease {
    /// Takes a lease, and first saves what dead writers had got done and removes what they left, if nobody else has one.
    pub(super) fn take(layout: &Layout) -> Result<Self> {
        if let Ok(_alone) = Lock::exclusive(&layout.lock()) {
            // What cannot be saved, because the disk is full or the index damaged, is done once more.
            let _ = rescue(layout);
            remove_leftovers(layout)?;
        }
        let lock = wait_for(
            || Lock::shared(&layout.lock()),
            || format!("garbage is being collected in '{}'; try again when that is done", layout.root.display()),
        )?;
        note_lease(&layout.leases())?;
        Ok(Self { _lock: lock })
    }
}

/// Waits until no lease exists and keeps new ones from being taken, or fails after two seconds.
pub(super) fn exclude_leases(layout: &Layout) -> Result<Lock> {
    wait_for(
        || Lock::exclusive(&layout.lock()),
        || {
            format!(
                "cannot collect garbage in '{}': somebody stores chunks there; try again when that is done",
                layout.root.display()
            )
        },
    )
}

/// Takes the lock that covers one change of the segment list; it is held for moments only.
pub(super) fn lock_list(layout: &Layout) -> Result<Lock> {
    wait_for(
        || Lock::exclusive(&layout.list_lock()),
        || format!("cannot change the index of '{}': another process holds it; try again", layout.root.display()),
    )
}

fn wait_for(take: impl Fn() -> Result<Lock>, refused: impl FnOnce() -> String) -> Result<Lock> {
    for _ in 0..TRIES {
        match take() {
            Err(error) if error.kind() == Kind::Locked => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    // The cause would name whoever had the lock exclusively last, and that may be long ago.
    Err(Error::new(Kind::Locked, refused()))
}

/// Makes the file of leases one byte longer, so that a garbage collection sees that there was one.
fn note_lease(path: &Path) -> Result<()> {
    durable::append_unsynced(path, b".")
}

/// Forgets the leases noted so far; the caller excludes leases.
pub(super) fn forget_leases(layout: &Layout) -> Result<()> {
    durable::empty_unsynced(&layout.leases())
}

/// Says whether a lease was taken since [`forget_leases`].
pub(super) fn was_leased(layout: &Layout) -> Result<bool> {
    let path = layout.leases();
    match durable::look(&path) {
        Ok(metadata) => Ok(metadata.len() != 0),
        // Somebody removed the file by hand: nobody knows.
        Err(error) if error.kind() == Kind::NotFound => Ok(true),
        Err(error) => Err(error).context(|| format!("cannot look at '{}'", path.display())),
    }
}

/// Removes temporary files and unlisted segments; the caller excludes leases, so nobody can be writing them.
pub(super) fn remove_leftovers(layout: &Layout) -> Result<()> {
    for path in super::list_dir(&layout.tmp())? {
        durable::remove(&path)?;
    }
    let Ok(listed) = read_list(layout) else { return Ok(()) };
    let listed: Vec<_> = listed.iter().map(|id| segment::path_of(&layout.index(), *id)).collect();
    for path in super::list_dir(&layout.index())? {
        if path.extension().is_some_and(|e| e == "segment") && !listed.contains(&path) {
            durable::remove(&path)?;
        }
    }
    // The list itself is published from a temporary file beside it.
    for path in super::list_dir(&layout.index())? {
        let name = path.file_name().map(|name| name.as_encoded_bytes().to_vec()).unwrap_or_default();
        if name.starts_with(crate::safepath::TEMP_PREFIX) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}
