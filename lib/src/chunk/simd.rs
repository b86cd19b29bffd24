//! The gear scan, chosen at run time by what the processor can do.

use super::gear::{self, Scan};

/// Returns the fastest scan that this processor can run.
pub(super) fn best() -> Scan {
    gear::scan_scalar
}

/// Returns all scans that this processor can run, by name.
#[cfg(test)]
pub(super) fn all() -> Vec<(&'static str, Scan)> {
    vec![("scalar", gear::scan_scalar)]
}
