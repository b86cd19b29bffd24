//! The journal: what is done to machines of a type beside laying down files, the log of what was done here, and what a host tells of itself.
//!
//! Formats: `docs/formats/journal.md`, `docs/formats/host-log.md`, `docs/formats/report.md`. Nothing here runs anything.

mod entry;
mod log;
mod report;

pub use entry::{DEFAULT_TIMEOUT, Entry, EntryId, HANDLER, HandlerName, IN, JOURNAL, Kind, MAX_ENTRY, Name, When, Words};
#[cfg(fuzzing)]
pub use log::fuzz;
pub use log::{Field, HostLog, Line, MAX_VALUE, REMEDY as LOG_REMEDY};
pub use report::{MAX_NAMED, MAX_REPORT, Report};
