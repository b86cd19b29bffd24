//! What replay reads from other hosts: entries of a journal, and reports.
#![no_main]

use git_devops::journal::{Entry, EntryId, Report};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(entry) = Entry::decode(data) {
        assert_eq!(entry.encode(), data);
        assert!(!entry.shown().contains('\x1b'));
    }
    if let Ok(mut report) = Report::decode(data) {
        assert_eq!(report.encode(), data);
        report.shorten();
        assert_eq!(Report::decode(&report.encode()).unwrap(), report);
    }
    if let Some(Ok(id)) = EntryId::of_path(data) {
        assert_eq!(id.path(), data);
    }
});
