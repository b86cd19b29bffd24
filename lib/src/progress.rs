//! How far a long work has come: counters that the work raises and a door polls.
//!
//! The library never prints. A door that wants to show progress reads [`Progress`] from a thread of its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one run, shared by all its threads; also where the run leaves its warnings.
#[derive(Default)]
pub struct Progress {
    stage: Mutex<&'static str>,
    files: AtomicU64,
    bytes: AtomicU64,
    total_files: AtomicU64,
    total_bytes: AtomicU64,
    warnings: Mutex<Vec<Warning>>,
}

/// Something that was left out, while the rest went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The path concerned, as raw bytes, relative to the work tree or the target.
    pub path: Vec<u8>,
    /// What happened, and to whom: one lower-case line without the path.
    pub message: String,
}

/// What the counters showed at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being done, in a few words.
    pub stage: &'static str,
    /// Files and directories done.
    pub files: u64,
    /// Bytes of content done.
    pub bytes: u64,
    /// Files expected, 0 if unknown.
    pub total_files: u64,
    /// Bytes expected, 0 if unknown.
    pub total_bytes: u64,
}

impl Progress {
    /// Starts a stage: resets the counters; a total of 0 means unknown.
    pub fn stage(&self, stage: &'static str, total_files: u64, total_bytes: u64) {
        *self.stage.lock().expect("BUG: a thread panicked while it held the stage") = stage;
        self.files.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.total_files.store(total_files, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Counts `files` more files and `bytes` more bytes as done.
    pub fn add(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that `path` was left out, and why.
    pub fn warn(&self, path: &[u8], message: impl Into<String>) {
        let warning = Warning { path: path.to_vec(), message: message.into() };
        self.warnings.lock().expect("BUG: a thread panicked while it held the warnings").push(warning);
    }

    /// Takes the warnings noted so far, sorted by path, the same one once.
    pub fn take_warnings(&self) -> Vec<Warning> {
        let mut warnings = std::mem::take(&mut *self.warnings.lock().expect("BUG: a thread panicked while it held the warnings"));
        warnings.sort_by(|a, b| (&a.path, &a.message).cmp(&(&b.path, &b.message)));
        warnings.dedup();
        warnings
    }

    /// Returns what the counters show now.
    pub fn now(&self) -> Snapshot {
        Snapshot {
            stage: *self.stage.lock().expect("BUG: a thread panicked while it held the stage"),
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            total_files: self.total_files.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
        }
    }
}
