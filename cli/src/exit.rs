//! How the program ends: `docs/formats/exit-codes.md`, one table for all verbs.

use git_devops::error::Kind;

/// All is well, and, where a verb compares, nothing differs.
pub const OK: u8 = 0;
/// Something differs, and the verb was asked to say so.
pub const DIFFERENCES: u8 = 1;
/// Some of the work could not be done; what, was said; the rest is done.
pub const PARTIAL: u8 = 3;
/// Stored data is damaged.
pub const INTEGRITY: u8 = 8;
/// Two changes of the same thing, and a person decides.
pub const CONFLICT: u8 = 10;
/// What is applied to this host in order stopped, and a person decides.
pub const HALTED: u8 = 12;
/// This machine must start anew before anything else is applied.
pub const REBOOT: u8 = 13;
/// Input that is not acted on; the rest was done, if that is possible.
pub const REFUSED: u8 = 65;

/// `serve` was asked for something that is not served: what a shell reports of a command that it may not run.
pub const NOT_SERVED: u8 = 126;
/// Whoever read our standard output closed it: what a shell reports of a program that `SIGPIPE` killed.
pub const CLOSED: u8 = 141;
/// Our own mistake.
pub const BUG: u8 = 70;

/// Returns the exit code for an error of this kind.
pub fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Usage => 2,
        Kind::Partial => PARTIAL,
        Kind::NoSpace => 4,
        Kind::Io => 5,
        Kind::Locked => 7,
        Kind::Corrupt => INTEGRITY,
        Kind::NotFound => 9,
        Kind::Conflict => CONFLICT,
        Kind::Unsupported => 11,
        Kind::Halted => HALTED,
        Kind::Reboot => REBOOT,
        Kind::Refused => REFUSED,
        Kind::Bug => BUG,
    }
}
