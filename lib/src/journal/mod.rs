//! The journal: what is done to machines of a type beside laying down files, and the log of what was done here.
//!
//! Formats: `docs/formats/journal.md`, `docs/formats/host-log.md`. Nothing here runs anything.

mod entry;
mod log;

pub use entry::{DEFAULT_TIMEOUT, Entry, EntryId, HANDLER, IN, JOURNAL, Kind, MAX_ENTRY, Name, When, Words};
pub use log::{Field, HostLog, Line, MAX_VALUE};
