//! Why a replay stopped, and what goes on from there.

use std::fmt;

/// Where and why a replay stopped; everything that was done stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// Why, by a name that does not change: see `docs/formats/exit-codes.md`.
    pub why: Why,
    /// What happened, in one sentence.
    pub what: String,
    /// Details, a line each.
    pub details: Vec<String>,
    /// Commands that go on from here, each with what it does.
    pub ways: Vec<(String, &'static str)>,
}

/// Why a replay stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Owned files differ from what was applied last.
    Drift,
    /// Something that is not owned is in the place of a new file.
    Collision,
    /// A protected file would go, become empty, or change its type.
    Protected,
    /// More files would go than a change takes away by accident.
    Deletions,
    /// No room, nothing can be written there, or something is mounted there.
    Room,
    /// A file did not pass its check.
    Invalid,
    /// A command failed.
    Failed,
    /// A command was interrupted, and nobody knows how far it came.
    Unknown,
    /// A command whose run was cut off still runs.
    Running,
    /// After a command, owned files are not what the commit says.
    Effect,
    /// A handler failed.
    Handler,
    /// After all of it, owned files are not what the commit says.
    Verify,
    /// The machine must start anew.
    Reboot,
    /// The commit changes what may not be changed.
    Journal,
    /// dpkg has packages that are configured by half, or a package's file lies where one is to be laid down.
    Packages,
}

impl Why {
    /// Returns the name by which programs know it.
    pub fn id(self) -> &'static str {
        match self {
            Self::Drift => "drift",
            Self::Collision => "collision",
            Self::Protected => "protected",
            Self::Deletions => "deletions",
            Self::Room => "room",
            Self::Invalid => "invalid",
            Self::Failed => "command-failed",
            Self::Unknown => "command-unknown",
            Self::Running => "command-running",
            Self::Effect => "effect",
            Self::Handler => "handler",
            Self::Verify => "verify",
            Self::Reboot => "reboot",
            Self::Journal => "journal",
            Self::Packages => "packages",
        }
    }
}

impl Halt {
    /// Returns a halt without details.
    pub fn new(why: Why, what: impl Into<String>, ways: &[(&str, &'static str)]) -> Self {
        let ways = ways.iter().map(|(command, effect)| ((*command).to_owned(), *effect)).collect();
        Self { why, what: what.into(), details: Vec::new(), ways }
    }

    /// Adds details.
    #[must_use]
    pub fn with(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
